"""Pictures and contours: values drawn on paper, orientation by a marker, and what a page may not do."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from mtvlib import viewer
from mtvlib.classes import NODES, PRIMARY
from mtvlib.errors import InputError
from mtvlib.viewer import ViewCase


def plane(*rows: str) -> np.ndarray:
    """A mask (x, y) from rows as they are seen: x to the right, y downwards."""
    return np.array([[character == "#" for character in row] for row in rows]).T


def case(size: int = 24, factor: int = 1, **changes) -> ViewCase:
    """A cube-shaped patient with a primary on the left side that the CNN finds shifted, and a node that it misses."""
    reference = np.zeros((size, size, 8), np.uint8)
    reference[14:18, 10:14, 2:5] = PRIMARY
    reference[6:8, 12:14, 6] = NODES
    prediction = np.zeros_like(reference)
    prediction[15:19, 10:14, 2:5] = PRIMARY
    pet = np.full((factor * size, factor * size, 8), 1.0, np.float32)
    pet[(reference > 0).repeat(factor, 0).repeat(factor, 1)] = 8
    ct = np.full_like(pet, 40.0)
    return replace(ViewCase("p1", pet, reference, prediction, (5.0, 5.0, 6.0), ct), **changes)


# --- contours


def test_outline_of_a_2_by_2_mask():
    assert viewer.outline(plane("....", ".##.", ".##.")) == [[(1, 1), (3, 1), (3, 3), (1, 3)]]


def test_a_hole_and_voxels_that_touch_at_a_corner_are_polygons_of_their_own():
    assert sorted(map(len, viewer.outline(plane("###", "#.#", "###")))) == [4, 4]
    assert sorted(map(sorted, viewer.outline(plane("#.", ".#")))) == [
        [(0, 0), (0, 1), (1, 0), (1, 1)],
        [(1, 1), (1, 2), (2, 1), (2, 2)],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_outlines_enclose_exactly_the_mask(seed):
    mask = np.random.default_rng(seed).random((9, 7)) < 0.5
    inside = np.zeros(mask.shape, int)
    for polygon in viewer.outline(mask):
        for (x0, y0), (x1, y1) in pairwise([*polygon, polygon[0]]):
            if x0 == x1:  # a vertical edge flips everything to its right, row by row
                inside[x0:, min(y0, y1) : max(y0, y1)] += 1
    np.testing.assert_array_equal(inside % 2 == 1, mask)


def test_no_contour_where_the_mask_is_empty():
    assert viewer.outline(np.zeros((3, 3), bool)) == []


# --- orientation: patient's left on the right of the picture, face up


def test_the_patients_left_front_is_the_pictures_right_upper_corner():
    marker = np.zeros((5, 4))
    marker[4, 0] = 1  # LPS: largest x is most left, smallest y most anterior
    picture = viewer.grey(marker, (0, 1))
    assert picture.shape == (4, 5)
    assert np.argwhere(picture == 255).tolist() == [[0, 4]]  # first row, last column


def test_the_plate_shows_the_marker_there_too():
    marker = case(ct=None)
    marker.pet[:] = 0.5
    marker.pet[20:24, 0:4, :] = 9  # left and anterior
    panel = np.asarray(Image.open(io.BytesIO(viewer.plate(marker, panel_px=240))).convert("L"))[:240, :240]
    assert panel[20, 215] < 60  # PET is inverted: hot is dark
    assert panel[220, 60] > 200


# --- numbers


def test_dsc_of_a_slice():
    assert viewer.slice_dsc(case(), 3) == {"primary": 0.75, "nodes": None, "all": 0.75}  # 2 * 12 / (16 + 16)
    assert viewer.slice_dsc(case(), 6) == {"primary": None, "nodes": 0.0, "all": 0.0}


def test_the_suv_window_follows_the_hottest_lesion_within_limits():
    assert viewer.suv_limit(case()) == 5  # 60 % of 8 is 4.8
    hot = case(factor=2)
    assert viewer.suv_limit(replace(hot, pet=hot.pet * 2)) == 10
    assert viewer.suv_limit(replace(hot, pet=hot.pet * 9)) == 12


def test_plate_goes_through_every_roi_and_keeps_slices_apart():
    assert viewer.plate_slices(case()) == [6, 2]
    assert viewer.best_slice(case()) == 2
    near = case()
    near.reference[6:8, 12:14, 3] = NODES  # 6 mm above the primary's slice
    assert viewer.plate_slices(near) == [6, 2]
    empty = np.zeros_like(case().reference)
    assert viewer.plate_slices(case(reference=empty, prediction=empty)) == [4]


def test_air_round_the_patient_is_cut_but_no_lesion():
    wide = case(40)
    ct = np.full(wide.pet.shape, -1000.0)
    ct[5:35, 8:30] = 40
    cut = viewer.cropped(replace(wide, ct=ct))
    assert cut.reference.shape == (34, 26, 8)  # 8 mm of air are two voxels of 5 mm
    assert (cut.reference > 0).sum() == (wide.reference > 0).sum()
    elsewhere = np.full(wide.pet.shape, -1000.0)
    elsewhere[25:39, 25:39] = 40
    assert (viewer.cropped(replace(wide, ct=elsewhere)).reference > 0).sum() == (wide.reference > 0).sum()


def test_the_couch_is_cut_though_it_is_wide():
    wide = case(40)
    ct = np.full(wide.pet.shape, -1000.0)
    ct[5:35, 8:30] = 40
    ct[:, 34] = 0  # 20 mm behind the patient
    assert viewer.cropped(replace(wide, ct=ct)).reference.shape == (34, 26, 8)


def test_a_plate_is_cut_to_the_patient_in_its_own_slices():
    wide = case(40)
    ct = np.full(wide.pet.shape, -1000.0)
    ct[15:25, 10:20] = 40  # a neck
    ct[:, 5:35, 7] = 40  # shoulders, in a slice without a lesion
    shoulders = replace(wide, ct=ct)
    assert viewer.crop_box(shoulders, [2, 6])[0] == slice(4, 27)  # from the node (6) to the neck (24), and 8 mm of air
    assert viewer.crop_box(shoulders, [2, 7])[0] == slice(0, 40)


def test_the_scale_bar_is_as_long_as_it_says():
    """24 voxels of 5 mm are 240 pixels wide: 2 cm are 40 of them."""
    picture = np.asarray(Image.open(io.BytesIO(viewer.plate(case(ct=None), panel_px=240))).convert("L"))
    bar = picture[228:240, 180:240].min(axis=0) < 100
    assert bar.sum() == pytest.approx(40, abs=3)


def test_plates_write_names_with_accents():
    font = viewer.typeface(40)
    drawn = {bytes(font.getmask(letter)) for letter in ("u", "\N{LATIN SMALL LETTER U WITH DIAERESIS}", "\uffff")}
    assert len(drawn) == 3  # not the sign for what is lacking


def test_pet_alone_has_one_panel():
    three = case()
    three.reference[2:4, 2:4, 0] = NODES  # a third slice: now the PET lies below the CT
    both, alone = (Image.open(io.BytesIO(viewer.plate(one))) for one in (three, replace(three, ct=None)))
    assert both.width == alone.width
    assert both.height - alone.height == 480 + 12  # a row of panels and the gap


def test_images_that_do_not_fit_the_masks_are_refused():
    with pytest.raises(InputError, match=r"patient p1.*pet \(24, 24, 7\)"):
        case(pet=np.zeros((24, 24, 7), np.float32))
    with pytest.raises(InputError, match="same field"):
        case(ct=np.zeros((36, 36, 8), np.float32))


def test_the_widget_follows_its_slider():
    box = viewer.widget(case())
    slider, picture, text = box.children[0].children[0], box.children[1], box.children[2]
    before = picture.value
    assert "DSC primary: 0.75" in text.value
    slider.value = 6
    assert picture.value != before
    assert "slice 7 of 8" in text.value
    assert "DSC nodes: 0.00" in text.value

"""Planes as pictures: orientation by a marker, contours where the mask is, clicks on the voxel that was meant."""

import io

import numpy as np
import pytest
from PIL import Image

from mtvlib import planes
from mtvlib.planes import OWN, Mip, View
from mtvlib.viewer import COLOURS


def view(ct: bool = True) -> View:
    """A field of 20 x 16 x 10 voxels of 4 x 4 x 8 mm, hot at the patient's left, front and top."""
    pet = np.ones((20, 16, 10), np.float32)
    pet[16:, :4, 8:] = 10
    return View("p1", pet, np.full_like(pet, 40) if ct else None, (4.0, 4.0, 8.0))


def with_masks() -> View:
    one = view()
    one.masks["man"] = np.zeros(one.shape, np.uint8)
    one.masks["man"][5:10, 4:12, 3:6] = 1
    one.masks["cnn"] = np.zeros(one.shape, np.uint8)
    one.masks["cnn"][6:10, 4:12, 3:6] = 2
    return one


def seen(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def corners(content: bytes) -> dict[str, float]:
    picture = seen(content).mean(2)
    rows = {"upper": slice(None, picture.shape[0] // 10), "lower": slice(-(picture.shape[0] // 10), None)}
    columns = {"left": slice(None, picture.shape[1] // 10), "right": slice(-(picture.shape[1] // 10), None)}
    return {f"{v} {h}": picture[rows[v], columns[h]].mean() for v in rows for h in columns}


# --- slices


@pytest.mark.parametrize(
    ("plane", "at", "corner"),
    [
        ("transaxial", (2, 2, 9), "upper right"),  # the patient's left is on the right, the face is up
        ("coronal", (2, 1, 2), "upper right"),  # the head is up
        ("sagittal", (18, 2, 2), "upper left"),  # the face is on the left
    ],
)
def test_the_hot_corner_is_where_a_radiologist_expects_it(plane, at, corner):
    shades = corners(planes.picture(view(), plane, at, layer="PET", suv=10))
    assert min(shades, key=shades.get) == corner  # high uptake is dark
    assert shades[corner] < 60
    heat = corners(planes.picture(view(), plane, at, suv=10))
    assert max(heat, key=heat.get) == corner  # and bright on the CT


def test_small_grids_are_enlarged_and_large_ones_are_not():
    assert seen(planes.picture(view(), "transaxial", (2, 2, 2))).shape[:2] == (16 * 20, 20 * 20)
    large = View("p", np.ones((192, 192, 500), np.float32), None, (2.0, 2.0, 2.0))
    assert seen(planes.picture(large, "coronal", (2, 2, 2))).shape[:2] == (500, 192)


def test_pictures_keep_millimetres_square():
    assert planes.ratio(view(), "transaxial") == 80 / 64
    assert planes.ratio(view(), "coronal") == 80 / 80


def test_finer_pixels_are_shown_at_the_same_place():
    one = view()
    one.fine = {"pet": np.repeat(np.repeat(one.pet, 2, 0), 2, 1), "ct": np.full((80, 64, 10), 40.0, np.float32)}
    for plane in planes.AXES:
        coarse = corners(planes.picture(view(), plane, (18, 1, 9), layer="PET", suv=10))
        assert corners(planes.picture(one, plane, (18, 1, 9), layer="PET", suv=10)) == pytest.approx(coarse, abs=12)
    assert seen(planes.picture(one, "transaxial", (1, 1, 1))).shape[:2] == (64 * 5, 80 * 5)


def test_without_ct_every_layer_is_the_pet():
    one = view(ct=False)
    assert planes.picture(one, "coronal", (1, 1, 1)) == planes.picture(one, "coronal", (1, 1, 1), layer="PET")


# --- contours


def test_contours_follow_the_voxels_edges_in_the_colour_of_class_and_source():
    man, cnn = planes.contours(with_masks(), "transaxial", (1, 1, 4), ("man", "cnn"))
    assert (man["d"], man["dash"]) == ("M5 4L10 4L10 12L5 12Z", False)
    assert (cnn["d"], cnn["dash"]) == ("M6 4L10 4L10 12L6 12Z", True)
    assert (man["stroke"], cnn["stroke"]) == (COLOURS["man", "primary"], COLOURS["cnn", "nodes"])


def test_contours_of_coronal_planes_have_the_head_up():
    (line,) = planes.contours(with_masks(), "coronal", (1, 5, 1), ("man",))
    assert line["d"] == "M5 4L10 4L10 7L5 7Z"  # slices 3 to 5 of 10 are rows 4 to 6 from above


def test_only_what_is_shown_and_cut_has_contours():
    assert planes.contours(with_masks(), "transaxial", (1, 1, 8), ("man", "cnn")) == []
    assert planes.contours(with_masks(), "transaxial", (1, 1, 4), ()) == []


def test_a_threshold_that_is_tried_has_one_colour_whatever_its_classes():
    one = view()
    one.masks[OWN] = np.zeros(one.shape, np.uint8)
    one.masks[OWN][5:7, 4, 4], one.masks[OWN][7:9, 4, 4] = 1, 2
    assert planes.contours(one, "transaxial", (1, 1, 4), (OWN,)) == [
        {"d": "M5 4L9 4L9 5L5 5Z", "stroke": planes.OWN_COLOUR, "dash": False}
    ]


# --- places


@pytest.mark.parametrize("plane", ["transaxial", "coronal", "sagittal"])
def test_a_click_means_the_voxel_under_it(plane):
    """The middle of a voxel's square in the picture gives that voxel, for every voxel of the plane, and back."""
    one = view()
    across, down, along = planes.AXES[plane]
    for i in range(one.shape[across]):
        for j in range(one.shape[down]):
            v = (j + 0.5) / one.shape[down]
            place = [(i + 0.5) / one.shape[across], 1 - v if down == 2 else v]
            found = planes.voxel_at(one, plane, (7, 7, 7), place)
            assert (found[across], found[down], found[along]) == (i, j, 7)
            assert planes.place(one, plane, found) == pytest.approx(place)


def test_clicks_beyond_the_picture_mean_its_edge():
    assert planes.voxel_at(view(), "transaxial", (0, 0, 5), (1.2, -0.1)) == [19, 0, 5]


# --- the projection


def test_the_mip_shows_what_any_slice_holds():
    shades = corners(Mip(view()).picture(0, suv=10))
    assert shades["upper right"] < 40
    assert shades["upper left"] > 200


@pytest.mark.parametrize(
    ("degrees", "corner"), [(0, "upper right"), (90, "upper left"), (180, "upper left"), (270, "upper right")]
)
def test_turned_it_is_seen_from_the_left_the_back_and_the_right(degrees, corner):
    """The lesion is at the patient's left and front: from his left, his front is at the left."""
    shades = corners(Mip(view()).picture(degrees, suv=10))
    assert min(shades, key=shades.get) == corner


@pytest.mark.parametrize("degrees", [0, 45, 90, 135, 180, 300])
def test_a_click_in_the_mip_goes_to_the_hottest_voxel_behind_it_and_the_cross_is_there(degrees):
    one = View("p", np.ones((200, 200, 12), np.float32), None, (2.0, 2.0, 2.0))  # thinned by two
    for x, y, z in ([61, 130, 5], [140, 77, 9]):
        one.pet[x - 2 : x + 3, y - 2 : y + 3, z] = 6
        one.pet[x, y, z] = 9
    mip = Mip(one)
    for at in ([61, 130, 5], [140, 77, 9]):
        assert mip.voxel_at(degrees, mip.place(degrees, at)) == at


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_contours_lie_on_the_lesion_that_the_projection_shows(degrees):
    one = view()
    one.masks["man"] = np.where(one.pet > 5, 1, 0).astype(np.uint8)
    mip = Mip(one)
    (line,) = mip.contours(degrees, ("man",))
    columns = [float(part.split()[0]) for part in line["d"].strip("MZ").split("L")]
    hot = np.flatnonzero((mip.values(degrees) > 5).any(0))
    assert min(columns) == pytest.approx(hot[0], abs=1)
    assert max(columns) == pytest.approx(hot[-1] + 1, abs=1)


def test_contours_of_the_mip_follow_an_edited_map():
    one = with_masks()
    mip = Mip(one)
    before = mip.contours(0, ("man",))
    one.masks["man"] = np.zeros_like(one.masks["man"])
    assert mip.contours(0, ("man",)) == []
    assert before


@pytest.mark.parametrize("step", [1, 2, 3])
def test_thinning_keeps_the_highest_of_each_block_up_to_the_edge(step):
    volume = np.random.default_rng(0).random((7, 5, 3))
    thin = planes._thinned(volume, step)
    for x in range(thin.shape[0]):
        for y in range(thin.shape[1]):
            block = volume[x * step : (x + 1) * step, y * step : (y + 1) * step]
            np.testing.assert_array_equal(thin[x, y], block.max((0, 1)))

"""Planes as pictures: orientation by a marker, contours where the mask is, clicks on the voxel that was meant."""

import io

import numpy as np
import pytest
from PIL import Image

from mtvlib import planes
from mtvlib.planes import OWN, View


def view(ct: bool = True) -> View:
    """A field of 20 x 16 x 10 voxels of 4 x 4 x 8 mm, hot at the patient's left, front and top."""
    pet = np.ones((20, 16, 10), np.float32)
    pet[16:, :4, 8:] = 10
    return View("p1", pet, np.full_like(pet, 40) if ct else None, (4.0, 4.0, 8.0))


def seen(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("plane", "at", "corner"),
    [
        ("transaxial", (2, 2, 9), "upper right"),  # the patient's left is on the right, the face is up
        ("coronal", (2, 1, 2), "upper right"),  # the head is up
        ("sagittal", (18, 2, 2), "upper left"),  # the face is on the left
    ],
)
def test_the_hot_corner_is_where_a_radiologist_expects_it(plane, at, corner):
    picture = seen(planes.picture(view(), plane, at, layer="PET", suv=10)).mean(2)
    height, width = picture.shape
    parts = {
        "upper left": picture[: height // 10, : width // 10],
        "upper right": picture[: height // 10, -width // 10 :],
        "lower left": picture[-height // 10 :, : width // 10],
        "lower right": picture[-height // 10 :, -width // 10 :],
    }
    assert min(parts, key=lambda name: parts[name].mean()) == corner  # high uptake is dark
    assert parts[corner].mean() < 60


def test_pictures_keep_millimetres_square():
    assert planes.size_px(view(), "transaxial", 400) == (400, 320)  # 80 x 64 mm
    assert planes.size_px(view(), "coronal", 400) == (400, 400)  # 80 x 80 mm


def test_contours_are_drawn_in_their_colours_where_the_mask_is_and_only_if_shown():
    one = view()
    one.masks["man"] = np.zeros(one.shape, np.uint8)
    one.masks["man"][5:10, 4:12, 3:6] = 1
    without = seen(planes.picture(one, "transaxial", (1, 1, 4), shown=()))
    drawn = seen(planes.picture(one, "transaxial", (1, 1, 4), shown=("man", "cnn")))
    changed = np.argwhere(np.abs(drawn - without).sum(2) > 120)
    assert changed.min(0) == pytest.approx((80, 100), abs=6)  # 20 pixels a voxel
    assert changed.max(0) == pytest.approx((239, 199), abs=6)
    red, green, blue = np.median(drawn[tuple(changed.T)], 0)
    assert red > 150 > green > blue  # the primary's orange
    assert np.abs(seen(planes.picture(one, "transaxial", (1, 1, 8))) - without).max() < 255  # another slice: no mask


def test_a_threshold_that_is_tried_has_a_colour_of_its_own():
    one = view(ct=False)
    one.masks[OWN] = np.zeros(one.shape, np.uint8)
    one.masks[OWN][5:15, 4:12, 4] = 1
    picture = seen(planes.picture(one, "transaxial", (1, 1, 4)))
    assert (np.abs(picture - planes._rgb(planes.OWN_COLOUR)).sum(2) < 90).sum() > 200


@pytest.mark.parametrize("plane", ["transaxial", "coronal", "sagittal"])
def test_a_click_means_the_voxel_under_it(plane):
    """The middle of a voxel's square in the picture gives that voxel, for every voxel of the plane."""
    one = view()
    across, down, along = planes.AXES[plane]
    for i in range(one.shape[across]):
        for j in range(one.shape[down]):
            v = (j + 0.5) / one.shape[down]
            place = ((i + 0.5) / one.shape[across], 1 - v if down == 2 else v)
            found = planes.voxel_at(one, plane, (7, 7, 7), place)
            assert (found[across], found[down], found[along]) == (i, j, 7)


def test_clicks_beyond_the_picture_mean_its_edge():
    assert planes.voxel_at(view(), "transaxial", (0, 0, 5), (1.2, -0.1)) == [19, 0, 5]


def test_the_mip_shows_what_any_slice_holds():
    picture = seen(planes.mip(view(), (0, 0, 0), suv=10)).mean(2)
    assert picture[10:60, -60:].mean() < 30  # two of the ten slices are hot
    assert picture[100:300, :200].mean() > 200


def test_without_ct_every_layer_is_the_pet():
    one = view(ct=False)
    assert planes.picture(one, "coronal", (1, 1, 1)) == planes.picture(one, "coronal", (1, 1, 1), layer="PET")

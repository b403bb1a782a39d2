"""The face of a phantom: gone from what is shown, by a flat cut that tells nothing of it; lesions stay."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from mtvlib import faces
from mtvlib.classes import PRIMARY
from mtvlib.viewer import ViewCase

SPACING_MM = (5.0, 5.0, 5.0)


def head(*, nose_mm: float = 15, tilt: float = 0.0, vertex: bool = True, chest: bool = True) -> ViewCase:
    """Head, neck and chest of ellipses, looking towards y = 0; `tilt`: mm that the head lies further back a mm up."""
    z_mm, centre = np.arange(70) * 5.0, 160.0
    body = np.zeros((64, 64, 70), bool)
    x, y = np.meshgrid(np.arange(64) * 5.0, np.arange(64) * 5.0, indexing="ij")
    for index, z in enumerate(z_mm):
        shift = tilt * (z - 200)
        if z < 60 and chest:
            body[:, :, index] = ((x - centre) / 155) ** 2 + ((y - centre) / 100) ** 2 < 1
        elif z < 120:
            body[:, :, index] = ((x - centre) / 58) ** 2 + ((y - centre - 5) / 60) ** 2 < 1
        elif z < 340:
            scale = 1.0 if z < 290 else np.sqrt(max(0.0, 1 - ((z - 290) / 50) ** 2))
            body[:, :, index] = ((x - centre) / 75) ** 2 + ((y - centre - shift) / 95) ** 2 < scale**2
            if 190 < z < 215:
                body[:, :, index] |= (np.abs(x - centre) < 12) & (
                    np.abs(y - (centre - 95 - nose_mm / 2 + shift)) < nose_mm
                )
    if not vertex:
        body = body[:, :, :56]
    pet = np.where(body, 1.0, 0.0).astype(np.float32)
    ct = np.where(body, 40.0, -1000.0).astype(np.float32)
    empty = np.zeros(body.shape, np.uint8)
    return ViewCase("p1", pet, empty, empty, SPACING_MM, ct)


def face_of(case: ViewCase) -> np.ndarray:
    """Skin voxels of the front of the head, from the chin up to the brow."""
    body = case.ct > -140
    skin = body & ~ndimage.binary_erosion(body)
    front = np.zeros_like(skin)
    front[20:45, :18, 26:54] = True  # 12 cm wide, the front 9 cm of the field
    return skin & front


@pytest.mark.parametrize("changes", [{}, {"tilt": 0.25}, {"tilt": -0.25}, {"vertex": False}, {"chest": False}])
@pytest.mark.parametrize("without_ct", [False, True])
def test_no_voxel_of_the_faces_skin_is_left(changes, without_ct):
    case = head(**changes)
    face = face_of(case)
    assert face.sum() > 200
    shown = faces.without_face(replace(case, ct=None) if without_ct else case)
    assert shown.pet[face].max() == 0
    if not without_ct:
        assert shown.ct[face].max() == faces.AIR_HU


def test_what_is_left_does_not_tell_noses_apart():
    flat, long = (faces.without_face(head(nose_mm=nose)) for nose in (5, 25))
    front = [(one.ct[:, :, 26:54] > -140).argmax(1) * 5.0 for one in (flat, long)]
    middle = [depth[22:43] for depth in front]
    assert np.ptp(middle[0]) <= 10  # flat to two voxels ...
    assert np.abs(middle[0] - middle[1]).max() <= 10  # ... and at the same depth, though the noses differ by 20 mm


def test_neck_below_the_chin_and_back_of_the_head_stay():
    case = head()
    shown = faces.without_face(case)
    np.testing.assert_array_equal(shown.ct[:, :, :18], case.ct[:, :, :18])
    np.testing.assert_array_equal(shown.ct[:, 32:], case.ct[:, 32:])


def test_a_lesion_in_the_mouth_stays_with_its_surroundings_but_not_the_lips():
    case = head()
    case.reference[30:34, 18:21, 30:33] = PRIMARY  # 25 mm behind the front
    shown = faces.without_face(case)
    assert (shown.ct[case.reference > 0] == 40).all()
    assert shown.ct[32, 17, 31] == 40  # 5 mm in front of it
    assert shown.pet[face_of(case)].max() == 0


def test_finer_images_are_cut_at_the_same_place():
    coarse = head()
    fine = replace(coarse, ct=coarse.ct.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(faces.without_face(fine).ct[::2, ::2], faces.without_face(coarse).ct)


def test_a_field_without_a_body_is_left_alone():
    empty = head()
    empty.ct[:] = -1000
    assert faces.without_face(empty) is empty

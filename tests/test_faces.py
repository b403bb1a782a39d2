"""The face of a phantom: gone from what is shown, by a flat cut that tells nothing of it; lesions stay."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from whole_body import whole_body

from mtvlib import anatomy, faces, volume
from mtvlib.classes import PRIMARY
from mtvlib.phantom import make_patient
from mtvlib.viewer import ViewCase

SPACING_MM = (5.0, 5.0, 5.0)
STS = Path(__file__).parents[1] / ".." / "shared" / "data" / "sts" / "nifti"
POSES = {"straight": (0, 0), "chin up": (20, 0), "chin down": (-20, 0), "turned": (5, 20)}  # tilt, turn in degrees


@cache
def body(pose: str = "straight") -> anatomy.Body:
    drawn = anatomy.Warp.__init__

    def posed(self: anatomy.Warp, rng: np.random.Generator, female: bool) -> None:
        drawn(self, rng, female)
        self.angles = np.radians((*POSES[pose], 0.0))

    with patch.object(anatomy.Warp, "__init__", posed):
        return anatomy.draw_body(np.random.default_rng(3), female=False, contrast=True)


def view(pose: str = "straight", bottom: float = -150, top: float = 250, part: anatomy.Body | None = None) -> ViewCase:
    """Every other voxel of the phantom between two heights, mm (chin 0, mouth 35, eyes 108, vertex 225)."""
    drawn = part or body(pose)
    box = near(bottom, top)
    pet, ct = (image[box].astype(np.float32) for image in (drawn.suv, drawn.hu))
    empty = np.zeros(ct.shape, np.uint8)
    return ViewCase("p1", pet, empty, empty, SPACING_MM, ct)


def near(bottom: float, top: float) -> tuple[slice, slice, slice]:
    height = anatomy.LOW_MM[2] + anatomy.SPACING_MM * np.arange(anatomy.SHAPE[2])
    return slice(None, None, 2), slice(None, None, 2), slice(*np.searchsorted(height, (bottom, top)), 2)


def face_of(pose: str = "straight", bottom: float = -150, top: float = 250) -> np.ndarray:
    """Skin of the front of the head in `view`, from the chin up to the brow, 9 cm wide, cheeks included."""
    box, drawn = near(bottom, top), body(pose)
    x, y, z = drawn.canonical[:, *box]
    skin = (drawn.depth_mm[box] > 0) & (drawn.depth_mm[box] < 5)
    return skin & (np.abs(x) < 45) & (y < -50) & (z > 0) & (z < 135)


@pytest.mark.parametrize("with_ct", [True, False])
@pytest.mark.parametrize(
    ("pose", "field"),
    [
        *((pose, (-150, 250)) for pose in POSES),
        ("straight", (-150, 125)),  # cut off above the eyes
        ("straight", (-150, 60)),  # the lower half of the face
        ("straight", (-20, 250)),  # nothing below the chin
    ],
)
def test_no_voxel_of_the_faces_skin_is_left(pose, field, with_ct):
    case, face = view(pose, *field), face_of(pose, *field)
    assert face.sum() > 100
    shown = faces.without_face(case if with_ct else replace(case, ct=None))
    assert shown.pet[face].max() == 0
    assert (shown.pet > 0).sum() > 0.6 * (case.pet > 0).sum()
    if with_ct:
        assert shown.ct[face].max() == faces.AIR_HU


def test_another_nose_and_chin_leave_the_same_cut():
    drawn, (x, y, z) = body(), body().canonical
    other = {}
    for name, mm in (("small", -6), ("large", 14)):
        hu, suv = drawn.hu.copy(), drawn.suv.copy()
        nose = np.sqrt((x / 16) ** 2 + ((y + 88) / (28 + mm)) ** 2 + ((z - 74) / 20) ** 2) < 1
        chin = np.sqrt((x / 25) ** 2 + ((y + 70) / (20 + mm)) ** 2 + ((z - 10) / 14) ** 2) < 1
        before = (y < -92) & (z > 45) & (z < 100) if mm < 0 else np.zeros_like(nose)
        hu[before], suv[before] = -1000, 0
        hu[nose | chin], suv[nose | chin] = 40, 0.6
        other[name] = faces.without_face(view(part=replace(drawn, hu=hu, suv=suv)))
    assert (view(part=replace(drawn, hu=hu, suv=suv)).ct != view().ct).sum() > 200
    np.testing.assert_array_equal(other["small"].ct, other["large"].ct)
    np.testing.assert_array_equal(other["small"].pet, other["large"].pet)


def test_what_is_left_in_front_is_flat():
    shown = faces.without_face(view())
    cut = faces.find_cut(view(), faces.body_mask(view()))
    x, y, z = np.nonzero(shown.ct > -500)
    plane = cut.at + cut.turn * (5.0 * x - cut.middle) + cut.tilt * (5.0 * z - cut.centre)
    assert (5.0 * y >= plane)[5.0 * z >= cut.lowest].all()
    for value in (cut.turn, cut.tilt):
        assert value / faces.SLOPE_STEP == pytest.approx(round(value / faces.SLOPE_STEP), abs=1e-6)


def test_neck_and_back_of_the_head_stay():
    case = view()
    shown = faces.without_face(case)
    z = body().canonical[2][near(-150, 250)]
    np.testing.assert_array_equal(shown.ct[z < -30], case.ct[z < -30])
    np.testing.assert_array_equal(shown.ct[:, 40:], case.ct[:, 40:])


def test_a_field_of_the_neck_loses_nothing():
    neck = view(top=-15)
    assert faces.without_face(neck) is neck


@pytest.mark.skipif(not STS.exists(), reason="the sarcoma scans are not there")
@pytest.mark.parametrize("patient", ["STS_002", "STS_019", "STS_042"])
def test_a_limb_loses_nothing(patient):
    pet, ct = (volume.read_scan(STS / patient / f"{name}_image.nii.gz", patient=patient) for name in ("PET", "CT"))
    grid = volume.study_grid(pet, ct, 2.5, (128, 128), 350.0)
    suv = volume.to_array(volume.resample(pet, grid, outside=0.0))
    hu = volume.to_array(volume.resample(ct, grid, outside=-1000.0))
    empty = np.zeros(suv.shape, np.uint8)
    limb = ViewCase(patient, suv, empty, empty, grid.spacing_mm, hu)
    assert faces.without_face(limb) is limb


@pytest.mark.parametrize("arms", ["raised", "crossed"])
def test_raised_arms_do_not_hide_the_face(arms):
    field = whole_body(make_patient("main", 0, 3), 700.0, arms, above_mm=150)
    grid = volume.study_grid(field.pet, field.ct, 5.0, (64, 64), 350.0)
    suv = volume.to_array(volume.resample(field.pet, grid, outside=0.0))
    hu = volume.to_array(volume.resample(field.ct, grid, outside=-1000.0))
    empty = np.zeros(suv.shape, np.uint8)
    case = ViewCase("p1", suv, empty, empty, SPACING_MM, hu)
    shown = faces.without_face(case)
    from_vertex = (field.vertex_mm - grid.origin_mm[2]) / 5  # in slices
    face = slice(round(from_vertex - 210 / 5), round(from_vertex - 100 / 5))
    before, after = ((one.ct[22:42, :, face] > -500).argmax(1) * 5.0 for one in (case, shown))
    assert (after - before).min() >= 15  # also at the sides of the nose
    assert np.median(after - before) >= 30


def test_a_ct_that_was_kept_within_a_window_is_enough():
    case = view(top=60)
    shown = faces.without_face(replace(case, ct=np.clip(case.ct, -150, 150)))
    assert shown.pet[face_of(top=60)].max() == 0


def test_a_lesion_of_the_tongue_stays_with_its_surroundings_but_not_the_lips():
    case = view()
    x, y, z = body().canonical[:, *near(-150, 250)]
    lesion = (np.abs(x) < 10) & (np.abs(y + 58) < 10) & (np.abs(z - 28) < 10)
    case.reference[lesion] = PRIMARY
    shown = faces.without_face(case)
    np.testing.assert_array_equal(shown.pet[lesion], case.pet[lesion])
    around = (np.abs(x - 14) < 3) & (np.abs(y + 58) < 5) & (np.abs(z - 28) < 5)
    np.testing.assert_array_equal(shown.ct[around], case.ct[around])
    assert shown.pet[face_of()].max() == 0


def test_finer_images_are_cut_at_the_same_place():
    coarse = view()
    fine = replace(coarse, ct=coarse.ct.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(faces.without_face(fine).ct[::2, ::2], faces.without_face(coarse).ct)


def test_a_field_without_a_body_is_left_alone():
    empty = view()
    empty = replace(empty, ct=np.full_like(empty.ct, -1000), pet=np.zeros_like(empty.pet))
    assert faces.without_face(empty) is empty
    assert faces.without_face(alone := replace(empty, ct=None)) is alone

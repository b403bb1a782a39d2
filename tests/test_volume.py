import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mtvlib import volume
from mtvlib.errors import InputError
from mtvlib.phantom import make_patient
from mtvlib.volume import (
    AxialCrop,
    Grid,
    axial_crop,
    read_image,
    resample,
    resample_labels,
    study_grid,
    to_array,
    to_image,
    write_image,
)
from tests.whole_body import VOXEL_MM, vertex_mm, whole_body

AFFINE = np.diag([-2.0, -3.0, 4.0, 1.0])  # RAS; identity direction in LPS
OBLIQUE = tuple(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.4).GetMatrix())


def random_array(shape=(4, 5, 6), dtype=np.float32):
    return np.random.default_rng(0).uniform(0, 100, shape).astype(dtype)


# --- geometry


def test_grid_of_two_by_two_voxels_on_paper():
    # Voxels 2 mm wide, axes turned by half a turn about z: x and y fall with the index.
    grid = Grid((2, 2, 1), (2.0, 2.0, 5.0), (10.0, 10.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    assert grid.to_mm(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])).tolist() == [[10, 10, 0], [8, 10, 0], [10, 8, 0]]
    low, high = grid.box_mm()
    assert low.tolist() == [7, 7, -2.5]
    assert high.tolist() == [11, 11, 2.5]
    assert grid.contains(np.array([[7.1, 10.9, 2.4], [6.9, 10, 0], [10, 11.1, 0]])).tolist() == [True, False, False]
    assert grid.voxel_ml == pytest.approx(0.02)


def test_grid_agrees_with_simpleitk():
    grid = Grid((4, 5, 6), (2.0, 3.0, 4.0), (10.0, -20.0, 30.0), OBLIQUE)
    image = to_image(random_array(), grid)
    assert Grid.of(image) == grid
    index = (1.5, 2.25, 3.0)
    assert grid.to_mm(np.array([index]))[0] == pytest.approx(image.TransformContinuousIndexToPhysicalPoint(index))
    assert grid.to_indices(grid.to_mm(np.array([index])))[0] == pytest.approx(index)
    assert Grid.of(image[:, :, 2:5]).origin_mm == pytest.approx(grid.slab(2, 5).origin_mm)


def test_arrays_are_x_y_z():
    array = random_array()
    image = to_image(array, Grid(array.shape, (1.0,) * 3, (0.0,) * 3))
    assert image.GetSize() == (4, 5, 6)
    assert image[3, 1, 2] == array[3, 1, 2]
    assert np.array_equal(to_array(image), array)


def test_grids_a_thousandth_of_a_millimetre_apart_are_the_same():
    grid = Grid((10, 10, 10), (2.5,) * 3, (0.0,) * 3)
    near = Grid((10, 10, 10), (2.5,) * 3, (0.0009, 0.0, 0.0))
    # Spacing 0.0002 mm wider: the last of 10 voxels lies 0.0018 mm off, though spacings agree to 1e-3.
    stretched = Grid((10, 10, 10), (2.5002, 2.5, 2.5), (0.0,) * 3)
    assert volume.same_grid(grid, near)
    assert not volume.same_grid(grid, stretched)
    assert not volume.same_grid(grid, Grid((10, 10, 11), (2.5,) * 3, (0.0,) * 3))
    with pytest.raises(
        InputError, match=r"0.0018 mm apart.*\(2.5, 2.5, 2.5\) mm.*\(2.5002, 2.5, 2.5\) mm.*Remedy"
    ) as error:
        volume.check_same_grid(grid, stretched, patient="P1", file="p.nii.gz")
    assert (error.value.patient, error.value.file) == ("P1", "p.nii.gz")


# --- files


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_round_trip_and_simpleitk_and_nibabel_read_the_same(tmp_path, codes, suffix):
    axes = dict(zip("RASLPI", np.vstack([np.eye(3), -np.eye(3)]), strict=True))
    affine = nib.affines.from_matvec(np.column_stack([axes[code] for code in codes]) * (2, 3, 4), (11, -7, 5))
    nib.save(nib.Nifti1Image(random_array(), affine), tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    other = sitk.ReadImage(tmp_path / f"a{suffix}")
    assert volume.same_grid(image, other)
    assert np.array_equal(to_array(image), to_array(other))
    write_image(image, tmp_path / f"b{suffix}")
    again = nib.load(tmp_path / f"b{suffix}")
    assert np.allclose(again.affine, affine)
    assert nib.aff2axcodes(again.affine) == tuple(codes)
    assert np.array_equal(again.get_fdata(), random_array().astype(float))
    assert volume.same_grid(sitk.ReadImage(tmp_path / f"b{suffix}"), image)


def test_oblique_image_survives_a_round_trip(tmp_path):
    image = to_image(random_array(), Grid((4, 5, 6), (2.0, 3.0, 4.0), (10.0, -20.0, 30.0), OBLIQUE))
    write_image(image, tmp_path / "a.nii")
    assert volume.same_grid(read_image(tmp_path / "a.nii"), image)


def test_written_files_are_the_same_each_time(tmp_path):
    image = to_image(random_array(), Grid((4, 5, 6), (1.0,) * 3, (0.0,) * 3))
    write_image(image, tmp_path / "a.nii.gz")
    write_image(image, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_scaled_and_big_endian_voxels(tmp_path):
    scaled = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), AFFINE)
    scaled.header.set_slope_inter(0.5, -10)
    nib.save(scaled, tmp_path / "scaled.nii")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(random_array(dtype=">i2"), AFFINE, header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == bytes([0, 0, 1, 92])
    raw = np.asarray(nib.load(tmp_path / "scaled.nii").dataobj)
    assert np.array_equal(to_array(read_image(tmp_path / "scaled.nii")), raw.astype(np.float32))
    big = read_image(tmp_path / "big.nii")
    assert big.GetPixelID() == sitk.sitkInt16
    assert np.array_equal(to_array(big), random_array(dtype=np.int16))


def test_nifti2_and_a_fourth_axis_of_one_are_read(tmp_path):
    nib.save(nib.Nifti2Image(random_array((4, 5, 6, 1)), AFFINE), tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz").GetSize() == (4, 5, 6)


def saved(path, array=None, affine=AFFINE, **header):
    """A sound NIfTI file, but for these fields of its header."""
    image = nib.Nifti1Image(random_array() if array is None else array, affine)
    image.set_qform(affine if "qform" not in header else header.pop("qform"), code=1)
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    fields = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        fields[name] = value
    raw[:348] = fields.binaryblock
    path.write_bytes(raw)
    return path


def with_nan():
    array = random_array()
    array[1, 2, 3] = np.nan
    return array


SHEARED = AFFINE + np.array([[0, 0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4])
SHEARED_PIXDIM = [1, 2, np.hypot(3, 0.5), 4, 0, 0, 0, 0]
SHIFTED = AFFINE + np.array([[0, 0, 0, 5.0], [0] * 4, [0] * 4, [0] * 4])

BAD = {
    "nan": ({"array": with_nan()}, "NaN or infinity", "1 of 120 voxels"),
    "infinity": ({"array": np.full((2, 2, 2), np.inf, np.float32)}, "NaN or infinity", "8 of 8"),
    "4D": ({"array": random_array((4, 5, 6, 2))}, "three-dimensional", "(4, 5, 6, 2)"),
    "2D": ({"array": random_array((4, 5))}, "three-dimensional", "(4, 5)"),
    "no voxels": ({"dim": [3, 0, 5, 6, 1, 1, 1, 1]}, "empty", "(0, 5, 6)"),
    "negative size": ({"dim": [3, -4, 5, 6, 1, 1, 1, 1]}, "empty", "(-4, 5, 6)"),
    "larger than the file": ({"dim": [3, 32000, 32000, 32000, 1, 1, 1, 1]}, "truncated", "832 of"),
    "complex": ({"array": random_array(dtype=np.complex64)}, "one real number", "complex64"),
    "unknown type": ({"datatype": 999}, "unknown data type", "999"),
    "zero spacing": ({"pixdim": [1, 0, 3, 4, 0, 0, 0, 0]}, "spacing must lie within 0.1 and 20 mm", "(0.0, 3.0, 4.0)"),
    "negative spacing": ({"pixdim": [1, 2, -3, 4, 0, 0, 0, 0]}, "spacing", "(2.0, -3.0, 4.0)"),
    "spacing NaN": ({"pixdim": [1, 2, np.nan, 4, 0, 0, 0, 0]}, "spacing", "nan"),
    "spacing in metres": ({"pixdim": [1, 2e-3, 3e-3, 4e-3, 0, 0, 0, 0]}, "spacing", "(0.002"),
    "unit metre": ({"xyzt_units": 1}, "in mm", "xyzt_units 1"),
    "pixdim against sform": ({"pixdim": [1, 2, 3, 5, 0, 0, 0, 0]}, "contradicts itself", None),
    "sheared": ({"affine": SHEARED, "qform": None, "pixdim": SHEARED_PIXDIM}, "right angles", "direction"),
    "qform against sform": ({"qform": SHIFTED}, "disagree by up to 5 mm", "qform"),
    "no orientation": ({"qform_code": 0, "sform_code": 0}, "neither qform nor sform", None),
    "sform NaN": ({"srow_y": [0, np.nan, 0, 0], "qform_code": 0}, "NaN or infinity", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_refused_with_patient_file_value_and_remedy(tmp_path, name):
    changes, problem, value = BAD[name]
    path = saved(tmp_path / "bad.nii", **changes)
    with pytest.raises(InputError) as error:
        read_image(path, patient="P1")
    assert problem in error.value.problem
    assert (error.value.patient, error.value.file) == ("P1", path)
    assert value is None or value in str(error.value.value)
    assert error.value.remedy


def test_a_gzip_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    """40 MB of zeros behind a small image: 40 kB on disk."""
    monkeypatch.setattr(volume, "_SLACK_BYTES", 2**20)
    path = tmp_path / "a.nii.gz"
    write_image(to_image(random_array(), Grid((4, 5, 6), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))), path)
    plain = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(plain + bytes(1000)))
    read_image(path)  # a little behind the voxels is no harm
    path.write_bytes(gzip.compress(plain + bytes(40 * 2**20)))
    assert path.stat().st_size < 50_000
    with pytest.raises(InputError, match=r"a\.nii\.gz: unpacks to far more"):
        read_image(path)


def test_a_gzip_file_of_several_parts_filled_up_with_zeros_is_read_to_its_end(tmp_path):
    """As parallel gzip and tapes write it; what follows and is no part is refused, as `gzip` does."""
    array = random_array()
    path = tmp_path / "a.nii.gz"
    write_image(to_image(array, Grid((4, 5, 6), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))), path)
    plain = gzip.decompress(path.read_bytes())
    parts = gzip.compress(plain[:500]) + gzip.compress(plain[500:])
    path.write_bytes(parts + bytes(512))
    np.testing.assert_array_equal(to_array(read_image(path)), array)
    path.write_bytes(gzip.compress(plain) + bytes(512))
    np.testing.assert_array_equal(to_array(read_image(path)), array)
    for wrong in (parts + b"more", parts[:-20]):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="truncated or damaged"):
            read_image(path)


def test_truncated_damaged_foreign_and_missing_files_are_refused(tmp_path):
    write_image(to_image(random_array((20, 20, 20)), Grid((20,) * 3, (1.0,) * 3, (0.0,) * 3)), tmp_path / "a.nii.gz")
    packed = (tmp_path / "a.nii.gz").read_bytes()
    plain = gzip.decompress(packed)
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # in gzip's checksum, as if a voxel had changed
    cases = {
        "half.nii.gz": packed[: len(packed) // 2],
        "half.nii": plain[: len(plain) // 2],
        "flipped.nii.gz": bytes(flipped),
        "text.nii": b"hello",
        "empty.nii": b"",
        "empty.nii.gz": b"",
        "text.nii.gz": b"hello",
        "a.mha": plain,
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"truncated|damaged|not a NIfTI"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "absent.nii")
    with pytest.raises(InputError, match="cannot be read"):
        (tmp_path / "folder.nii").mkdir()
        read_image(tmp_path / "folder.nii")


def test_constant_scan_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.full((3, 3, 3), 7, np.int16), AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"same value.*found: 7"):
        volume.read_scan(tmp_path / "a.nii")


def test_labels_are_whole_numbers_of_known_classes(tmp_path):
    for name, values in {"known": [0, 1, 2.0], "unknown": [0, 1, 3], "fraction": [0, 1, 0.5]}.items():
        nib.save(nib.Nifti1Image(np.float32(values).reshape(3, 1, 1), AFFINE), tmp_path / f"{name}.nii")
    labels = volume.read_labels(tmp_path / "known.nii")
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert to_array(labels).ravel().tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"0, 1, 2 only \(found: 3\).*recode"):
        volume.read_labels(tmp_path / "unknown.nii")
    with pytest.raises(InputError, match=r"not fractions \(found: 0.5\).*nearest"):
        volume.read_labels(tmp_path / "fraction.nii")


# --- resampling


def test_linear_interpolation_of_four_by_four_by_hand():
    # Values 10 * row + column on 2 mm voxels; half a voxel further, each is the mean of four neighbours.
    array = np.float32([[[10 * i + j] for j in range(4)] for i in range(4)])
    image = to_image(array, Grid((4, 4, 1), (2.0,) * 3, (0.0,) * 3))
    shifted = to_array(resample(image, Grid((4, 4, 1), (2.0,) * 3, (1.0, 1.0, 0.0)), outside=-7))[..., 0]
    assert shifted[:3, :3].tolist() == [[5.5, 6.5, 7.5], [15.5, 16.5, 17.5], [25.5, 26.5, 27.5]]
    beyond = to_array(resample(image, Grid((4, 4, 1), (2.0,) * 3, (3.0, 0.0, 0.0)), outside=-7))[..., 0]
    assert beyond[1].tolist() == [25, 26, 27, 28]
    assert beyond[3].tolist() == [-7] * 4


def test_linear_interpolation_agrees_with_scipy_on_an_oblique_image():
    image = to_image(random_array((20, 18, 16)), Grid((20, 18, 16), (2.0, 3.0, 4.0), (-5.0, 8.0, -9.0), OBLIQUE))
    grid = Grid((9, 8, 7), (2.5,) * 3, tuple(Grid.of(image).to_mm(np.array([[8.0, 7, 6]]))[0]))
    indices = Grid.of(image).to_indices(grid.to_mm(np.indices(grid.size).reshape(3, -1).T))
    expected = ndimage.map_coordinates(to_array(image), indices.T, order=1).reshape(grid.size)
    inside = Grid.of(image).contains(grid.to_mm(np.indices(grid.size).reshape(3, -1).T)).reshape(grid.size)
    assert inside.mean() > 0.9
    found = to_array(resample(image, grid, outside=-1))
    core = ndimage.binary_erosion(inside)
    assert np.allclose(found[core], expected[core], atol=1e-3)


def ball(grid, centre_mm, radius_mm):
    points = grid.to_mm(np.indices(grid.size).reshape(3, -1).T)
    return (np.linalg.norm(points - centre_mm, axis=1) <= radius_mm).reshape(grid.size)


def test_resampled_labels_keep_the_volume_of_a_ball():
    fine = Grid((100, 100, 70), (0.98, 0.98, 1.5), (0.0,) * 3)
    labels = np.where(ball(fine, (40.3, 41.1, 50.7), 18.0), 1, 0) + 2 * ball(fine, (72.2, 70.9, 78.4), 14.0)
    image = to_image(labels.astype(np.uint8), fine)
    coarse = Grid((40, 40, 44), (2.5,) * 3, (0.4, -0.3, 0.9))
    found = to_array(resample_labels(image, coarse))
    for number in (1, 2):
        before = (labels == number).sum() * fine.voxel_ml
        assert (found == number).sum() * coarse.voxel_ml == pytest.approx(before, rel=0.02)


def test_labels_on_their_own_grid_stay():
    labels = np.random.default_rng(1).integers(0, 3, (6, 7, 8)).astype(np.uint8)
    image = to_image(labels, Grid(labels.shape, (2.0, 3.0, 4.0), (1.0, 2.0, 3.0), OBLIQUE))
    assert np.array_equal(to_array(resample_labels(image, Grid.of(image))), labels)
    assert to_array(resample_labels(image * 0, Grid.of(image))).max() == 0


def test_background_and_classes_compete_by_their_shares():
    labels = to_image(np.uint8([0, 1, 2, 2]).reshape(4, 1, 1), Grid((4, 1, 1), (4.0, 1.0, 1.0), (0.0,) * 3))
    row = Grid((9, 1, 1), (1.0,) * 3, (2.0, 0.0, 0.0))
    # x = 2: half background, half 1: a tie, so background; x = 6: half 1, half 2: a tie, so 1; x = 7: three quarters 2.
    assert to_array(resample_labels(labels, row)).ravel().tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_probabilities_are_interpolated_before_the_class_is_decided():
    grid, target = Grid((2, 1, 1), (4.0, 1.0, 1.0), (0.0,) * 3), Grid((5, 1, 1), (1.0,) * 3, (0.0,) * 3)
    probabilities = np.float32([[0.9, 0.4], [0.1, 0.6]]).reshape(2, 2, 1, 1)
    # Class 1 wins where 0.1 + 0.5 x / 4 > 0.5, so from x = 3.2 mm on; nearest neighbour would say from 2 mm on.
    labels = volume.probabilities_to_labels(probabilities, grid, target)
    assert to_array(labels).ravel().tolist() == [0, 0, 0, 0, 1]


def test_probabilities_slab_by_slab_are_as_at_once_and_background_outside(monkeypatch):
    grid = Grid((6, 6, 6), (2.5,) * 3, (0.0,) * 3)
    probabilities = np.random.default_rng(2).dirichlet((1, 1, 1), grid.size).transpose(3, 0, 1, 2)
    target = Grid((14, 14, 20), (1.0, 1.0, 0.8), (0.5, 0.5, -8.0), OBLIQUE)
    at_once = to_array(volume.probabilities_to_labels(probabilities, grid, target))
    monkeypatch.setattr(volume, "_SLAB", 3)
    assert np.array_equal(to_array(volume.probabilities_to_labels(probabilities, grid, target)), at_once)
    outside = ~grid.contains(target.to_mm(np.indices(target.size).reshape(3, -1).T)).reshape(target.size)
    assert outside.any()
    assert set(np.unique(at_once)) == {0, 1, 2}
    assert at_once[outside].max() == 0


@pytest.mark.parametrize("voxel", [(3, 3, 3), (0, 5, 2), (0, 0, 0), None])
def test_labels_are_sought_around_lesions_only_and_none_is_lost(voxel):
    """A lesion of few voxels in the middle, at an edge or in a corner, against the map of every voxel of the target."""
    grid = Grid((6, 6, 6), (2.5,) * 3, (0.0,) * 3)
    probabilities = np.zeros((3, 6, 6, 6), np.float32)
    if voxel is not None:
        probabilities[(1, *voxel)] = 0.9
    probabilities[0] = 1 - probabilities[1]
    target = Grid((46, 45, 44), (0.7, 0.8, 0.9), (-10.0, -9.0, -12.0), OBLIQUE)
    everywhere = [to_array(volume.resample(to_image(one, grid), target, outside=0.0)) for one in probabilities]
    found = to_array(volume.probabilities_to_labels(probabilities, grid, target))
    assert np.array_equal(found, np.argmax(everywhere, 0))
    assert (found.max() == 1) == (voxel is not None)


# --- the study's grid


def pet_image(size=(20, 24, 30), spacing=(4.0, 4.0, 3.0), origin=(-30.0, 10.0, 5.0)):
    return to_image(random_array(size), Grid(size, spacing, origin))


def test_study_grid_lies_central_in_plane_and_covers_the_field_axially():
    grid = study_grid(pet_image(), None, 2.5, (128, 128), 350.0)
    assert grid.size == (128, 128, 36)  # 90 mm
    assert grid.direction == volume.Identity
    low, high = grid.box_mm()
    assert ((low + high) / 2).tolist() == pytest.approx([-30 + 4 * 9.5, 10 + 4 * 11.5, 5 + 3 * 14.5])
    assert (high - low).tolist() == pytest.approx([320, 320, 90])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", itertools.product([False, True], repeat=3))
def test_study_grid_and_content_do_not_depend_on_how_the_pet_is_stored(order, flips):
    pet = pet_image()
    stored = sitk.Flip(sitk.PermuteAxes(pet, order), flips, flipAboutOrigin=False)
    assert (Grid.of(stored).direction != volume.Identity) == (any(flips) or order != (0, 1, 2))
    grid = study_grid(pet, None, 2.5, (32, 32), 350.0)
    assert volume.same_grid(study_grid(stored, None, 2.5, (32, 32), 350.0), grid)
    assert np.allclose(to_array(resample(stored, grid, outside=0)), to_array(resample(pet, grid, outside=0)), atol=1e-3)


def simple_body(air, tissue):
    """A patient from the legs to the raised arms, the head at z 1400-1640 mm, on a couch; 1 cm voxels."""
    grid = Grid((50, 30, 200), (10.0,) * 3, (-250.0, -150.0, 0.0))
    x, y, z = grid.to_mm(np.indices(grid.size).reshape(3, -1).T).T.reshape(3, *grid.size)
    trunk = (x / 180) ** 2 + (y / 110) ** 2 < 1
    head = (x / 78) ** 2 + (y / 95) ** 2 + ((z - 1520) / 120) ** 2 < 1
    arms = ((np.abs(x) - 120) ** 2 + y**2 < 40**2) & (z > 1350) & (z < 1900)
    array = np.where((trunk & (z < 1400)) | head | arms, tissue, air).astype(np.float32)
    array[(np.abs(y - 125) < 6) & (np.abs(x) < 220)] = tissue  # couch, beyond the vertex too
    return to_image(array, grid)


@pytest.mark.parametrize("with_ct", [True, False])
@pytest.mark.parametrize("upside_down", [True, False])
def test_long_field_is_cut_from_the_vertex_down(with_ct, upside_down):
    pet, ct = simple_body(0.0, 1.0), simple_body(-1000.0, 40.0)
    if upside_down:  # stored from the feet up or from the head down: the same place in the patient
        pet, ct = (sitk.Flip(image, (False, False, True), flipAboutOrigin=False) for image in (pet, ct))
    low, high = study_grid(pet, ct if with_ct else None, 2.5, (128, 128), 350.0).box_mm()
    assert 1640 <= high[2] <= 1660
    assert high[2] - low[2] == pytest.approx(350)


# --- the head in phantoms whose field is lengthened to a whole body


@pytest.fixture(scope="module")
def heads():
    """Six phantoms whose field holds the whole head."""
    patients = [make_patient("main", index, 7) for index in (0, 3, 9, 12, 15, 21)]
    for patient in patients:
        reach = Grid.of(patient.pet).box_mm()[1][2] - vertex_mm(patient.ct)
        assert reach > 0, patient.name
    return patients


def cropped(body, with_ct=True):
    """The crop of a whole body, and by how much its top lies above the vertex, mm."""
    crop = axial_crop(body.pet, body.ct if with_ct else None, 350.0)
    return crop, crop.top_mm - body.vertex_mm


def loses_lesions(body, crop):
    heights = Grid.of(body.reference).to_mm(np.argwhere(to_array(body.reference)))[:, 2]
    return bool(((heights < crop.bottom_mm) | (heights > crop.top_mm)).any())


FIELDS = [(200, "down"), (300, "down"), (450, "down"), (1000, "down"), (1000, "raised"), (1800, "raised")]


@pytest.mark.parametrize(("length", "arms"), FIELDS)
def test_the_head_and_neck_of_any_field_are_kept(heads, length, arms):
    for patient in heads[: 6 if length < 1800 else 2]:
        body = whole_body(patient, float(length), arms, above_mm=0.0 if arms == "down" else 150.0)
        low, high = Grid.of(body.pet).box_mm()
        crop, above = cropped(body)
        assert not loses_lesions(body, crop), patient.name
        assert crop.top_mm - crop.bottom_mm == pytest.approx(min(350.0, high[2] - low[2])), patient.name
        if length <= 350:
            assert crop == AxialCrop(low[2], high[2])
        else:
            assert min(0, high[2] - body.vertex_mm) - VOXEL_MM <= above <= 30, patient.name
            assert crop.brain_mm[0] < body.vertex_mm - 100 < crop.brain_mm[1], patient.name
            assert crop.doubts == (), patient.name


def test_arms_above_the_head_do_not_draw_the_crop_to_them(heads):
    body = whole_body(heads[1], 1000.0, "crossed", above_mm=150.0)
    for with_ct in (True, False):
        crop, above = cropped(body, with_ct)
        assert 0 <= above <= 30
        assert "by the brain, which is taken, but at" in crop.doubts[0]


@pytest.mark.parametrize("flips", [(False, False, True), (True, True, True)])
def test_a_field_stored_feet_first_is_the_same_patient(heads, flips):
    body = whole_body(heads[0], 1000.0)
    pet, ct = (sitk.Flip(image, flips, flipAboutOrigin=False) for image in (body.pet, body.ct))
    assert Grid.of(pet).direction[8] == -1
    crop, stored = axial_crop(body.pet, body.ct, 350.0), axial_crop(pet, ct, 350.0)
    assert (stored.top_mm, stored.bottom_mm) == pytest.approx((crop.top_mm, crop.bottom_mm), abs=0.5)
    assert stored.doubts == ()


def test_head_and_feet_exchanged_in_the_header_is_told_and_the_head_is_kept(heads):
    body = whole_body(heads[0], 1000.0)
    pet, ct = (to_image(to_array(image)[:, :, ::-1], Grid.of(image)) for image in (body.pet, body.ct))
    crop = axial_crop(pet, ct, 350.0)
    assert "head and feet may be exchanged" in crop.doubts[0]
    low, high = Grid.of(pet).box_mm()
    mirrored_vertex = low[2] + high[2] - body.vertex_mm
    assert -30 <= crop.bottom_mm - mirrored_vertex <= VOXEL_MM
    assert crop.top_mm - crop.bottom_mm == pytest.approx(350)


@pytest.mark.parametrize(("missing_mm", "brain"), [(60.0, True), (220.0, False)])
def test_a_field_that_ends_within_the_head_or_below_it_is_cut_at_its_end_and_told(heads, missing_mm, brain):
    for patient in heads[:2]:
        body = whole_body(patient, 1000.0, below_vertex_mm=missing_mm)
        crop, above = cropped(body)
        assert above == pytest.approx(-missing_mm)
        assert (crop.brain_mm is not None) == brain
        assert "the field ends within the head" in crop.doubts
        assert ("no brain was found in the PET" in crop.doubts) != brain


def hot_ellipsoid(body, distance_mm, radii_mm, suv, x_mm=0.0):
    """The PET with more uptake so far below the vertex, if the field reaches there."""
    grid, array = Grid.of(body.pet), to_array(body.pet)
    low, high = grid.box_mm()
    centre = np.array([*(low + high)[:2] / 2 + (x_mm, 0), body.vertex_mm - distance_mm])
    axes = [grid.origin_mm[i] + VOXEL_MM * np.arange(grid.size[i]) - centre[i] for i in range(3)]
    x, y, z = ((axis / radius) ** 2 for axis, radius in zip(axes, radii_mm, strict=True))
    array[x[:, None, None] + y[None, :, None] + z < 1] = suv
    return to_image(array, grid)


CONFUSING = {
    "a full bladder": (880, (75, 65, 65), 30.0, 0.0),
    "a hot liver": (610, (110, 95, 80), 6.0, -60.0),
    "a large heart": (490, (60, 60, 60), 15.0, 40.0),
    "a tumour of the neck": (260, (45, 45, 45), 20.0, 50.0),
}


@pytest.mark.parametrize("name", CONFUSING)
def test_nothing_else_that_is_hot_is_taken_for_the_brain(heads, name):
    body, without = whole_body(heads[1], 1000.0), whole_body(heads[1], 900.0, below_vertex_mm=220.0)
    crop = axial_crop(hot_ellipsoid(body, *CONFUSING[name]), body.ct, 350.0)
    assert crop.brain_mm == pytest.approx(axial_crop(body.pet, body.ct, 350.0).brain_mm, abs=10)
    assert crop.doubts == ()
    assert axial_crop(hot_ellipsoid(without, *CONFUSING[name]), without.ct, 350.0).brain_mm is None


def test_long_field_without_a_head_is_cut_at_its_end():
    empty = to_image(np.zeros((20, 20, 200), np.float32), Grid((20, 20, 200), (4.0,) * 3, (0.0,) * 3))
    assert study_grid(empty, None, 2.5, (32, 32), 350.0).box_mm()[1][2] == pytest.approx(798)


# --- real data


def test_real_labels_keep_their_volume(shared):
    files = sorted((shared / "data/sts/nifti").glob("*/CT_mask.nii.gz"))
    assert len(files) == 5
    for file in files:
        mask, pet = volume.read_labels(file), volume.read_scan(file.with_name("PET_image.nii.gz"))
        grid = study_grid(pet, None, 2.5, (128, 128), 350.0)
        after = to_array(resample_labels(mask, grid)).sum() * grid.voxel_ml
        assert after == pytest.approx(to_array(mask).sum() * Grid.of(mask).voxel_ml, rel=0.01)

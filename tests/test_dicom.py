"""Series to images: order and geometry against SimpleITK's own reader and against fields known at every point."""

import math
import os

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless, generate_uid
from scipy import ndimage

from mtvlib import dicom
from mtvlib.dicom import files_below, pet_series, read_ct, read_file, read_pet, read_pet_suv, read_series, stack
from mtvlib.errors import Refusal
from mtvlib.volume import Grid, read_image, same_grid, to_array
from tests import dicom_builder

SIZE, SPACING = (12, 10, 8), (4.0, 3.5, 3.0)
SUV_TAGS = {"Units": "GML"}


def rotation(x=0.0, y=0.0, z=0.0):
    """Direction cosines (row-major) of a rotation about x, y and z, degrees."""
    cx, cy, cz = (math.cos(math.radians(angle)) for angle in (x, y, z))
    sx, sy, sz = (math.sin(math.radians(angle)) for angle in (x, y, z))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


DIRECTIONS = {
    "head first supine": np.eye(3),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "slices from head to feet": np.diag([1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": rotation(11, -7, 23),
}


def linear(points):
    """A field that linear interpolation keeps exactly, SUV 0.8 to 2 over the series used here."""
    return 1.4 + 0.004 * points[:, 0] - 0.003 * points[:, 1] + 0.0035 * (points[:, 2] - 110)


def field_on(grid, field=linear):
    return field(grid.to_mm(np.indices(grid.size).reshape(3, -1).T)).reshape(grid.size)


def grid_of(direction, size=SIZE, origin=(-20.0, -15.0, 100.0)):
    return Grid(size, SPACING, origin, tuple(np.ravel(direction).tolist()))


def write(folder, grid, **tags):
    """A PET in SUV whose values are the linear field at each voxel."""
    return dicom_builder.series(
        folder,
        size=grid.size,
        spacing_mm=grid.spacing_mm,
        origin=grid.origin_mm,
        direction=grid.direction,
        values=field_on(grid),
        **{**SUV_TAGS, **tags},
    )


def check_field(image, atol=2e-4, inside=slice(None)):
    grid = Grid.of(image)
    np.testing.assert_allclose(to_array(image)[inside], field_on(grid)[inside], atol=atol)


# --- order and orientation


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_orientation_is_read_as_it_lies_and_as_simpleitk_reads_it(tmp_path, name):
    write(tmp_path, grid_of(DIRECTIONS[name]))
    image = read_pet_suv(tmp_path)
    check_field(image)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    other = reader.Execute()  # ITK orders along its own normal, which may be the opposite one
    resampled = sitk.Resample(sitk.Cast(other, sitk.sitkFloat32), image, sitk.Transform(), sitk.sitkLinear)
    np.testing.assert_allclose(to_array(image), to_array(resampled), atol=1e-3)


def test_index_axes_run_along_rows_columns_and_their_normal(tmp_path):
    direction = DIRECTIONS["slices from head to feet"]
    write(tmp_path, grid_of(direction))
    image = read_pet_suv(tmp_path)
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert image.GetSpacing() == pytest.approx(SPACING)
    assert image.GetOrigin() == pytest.approx((-20.0, -15.0, 100.0 - 7 * 3.0))


def test_the_real_series_equals_its_published_nifti(shared):
    """PET, CT and their geometry of STS_002, which others converted."""
    data = shared / "data" / "sts"
    pet, ct = (read_image(data / "nifti" / "STS_002" / f"{name}_image.nii.gz") for name in ("PET", "CT"))
    found = read_pet_suv(data / "dicom" / "STS_002" / "PET")
    assert same_grid(found, pet)
    np.testing.assert_allclose(to_array(found), to_array(pet), rtol=1e-6)
    series = [one for one in read_series(files_below(data / "dicom" / "STS_002" / "CT")) if one.modality == "CT"]
    found = read_ct(series[0]).image
    assert same_grid(found, ct)
    np.testing.assert_array_equal(to_array(found), to_array(ct))


# --- uneven, missing, double and sheared slices


def move_slices(paths, positions_along, direction=DIRECTIONS["head first supine"], shift_mm=lambda along: (0, 0, 0)):
    """Put the slices at other places along their normal, values by the field there; `shift_mm`: shear."""
    grid = grid_of(direction)
    for path, along in zip(paths, positions_along, strict=True):
        dataset = pydicom.dcmread(path)
        origin = np.array(grid.origin_mm) + along * np.reshape(direction, (3, 3))[:, 2] + shift_mm(along)
        plane = Grid((*SIZE[:2], 1), SPACING, tuple(origin), grid.direction)
        values = field_on(plane)[..., 0]
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in origin]
        dataset.RescaleSlope = 1e-4
        dataset.PixelData = np.round(values / 1e-4).astype("<i2").T.tobytes()
        dataset.save_as(path)


@pytest.mark.parametrize(
    ("along", "flag"),
    [
        ([0, 3, 6, 9.4, 12, 15.2, 18, 21], "uneven_slices"),
        ([0, 3, 6, 9, 15, 18, 21, 24], "missing_slices"),
        ([0, 3, 6, 9, 12, 15, 18, 21], None),
        ([0, 3.003, 6.002, 8.999, 12.001, 15, 18.004, 21], None),  # a header's rounding
    ],
)
def test_uneven_slices_are_interpolated_and_flagged(tmp_path, along, flag):
    paths = write(tmp_path, grid_of(np.eye(3)))
    move_slices(paths, along)
    read = read_pet(pet_series(tmp_path))
    assert [one.code for one in read.flags] == ([flag] if flag else [])
    assert read.image.GetSpacing()[2] == pytest.approx(3.0, abs=1e-3)
    assert read.image.GetSize()[2] == round(along[-1] / 3) + 1
    check_field(read.image, atol=3e-4)


def test_a_large_gap_is_refused_with_its_size(tmp_path):
    move_slices(write(tmp_path, grid_of(np.eye(3))), [0, 3, 6, 9, 21, 24, 27, 30])
    with pytest.raises(Refusal, match=r"12\.0 mm.*3\.0 mm") as error:
        read_pet_suv(tmp_path)
    assert error.value.code == "slice_gap"


@pytest.mark.parametrize("name", ["head first supine", "oblique"])
def test_a_gantry_tilt_is_resampled_onto_right_angles(tmp_path, name):
    direction = DIRECTIONS[name]
    paths = write(tmp_path, grid_of(direction))
    column = np.reshape(direction, (3, 3))[:, 1]
    tilt = math.tan(math.radians(15))
    along = [3.0 * k for k in range(8)]
    move_slices(paths, along, direction, lambda place: place * tilt * column)
    read = read_pet(pet_series(tmp_path))
    assert [one.code for one in read.flags] == ["tilted"]
    array, expected = to_array(read.image), field_on(Grid.of(read.image))
    covered = ndimage.binary_erosion(array > 0.5, np.ones((1, 3, 1)))  # its edge mixes with nothing
    assert covered.sum() > 0.6 * np.prod(SIZE)
    np.testing.assert_allclose(array[covered], expected[covered], atol=1e-3)
    assert read.image.GetSize()[1] == SIZE[1] + 2  # 21 mm x tan 15 degrees are 1.6 voxels of 3.5 mm


def test_copies_of_slices_are_dropped_and_other_images_at_one_place_refused(tmp_path):
    paths = write(tmp_path, grid_of(np.eye(3)))
    twin = pydicom.dcmread(paths[3])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    twin.save_as(tmp_path / "twin.dcm")
    read = read_pet(pet_series(tmp_path))
    assert [one.code for one in read.flags] == ["duplicate_slices"]
    check_field(read.image)
    twin.PixelData = bytes(len(twin.PixelData))
    twin.save_as(tmp_path / "twin.dcm")
    with pytest.raises(Refusal) as error:
        read_pet_suv(tmp_path)
    assert error.value.code == "several_images_a_slice"


def change_one(paths, number=0, **tags):
    dataset = pydicom.dcmread(paths[number])
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(paths[number])


BROKEN = {
    "several_frames_of_reference": {"FrameOfReferenceUID": lambda k: dicom_builder.FRAME_UID + f".{k // 4}"},
    "mixed_geometry": {"ImageOrientationPatient": lambda k: [1, 0, 0, 0, 1, 0] if k % 2 else [0, 1, 0, 0, 0, -1]},
    "no_geometry": {"ImagePositionPatient": None},
    "orientation": {"ImageOrientationPatient": [1, 0, 0, 0.3, 0.95, 0]},
    "no_rescale_slope": {"RescaleSlope": None},
    "no_volume": {"ImageType": ["DERIVED", "SECONDARY", "MIP"]},
    "dynamic": {"SeriesType": ["DYNAMIC", "IMAGE"]},
    "not_attenuation_corrected": {"CorrectedImage": ["DECY"]},
}


@pytest.mark.parametrize("code", BROKEN)
def test_what_makes_no_volume_is_refused_with_its_code(tmp_path, code):
    write(tmp_path, grid_of(np.eye(3)), **BROKEN[code])
    with pytest.raises(Refusal) as error:
        read_pet_suv(tmp_path)
    assert error.value.code == code


def test_a_stray_slice_of_another_geometry_is_left_out(tmp_path):
    paths = write(tmp_path, grid_of(np.eye(3), size=(12, 10, 20)))
    change_one(paths, 0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    read = read_pet(pet_series(tmp_path))
    assert [one.code for one in read.flags] == ["slices_left_out"]
    check_field(read.image)


# --- which series


def test_originals_come_before_derived_copies_and_two_originals_are_not_guessed(tmp_path):
    write(tmp_path / "a", grid_of(np.eye(3)))
    write(tmp_path / "b", grid_of(np.eye(3)), ImageType=["DERIVED", "SECONDARY"])
    write(tmp_path / "mip", grid_of(np.eye(3)), SeriesType=["WHOLE BODY", "REPROJECTION"])
    check_field(read_pet_suv(tmp_path))
    write(tmp_path / "c", grid_of(np.eye(3)))
    with pytest.raises(Refusal) as error:
        read_pet_suv(tmp_path)
    assert error.value.code == "several_pets"


@pytest.mark.parametrize(("make", "code"), [(lambda folder: None, "no_folder"), (os.mkdir, "no_pet")])
def test_a_folder_without_pet_says_so(tmp_path, make, code):
    make(tmp_path / "folder")
    with pytest.raises(Refusal) as error:
        read_pet_suv(tmp_path / "folder")
    assert error.value.code == code


def test_the_ct_of_the_pets_frame_with_most_slices_is_taken(tmp_path):
    for name, slices, frame in (("short", 4, "1.2"), ("long", 9, "1.2"), ("longest", 12, "1.3")):
        dicom_builder.series(
            tmp_path / name, modality="CT", size=(6, 6, slices), FrameOfReferenceUID=frame, SeriesDescription=name
        )
    assert dicom.ct_series(tmp_path, "1.2").header.SeriesDescription == "long"
    with pytest.raises(Refusal) as error:
        dicom.ct_series(tmp_path, "1.4")
    assert error.value.code == "no_ct"


# --- encodings


def gdcm_encode(path, syntax):
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def compress(path, syntax):
    import gdcm

    ways = {
        JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    }
    if syntax in ways:
        return gdcm_encode(path, ways[syntax])
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset.save_as(path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_pixels_are_those_that_were_compressed(tmp_path, syntax):
    paths = dicom_builder.series(tmp_path, modality="CT")
    before = to_array(read_ct(read_series(paths)[0]).image)
    for path in paths:
        compress(path, syntax)
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(to_array(read_ct(read_series(paths)[0]).image), before)


def enhanced_pet(path, grid, slope=0.001):
    """One enhanced multi-frame object whose frames hold the linear field as SUV, stored from the last to the first."""
    dataset = dicom_builder.enhanced(grid, Units=None)
    frames = np.round(field_on(grid) / slope).astype("<i2")
    order = list(range(grid.size[2]))[::-1]
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[k] for k in order]
    del dataset.RescaleSlope, dataset.RescaleIntercept
    units = dicom_builder._item(CodeValue="g/ml{SUVbw}", CodingSchemeDesignator="UCUM", CodeMeaning="SUV")
    mapping = dicom_builder._item(
        RealWorldValueSlope=slope, RealWorldValueIntercept=0.0, MeasurementUnitsCodeSequence=[units]
    )
    dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping]
    dataset.PixelData = np.stack([frames[..., k].T for k in order]).tobytes()
    return dicom_builder.save(dataset, path)


@pytest.mark.parametrize("name", ["head first supine", "oblique"])
def test_an_enhanced_object_is_read_like_a_series(tmp_path, name):
    grid = grid_of(DIRECTIONS[name])
    enhanced_pet(tmp_path / "enhanced.dcm", grid)
    read = read_pet(pet_series(tmp_path))
    assert read.suv.rule == "GML, SUV of body weight"
    assert read.image.GetSize() == SIZE
    check_field(read.image, atol=6e-4)


# --- files that are no images


def test_what_is_no_dicom_is_no_series(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    write(tmp_path / "pet", grid_of(np.eye(3)))
    assert read_file(tmp_path / "notes.txt") is None
    assert read_file(tmp_path / "empty") is None
    check_field(read_pet_suv(tmp_path))


def test_truncated_pixels_are_refused_and_the_file_is_named(tmp_path):
    paths = write(tmp_path, grid_of(np.eye(3)))
    paths[2].write_bytes(paths[2].read_bytes()[:-60])
    with pytest.raises(Refusal, match=paths[2].name) as error:
        read_pet_suv(tmp_path)
    assert error.value.code == "damaged"


def test_a_deflate_bomb_is_refused_before_it_inflates(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "_MOST_BYTES", 2**22)
    dataset = pydicom.dcmread(write(tmp_path / "pet", grid_of(np.eye(3)))[0])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    path = tmp_path / "bomb.dcm"
    dataset.PixelData = bytes(2**23)
    dataset.save_as(path, enforce_file_format=True)
    assert path.stat().st_size < 2**17
    with pytest.raises(Refusal) as error:
        read_file(path)
    assert error.value.code == "too_large"


def test_a_deflated_series_is_read(tmp_path):
    for path in write(tmp_path, grid_of(np.eye(3))):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)
    check_field(read_pet_suv(tmp_path))


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    write(inside, grid_of(np.eye(3)))
    (inside / "link.dcm").symlink_to(write(outside, grid_of(np.eye(3)))[0])
    (inside / "folder").symlink_to(outside, target_is_directory=True)
    (inside / "own.dcm").symlink_to(next(iter(inside.glob("*.dcm"))))
    names = {path.name for path in files_below(inside)}
    assert "own.dcm" in names
    assert len(names) == SIZE[2] + 1


def test_a_stack_knows_its_spacing_from_positions_not_from_the_thickness(tmp_path):
    write(tmp_path, grid_of(np.eye(3)), SliceThickness=5.0)
    assert stack(pet_series(tmp_path)).spacing_mm == pytest.approx(3.0)

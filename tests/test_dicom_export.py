import json
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_builder import FRAME_UID, STUDY_UID, enhanced, headers, series

from mtvlib import lesions
from mtvlib.dicom_export import series_grid, write_rtstruct, write_seg
from mtvlib.errors import InputError, Refusal
from mtvlib.regions import label_map, read_names, region_mask, region_objects_summary
from mtvlib.volume import Grid, read_labels, same_grid, to_array, to_image

NAMES = read_names(None)
SIZE, SPACING, ORIGIN = (24, 20, 16), (2.0, 3.0, 4.0), (-20.0, -15.0, 100.0)
IDENTITY = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
DIRECTIONS = {
    "axial": IDENTITY,
    "axial, feet first": (-1.0, 0, 0, 0, 1, 0, 0, 0, -1),
    "axial, slices downwards": (1.0, 0, 0, 0, 1, 0, 0, 0, -1),
    "axial, mirrored rows": (-1.0, 0, 0, 0, 1, 0, 0, 0, 1),
    "axial, rows and columns swapped": (0.0, 1, 0, 1, 0, 0, 0, 0, 1),
    "prone": (-1.0, 0, 0, 0, -1, 0, 0, 0, 1),
    "sagittal": (0.0, 0, 1, 1, 0, 0, 0, -1, 0),
    "coronal": (1.0, 0, 0, 0, 0, 1, 0, -1, 0),
    "oblique": tuple(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.4).GetMatrix()),
}
BY = {"algorithm": "mtv", "version": "1.2", "moment": datetime(2024, 5, 6, 7, 8, 9)}
WRITERS = {"SEG": write_seg, "RTSTRUCT": write_rtstruct}


def asymmetric_labels():
    """A primary like an L with a tunnel and an arm, a node like a wedge, and a node of two voxels at a corner."""
    labels = np.zeros(SIZE, np.uint8)
    labels[3:11, 4:9, 2:8], labels[3:5, 9:14, 3:5] = 1, 1
    labels[5:8, 6, 2:8] = 0
    for k in range(5):
        labels[14 : 19 - k, 10:15, 8 + k] = 2
    labels[22, 1, 1] = labels[23, 0, 0] = 2
    return labels


def written(kind, folder, direction=IDENTITY, labels=None, **tags):
    """The series' headers, the label map on its grid and the object written from them."""
    paths = series(folder / "in", size=SIZE, spacing_mm=SPACING, origin=ORIGIN, direction=direction, **tags)
    source = headers(paths)
    np.random.default_rng(1).shuffle(source)
    image = to_image(asymmetric_labels() if labels is None else labels, Grid(SIZE, SPACING, ORIGIN, direction))
    assert WRITERS[kind](image, source, folder / f"{kind}.dcm", **BY)
    return source, image, pydicom.dcmread(folder / f"{kind}.dcm")


# --- round trips


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_mask_to_dicom_to_mask_is_exact_in_every_orientation(tmp_path, name, kind):
    _, image, dataset = written(kind, tmp_path, DIRECTIONS[name])
    found = label_map(dataset, Grid.of(image), NAMES)
    assert np.array_equal(to_array(found.image), to_array(image))
    assert (found.overlap_ml, found.outside_ml, found.notes) == (0, 0, [])


@pytest.mark.parametrize("name", DIRECTIONS)
def test_highdicom_finds_every_voxel_of_the_segmentation_in_its_place(tmp_path, name):
    _, image, _ = written("SEG", tmp_path, DIRECTIONS[name])
    volume = hd.seg.segread(tmp_path / "SEG.dcm").get_volume(combine_segments=True)
    for label in (1, 2):
        found = volume.map_indices_to_reference(np.argwhere(volume.array == label))
        expected = Grid.of(image).to_mm(np.argwhere(to_array(image) == label))
        assert in_order(found) == pytest.approx(in_order(expected), abs=1e-3)


def in_order(points):
    return points[np.lexsort(np.round(points, 1).T)]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_simpleitk_reads_the_same_frames_at_the_same_positions(tmp_path, name):
    # Frame by frame: ITK knows the pixels of a segmentation; where each lies is in the frame's own header.
    _, image, dataset = written("SEG", tmp_path, DIRECTIONS[name])
    frames = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "SEG.dcm"))
    orientation = np.reshape(
        dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)
    )
    steps = np.array(orientation, float).T * SPACING[:2]
    found: dict[int, list[np.ndarray]] = {1: [], 2: []}
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        label = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[label].append(position + np.argwhere(frame.T) @ steps.T)
    for label, points in found.items():
        expected = Grid.of(image).to_mm(np.argwhere(to_array(image) == label))
        assert in_order(np.concatenate(points)) == pytest.approx(in_order(expected), abs=1e-3)


@pytest.mark.parametrize("kind", WRITERS)
def test_enhanced_multiframe_series(tmp_path, kind):
    for direction in (IDENTITY, DIRECTIONS["axial, slices downwards"]):
        grid = Grid(SIZE, SPACING, ORIGIN, direction)
        assert WRITERS[kind](to_image(asymmetric_labels(), grid), [enhanced(grid)], tmp_path / "a.dcm", **BY)
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        assert np.array_equal(to_array(label_map(dataset, grid, NAMES).image), asymmetric_labels())
    if kind == "RTSTRUCT":
        referred = dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0]
        assert 1 <= referred.ReferencedFrameNumber <= SIZE[2]


@pytest.mark.parametrize("kind", WRITERS)
def test_label_map_with_turned_axes_is_put_back_on_the_series(tmp_path, kind):
    source, image, expected = written(kind, tmp_path)
    turned = sitk.Flip(sitk.PermuteAxes(image, (2, 0, 1)), (True, False, True), flipAboutOrigin=False)
    assert not same_grid(turned, image)
    WRITERS[kind](turned, source, tmp_path / "turned.dcm", **BY)
    assert (tmp_path / "turned.dcm").read_bytes() == (tmp_path / f"{kind}.dcm").read_bytes()
    assert expected.SeriesInstanceUID != source[0].SeriesInstanceUID


def test_volumes_keep_when_contours_go_to_another_grid(tmp_path):
    # The clinic's contours on the CT's grid: lesions of at least 0.5 ml keep their volume within 3 %.
    _, image, dataset = written("RTSTRUCT", tmp_path, DIRECTIONS["oblique"])
    fine = Grid((120, 120, 140), (0.8, 0.8, 0.8), (-40.0, -40.0, 80.0))
    rois = region_objects_summary(dataset)
    found = {one.name: region_mask(dataset, one.number, fine) for one in rois}
    volumes = {
        "MTV primary 1": (to_array(image) == 1).sum() * Grid.of(image).voxel_ml,
        "MTV node 1": ((to_array(image) == 2).sum() - 2) * Grid.of(image).voxel_ml,
    }
    for name, volume_ml in volumes.items():
        assert volume_ml > 0.5
        assert found[name].outside_ml == 0
        assert found[name].mask.sum() * fine.voxel_ml == pytest.approx(volume_ml, rel=0.03)


# --- what the objects say


@pytest.mark.parametrize("kind", WRITERS)
def test_objects_carry_the_patient_the_study_and_the_frame(tmp_path, kind):
    source, _, dataset = written(kind, tmp_path)
    assert str(dataset.PatientName) == "Müller^Jörg"
    assert (dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex) == ("P1", "19500203", "M")
    assert (dataset.StudyInstanceUID, dataset.StudyDate, dataset.AccessionNumber) == (STUDY_UID, "20200102", "A1")
    assert dataset.FrameOfReferenceUID == FRAME_UID
    assert dataset.SeriesInstanceUID != source[0].SeriesInstanceUID
    assert dataset.SeriesNumber > source[0].SeriesNumber
    assert (dataset.ManufacturerModelName, dataset.SoftwareVersions) == ("mtv", "1.2")
    (region, *_) = region_objects_summary(dataset)
    assert region.referenced_series_uids == (source[0].SeriesInstanceUID,)
    assert region.frame_of_reference_uid == FRAME_UID


STANDARD = Path(hd.__file__).parent / "_standard"


@pytest.mark.parametrize(("kind", "iod"), [("SEG", "segmentation"), ("RTSTRUCT", "rt-structure-set")])
@pytest.mark.parametrize("lacking", [False, True])
def test_mandatory_attributes_are_there_even_if_the_series_lacks_some(tmp_path, kind, iod, lacking):
    tags = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
    tags += ("ReferringPhysicianName", "SeriesNumber", "SliceThickness", "Manufacturer", "SpecificCharacterSet")
    _, _, dataset = written(kind, tmp_path, **dict.fromkeys(tags) if lacking else {})
    modules = json.loads((STANDARD / "iod_module_map.json").read_text())[iod]
    attributes = json.loads((STANDARD / "module_attribute_map.json").read_text())
    checked = 0
    # A functional group may stand with the shared or with each frame, which this plain table does not say.
    mandatory = [one["key"] for one in modules if one["usage"] == "M" and "functional-groups" not in one["key"]]
    for module in mandatory:
        for attribute in attributes[module]:
            for holder in holders(dataset, attribute["path"]):
                checked += 1
                if attribute["type"] == "1":
                    assert holder.get(attribute["keyword"]) not in (None, ""), (module, attribute)
                if attribute["type"] == "2":
                    assert attribute["keyword"] in holder, (module, attribute)
    assert checked > 100


def holders(dataset, path):
    """The items at the end of a path of sequences, as far as they are there."""
    found = [dataset]
    for name in path:
        found = [item for one in found for item in (one.get(name) or [])]
    return found


def test_segments_say_what_they_are_and_who_made_them(tmp_path):
    _, _, dataset = written("SEG", tmp_path)
    found = hd.seg.segread(tmp_path / "SEG.dcm")
    assert found.segmentation_type == hd.seg.SegmentationTypeValues.BINARY
    names, types = ["Primary tumour", "Lymph node metastases"], ["86049000", "14799000"]
    for number, (name, code) in enumerate(zip(names, types, strict=True), 1):
        segment = found.get_segment_description(number)
        assert (segment.segment_label, segment.segmented_property_type.value) == (name, code)
        assert segment.segmented_property_category.value == "49755003"
        assert segment.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        (identification,) = segment.algorithm_identification
        assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("mtv", "1.2")
        assert segment.tracking_id == f"mtvlib {name}"
    assert len({segment.TrackingUID for segment in dataset.SegmentSequence}) == 2


def test_contours_refer_to_the_images_that_they_lie_on(tmp_path):
    source, image, dataset = written("RTSTRUCT", tmp_path, DIRECTIONS["oblique"])
    images = {header.SOPInstanceUID: header for header in source}
    listed = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert {item.ReferencedSOPInstanceUID for item in listed.ContourImageSequence} == set(images)
    normal = np.reshape(DIRECTIONS["oblique"], (3, 3))[:, 2]
    n = 0
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            header = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            assert len(points) == contour.NumberOfContourPoints
            off = (points - np.array(header.ImagePositionPatient, float)) @ normal
            assert np.abs(off).max() < 1e-3
            assert Grid.of(image).contains(points + 1e-3 * (points.mean(axis=0) - points)).all()
            n += 1
    assert n > 15
    assert dataset.ApprovalStatus == "UNAPPROVED"


def test_rois_are_numbered_as_the_lesion_table_numbers_them(tmp_path):
    labels = asymmetric_labels()
    labels[20:23, 16:19, 12:14] = 1
    _, _, dataset = written("RTSTRUCT", tmp_path, labels=labels)
    table = {(one["target"], one["lesion"]): one["volume_ml"] for one in lesions.describe(labels, None, SPACING)}
    written_ml = {roi.ROIName: float(roi.ROIVolume) for roi in dataset.StructureSetROISequence}
    names = {"primary": "MTV primary", "nodes": "MTV node"}
    assert written_ml == {f"{names[key]} {n}": pytest.approx(ml) for (key, n), ml in table.items()}
    assert list(written_ml) == ["MTV primary 1", "MTV primary 2", "MTV node 1", "MTV node 2"]
    colours = [tuple(roi.ROIDisplayColor) for roi in dataset.ROIContourSequence]
    assert colours[0] == colours[1] != colours[2] == colours[3]


def test_hole_is_a_contour_of_its_own(tmp_path):
    labels = np.zeros(SIZE, np.uint8)
    labels[3:10, 3:10, 5], labels[5:7, 5:7, 5] = 1, 0
    _, image, dataset = written("RTSTRUCT", tmp_path, labels=labels)
    contours = dataset.ROIContourSequence[0].ContourSequence
    assert [contour.ContourGeometricType for contour in contours] == ["CLOSED_PLANAR"] * 2
    assert [contour.NumberOfContourPoints for contour in contours] == [4, 4]
    assert np.array_equal(to_array(label_map(dataset, Grid.of(image), NAMES).image), labels)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_input_gives_the_same_object_and_another_one_other_uids(tmp_path, kind):
    source, image, first = written(kind, tmp_path)
    WRITERS[kind](image, source[::-1], tmp_path / "again.dcm", **BY)
    assert (tmp_path / "again.dcm").read_bytes() == (tmp_path / f"{kind}.dcm").read_bytes()
    for labels, version in ((image, "1.3"), (image * (image == 1), "1.2")):
        WRITERS[kind](labels, source, tmp_path / "other.dcm", **BY | {"version": version})
        other = pydicom.dcmread(tmp_path / "other.dcm")
        assert other.SOPInstanceUID != first.SOPInstanceUID
        assert other.SeriesInstanceUID != first.SeriesInstanceUID


@pytest.mark.parametrize("kind", WRITERS)
def test_the_headers_given_stay_as_they_are(tmp_path, kind):
    source = headers(series(tmp_path, size=SIZE, spacing_mm=SPACING, origin=ORIGIN, PatientSex=None, SliceThickness=""))
    before = [header.to_json() for header in source]
    WRITERS[kind](to_image(asymmetric_labels(), Grid(SIZE, SPACING, ORIGIN)), source, tmp_path / "a.dcm", **BY)
    assert [header.to_json() for header in source] == before


@pytest.mark.parametrize("kind", WRITERS)
def test_time_of_creation_is_now_unless_it_is_given(tmp_path, kind):
    source, image, dataset = written(kind, tmp_path)
    assert (dataset.InstanceCreationDate, dataset.InstanceCreationTime) == ("20240506", "070809")
    WRITERS[kind](image, source, tmp_path / "now.dcm", algorithm="mtv", version="1.2")
    created = pydicom.dcmread(tmp_path / "now.dcm", specific_tags=["InstanceCreationDate"]).InstanceCreationDate
    assert abs((datetime.now() - datetime.strptime(created, "%Y%m%d")).days) <= 1


# --- what is not written


@pytest.mark.parametrize("kind", WRITERS)
def test_absent_class_gets_no_region_and_no_lesion_no_object(tmp_path, kind):
    labels = asymmetric_labels()
    labels[labels == 1] = 0
    source, image, dataset = written(kind, tmp_path, labels=labels)
    assert {name: str(one) for name, one in label_map(dataset, Grid.of(image), NAMES).categories.items()} == (
        {"Lymph node metastases": "nodes"} if kind == "SEG" else {"MTV node 1": "nodes", "MTV node 2": "nodes"}
    )
    assert np.array_equal(to_array(label_map(dataset, Grid.of(image), NAMES).image), labels)
    # The older object would claim lesions that are no longer there.
    assert WRITERS[kind](image * 0, source, tmp_path / f"{kind}.dcm", **BY) is False
    assert not (tmp_path / f"{kind}.dcm").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_labels_on_another_grid_are_refused(tmp_path, kind):
    source, image, _ = written(kind, tmp_path)
    shifted = sitk.Image(image)
    shifted.SetOrigin((ORIGIN[0] + 1.0, *ORIGIN[1:]))
    for wrong in (shifted, image[1:, :, :], image[:, :, ::2]):
        with pytest.raises(InputError, match="the grids are"):
            WRITERS[kind](wrong, source, tmp_path / "wrong.dcm", **BY)
    assert not (tmp_path / "wrong.dcm").exists()


BROKEN = {
    "missing slice": (lambda source: source[:5] + source[6:], "not evenly spaced"),
    "double slice": (lambda source: [*source, source[3]], "not evenly spaced"),
    "no headers": (lambda source: [], "no headers"),
    "two series": (lambda source: [*source[:-1], changed(source[-1], SeriesInstanceUID="1.2")], "one series"),
    "turned": (lambda source: [*source[:-1], changed(source[-1], ImageOrientationPatient=[0, 1, 0] * 2)], "parallel"),
    "no frame": (lambda source: [changed(one, FrameOfReferenceUID="") for one in source], "FrameOfReferenceUID"),
    "no position": (lambda source: [changed(one, ImagePositionPatient=None) for one in source], "ImagePosition"),
}  # fmt: skip


def changed(header, **tags):
    for name, value in tags.items():
        setattr(header, name, value)
    return header


@pytest.mark.parametrize("case", BROKEN)
def test_headers_that_are_no_whole_series_are_refused(tmp_path, case):
    change, problem = BROKEN[case]
    source = sorted(headers(series(tmp_path, size=SIZE)), key=lambda header: header.InstanceNumber)
    with pytest.raises(Refusal, match=problem) as error:
        series_grid(change(source))
    assert error.value.code == "broken_series"


# --- real data


@pytest.mark.filterwarnings("error:The string")  # highdicom's word on the patient's name
@pytest.mark.parametrize("modality", ["PET", "CT"])
@pytest.mark.parametrize("kind", WRITERS)
def test_real_series_there_and_back(tmp_path, shared, kind, modality):
    folder = shared / "data/sts/dicom/STS_002" / modality / "image"
    source = headers(sorted(folder.glob("*.dcm")))
    labels = read_labels(shared / f"data/sts/nifti/STS_002/{modality}_mask.nii.gz")
    assert same_grid(series_grid(source), labels, tolerance_mm=0.02)
    assert WRITERS[kind](labels, source, tmp_path / "a.dcm", **BY)
    found = label_map(pydicom.dcmread(tmp_path / "a.dcm"), Grid.of(labels), NAMES)
    assert np.array_equal(to_array(found.image), to_array(labels))

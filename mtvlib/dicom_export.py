"""A label map back to the clinic: DICOM SEG and RTSTRUCT objects that refer to the series it was made on.

Both carry the patient and the study of that series, say that an algorithm made them, and are not approved. The same
labels of the same series give the same UIDs, so that an object sent twice is one in the archive.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scipy import ndimage

from mtvlib.classes import NODES, PRIMARY
from mtvlib.contours import outlines
from mtvlib.errors import Refusal
from mtvlib.files import atomic_path
from mtvlib.lesions import bounding_box, components
from mtvlib.regions import Plane, frame_planes
from mtvlib.volume import Grid, check_same_grid, same_grid, to_array

_MANUFACTURER = "mtvlib"
_SAME_MM = 0.1  # rounded positions in headers; a tenth of the finest slice spacing
_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # what RT Referenced Study Sequence has to name, though it is retired


@dataclass(frozen=True)
class _Class:
    """How a class of the label map is called and coded in DICOM."""

    segment: str
    roi: str
    code: Any
    rgb: tuple[int, int, int]  # the report's colours


_CLASSES = {
    PRIMARY: _Class(
        "Primary tumour",
        "MTV primary",
        hd.sr.CodedConcept("86049000", "SCT", "Neoplasm, Primary"),
        (213, 94, 0),
    ),
    NODES: _Class("Lymph node metastases", "MTV node", codes.SCT.NeoplasmSecondary, (0, 158, 115)),
}


# --- the series


@dataclass(frozen=True)
class _Slice:
    """One image plane of the source: its instance, and the number of its frame in a multi-frame object."""

    header: Dataset
    frame: int | None
    plane: Plane


@dataclass(frozen=True)
class _Series:
    grid: Grid  # columns, rows, slices along the cross product of the two
    slices: list[_Slice]  # in the grid's order

    @property
    def header(self) -> Dataset:
        return self.slices[0].header

    @property
    def headers(self) -> list[Dataset]:
        """The instances: one a slice, or the one multi-frame object."""
        return [self.header] if self.slices[0].frame is not None else [one.header for one in self.slices]


def series_grid(source: Sequence[Dataset]) -> Grid:
    """Grid of a series from the headers of all its slices, in any order, or of its one multi-frame object.

    The first axis runs along the rows, the second along the columns, the third along their cross product. Raises
    `Refusal` `broken_series` for slices that are missing, double, or not parallel.
    """
    return _series(source).grid


_NEEDED = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
    *("Rows", "Columns"),
)
_NEEDED_IN_PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def _check_complete(source: Sequence[Dataset]) -> None:
    for header in source:
        needed = _NEEDED if _is_multiframe(header) else _NEEDED + _NEEDED_IN_PLANE
        missing = [name for name in needed if not header.get(name)]
        if missing:
            raise _broken(header, "a header lacks what an object that refers to it needs", ", ".join(missing))


def _is_multiframe(header: Dataset) -> bool:
    return "PerFrameFunctionalGroupsSequence" in header


def _series(source: Sequence[Dataset]) -> _Series:
    if not source:
        raise _broken(Dataset(), "there are no headers", 0)
    _check_complete(source)
    if len(source) == 1 and _is_multiframe(source[0]):
        slices = [_Slice(source[0], number, plane) for number, plane in enumerate(frame_planes(source[0]), 1)]
    else:
        slices = [_Slice(header, None, Plane.of(header, header, header)) for header in source]
    turned = np.ptp([one.plane.orientation for one in slices], axis=0).max()
    if len({header.SeriesInstanceUID for header in source}) != 1 or turned > 1e-4:
        raise _broken(source[0], "the headers are not those of the parallel slices of one series", len(source))
    first = slices[0].plane
    slices.sort(key=lambda one: float(one.plane.position @ first.normal))
    grid = Grid(
        (int(source[0].Columns), int(source[0].Rows), len(slices)),
        (first.between_columns_mm, first.between_rows_mm, _slice_step(slices)),
        tuple(slices[0].plane.position.tolist()),
        tuple(np.column_stack([*first.orientation, first.normal]).ravel().tolist()),
    )
    return _Series(grid, slices)


def _slice_step(slices: list[_Slice]) -> float:
    """Distance of neighbouring slices, mm; a single slice has its thickness."""
    first = slices[0].plane
    if len(slices) == 1:
        return first.between_planes_mm or first.thickness_mm or 1.0
    offsets = np.array([one.plane.position for one in slices]) - first.position
    step = float(offsets[-1] @ first.normal) / (len(slices) - 1)
    off = np.linalg.norm(offsets - np.arange(len(slices))[:, None] * step * first.normal, axis=1).max()
    if off > _SAME_MM or step < _SAME_MM:
        raise _broken(slices[0].header, "its slices are not evenly spaced", f"up to {off:.3g} mm off")
    return step


def _broken(header: Dataset, problem: str, value: Any) -> Refusal:
    return Refusal(
        "broken_series",
        problem,
        patient=str(header.get("PatientID")),
        value=value,
        remedy="give the headers of all slices of the series that the labels were made on.",
    )


def _on_series(labels: sitk.Image, series: _Series) -> np.ndarray:
    """Labels as (column, row, slice) of the series; axes of the label map may be swapped or turned, never shifted."""
    own = Grid.of(labels)
    if same_grid(own, series.grid, _SAME_MM):
        return to_array(labels)
    corners = [series.grid.to_indices(own.to_mm(_corners(own))), _corners(series.grid)]
    found, expected = ({tuple(corner) for corner in np.round(one).astype(int).tolist()} for one in corners)
    off = np.abs((corners[0] - np.round(corners[0])) * series.grid.spacing_mm).max()
    if found != expected or off > _SAME_MM:
        check_same_grid(series.grid, own, patient=str(series.header.get("PatientID")), tolerance_mm=_SAME_MM)
    grid = series.grid
    turned = sitk.Resample(
        labels, grid.size, sitk.Transform(), sitk.sitkNearestNeighbor, grid.origin_mm, grid.spacing_mm, grid.direction
    )
    return to_array(turned)


def _corners(grid: Grid) -> np.ndarray:
    return np.array(list(product(*((0, side - 1) for side in grid.size))))


def _prepared(
    labels: sitk.Image, source: Sequence[Dataset], kind: str, algorithm: str, version: str
) -> tuple[_Series, np.ndarray, list[str]]:
    """The series, the labels on it, and what the UIDs of an object of this kind are made of."""
    series = _series(source)
    array = _on_series(labels, series)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    instances = [str(header.SOPInstanceUID) for header in series.headers]
    return series, array, [kind, algorithm, version, digest, *instances]


def _uid(seeds: list[str], purpose: str) -> str:
    return generate_uid(entropy_srcs=[*seeds, purpose])


# What the modules Patient and General Study require, though it may be empty, and what else is carried over.
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_OPTIONAL = (
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyInstanceUID", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "LongitudinalTemporalInformationModified"),
)


# --- SEG


def write_seg(
    labels: sitk.Image,
    source: Sequence[Dataset],
    path: str | Path,
    *,
    algorithm: str,
    version: str,
    moment: datetime | None = None,
) -> bool:
    """Write a label map as a binary DICOM SEG of `source`: a segment for each class that has voxels.

    `labels` lies on the grid of the series, its axes in any order and direction; `source` are the headers of all its
    slices, in any order, or of its one multi-frame object. `moment` is the time of creation (now). Without any lesion
    nothing is written, an older file at `path` is removed, and the result is False: DICOM has no empty segmentation.
    """
    series, array, seeds = _prepared(labels, source, "SEG", algorithm, version)
    present = [number for number in _CLASSES if (array == number).any()]
    if not present:
        Path(path).unlink(missing_ok=True)
        return False
    segments = np.zeros(array.shape, np.uint8)
    for place, number in enumerate(present, 1):
        segments[array == number] = place
    dataset = _segmentation(segments, present, series, seeds, algorithm, version)
    _settle(dataset, seeds, moment)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary)
    return True


def _segmentation(
    segments: np.ndarray, present: list[int], series: _Series, seeds: list[str], algorithm: str, version: str
) -> Dataset:
    with warnings.catch_warnings():
        # A pseudonym has one part only; highdicom takes that for a mistake.
        warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
        return hd.seg.Segmentation(
            source_images=[_complete(header, series.grid) for header in series.headers],
            pixel_array=np.ascontiguousarray(_frame_order(segments, series)),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _segment(place, number, seeds, algorithm, version) for place, number in enumerate(present, 1)
            ],
            series_instance_uid=_uid(seeds, "series"),
            series_number=_series_number(series.header, 0),
            sop_instance_uid=_uid(seeds, "instance"),
            instance_number=1,
            manufacturer=_MANUFACTURER,
            manufacturer_model_name=algorithm,
            software_versions=version,
            device_serial_number=version,
            content_label="MTV",
            content_description="Metabolic tumour volume",
            series_description=f"MTV {algorithm}"[:64],
        )


def _complete(header: Dataset, grid: Grid) -> Dataset:
    """A copy that has, empty, what highdicom wants to copy; anonymised series often lack some of it."""
    complete = Dataset()
    complete.update(header)
    for name in _REQUIRED:
        if name not in complete:
            setattr(complete, name, "")
    if not complete.get("SliceThickness") and not _is_multiframe(header):
        complete.add_new("SliceThickness", "DS", f"{grid.spacing_mm[2]:.6g}")  # new: the old element is the caller's
    return complete


def _frame_order(array: np.ndarray, series: _Series) -> np.ndarray:
    """(x, y, z) as (frame, row, column), frames in the order of the source's instances or frames."""
    if series.slices[0].frame is None:
        return array.T
    return array.T[np.argsort([one.frame for one in series.slices if one.frame is not None])]


def _segment(place: int, number: int, seeds: list[str], algorithm: str, version: str) -> hd.seg.SegmentDescription:
    kind = _CLASSES[number]
    return hd.seg.SegmentDescription(
        segment_number=place,
        segment_label=kind.segment,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=kind.code,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            algorithm, codes.DCM.ArtificialIntelligence, version, source=_MANUFACTURER
        ),
        tracking_uid=_uid(seeds, kind.segment),
        tracking_id=f"{_MANUFACTURER} {kind.segment}",
        display_color=hd.color.CIELabColor.from_rgb(*kind.rgb),
    )


def _series_number(header: Dataset, offset: int) -> int:
    """A number that sorts right behind the source series and hardly collides: 4 becomes 4900."""
    return min(int(header.get("SeriesNumber") or 0) * 1000 + 900 + offset, 2**31 - 1)


def _settle(dataset: Dataset, seeds: list[str], moment: datetime | None) -> None:
    """Replace the times that highdicom took from the clock and the UIDs it drew by chance."""
    moment = moment or datetime.now()
    for name in ("InstanceCreation", "Content", "Series"):
        if f"{name}Date" in dataset or name != "Series":
            setattr(dataset, f"{name}Date", moment.strftime("%Y%m%d"))
            setattr(dataset, f"{name}Time", moment.strftime("%H%M%S"))
    for item in dataset.get("ContributingEquipmentSequence") or []:
        item.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S")
    organization = _uid(seeds, "dimensions")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization


# --- RTSTRUCT


def write_rtstruct(
    labels: sitk.Image,
    source: Sequence[Dataset],
    path: str | Path,
    *,
    algorithm: str,
    version: str,
    moment: datetime | None = None,
) -> bool:
    """Write a label map as a DICOM RTSTRUCT of `source`: an ROI for each lesion, "MTV primary 1" the largest primary.

    Arguments and result as in `write_seg`. Lesions are connected by faces, edges or corners and numbered as in
    lesions.csv. Contours run along the edges of the voxels, so the area in them is that of the mask, and a reader that
    asks for voxel centres gets the same mask. Holes are contours of their own under the even-odd rule, not keyholes:
    these are joined by a line that is no border, and they show it. Readers that unite contours would fill the holes.
    """
    series, array, seeds = _prepared(labels, source, "RTSTRUCT", algorithm, version)
    lesions = list(_lesions(array))
    if not lesions:
        Path(path).unlink(missing_ok=True)
        return False
    dataset = _structure_set(series, seeds, algorithm, version, moment or datetime.now())
    for number, lesion in enumerate(lesions, 1):
        _add_roi(dataset, number, lesion, series, algorithm, version)
    with atomic_path(path) as temporary:
        # Implicit VR: in explicit VR a contour of more than about 2000 points exceeds what a length can say.
        dataset.save_as(temporary, enforce_file_format=True, implicit_vr=True, little_endian=True)
    return True


@dataclass(frozen=True)
class _Lesion:
    name: str
    kind: _Class
    mask: np.ndarray  # its bounding box
    start: np.ndarray  # (3,), index of the box


def _lesions(array: np.ndarray) -> Iterator[_Lesion]:
    """The lesions of each class, the largest first (ties: array order), as `lesions.describe` numbers them."""
    whole = bounding_box(array)
    labels = array[whole]
    if not labels.size:
        return
    numbers = components(labels)
    sizes = np.bincount(numbers.ravel())[1:]
    boxes = ndimage.find_objects(numbers.astype(np.int32))
    places = dict.fromkeys(_CLASSES, 0)
    found = []
    for lesion in (1 + np.argsort(-sizes, kind="stable")).tolist():
        box = boxes[lesion - 1]
        mask = numbers[box] == lesion
        label = int(labels[box][mask][0])
        places[label] += 1
        start = np.array([side.start + one.start for side, one in zip(box, whole, strict=True)])
        found.append((label, _Lesion(f"{_CLASSES[label].roi} {places[label]}", _CLASSES[label], mask, start)))
    yield from (lesion for _, lesion in sorted(found, key=lambda one: one[0]))


def _structure_set(series: _Series, seeds: list[str], algorithm: str, version: str, moment: datetime) -> Dataset:
    """The object without its ROIs."""
    header = series.header
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, _uid(seeds, "instance")
    _copy_patient_and_study(header, dataset)
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", _uid(seeds, "series")
    dataset.SeriesNumber, dataset.InstanceNumber = _series_number(header, 1), 1
    dataset.SeriesDescription, dataset.OperatorsName = f"MTV {algorithm}"[:64], ""
    dataset.Manufacturer, dataset.ManufacturerModelName = _MANUFACTURER, algorithm
    dataset.SoftwareVersions = version
    dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = header.get("PositionReferenceIndicator") or ""
    dataset.StructureSetLabel, dataset.StructureSetName = "MTV", "Metabolic tumour volume"
    for name in ("StructureSet", "InstanceCreation", "Series"):
        setattr(dataset, f"{name}Date", moment.strftime("%Y%m%d"))
        setattr(dataset, f"{name}Time", moment.strftime("%H%M%S"))
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(series)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    return dataset


def _copy_patient_and_study(header: Dataset, dataset: Dataset) -> None:
    for name in _REQUIRED:
        setattr(dataset, name, header.get(name) or "")
    for name in _OPTIONAL:
        if header.get(name):
            setattr(dataset, name, header[name].value)


def _frame_of_reference(series: _Series) -> Dataset:
    images = _item(
        SeriesInstanceUID=series.header.SeriesInstanceUID,
        ContourImageSequence=[_instance(one) for one in series.headers],
    )
    study = _item(
        ReferencedSOPClassUID=_DETACHED_STUDY,
        ReferencedSOPInstanceUID=series.header.StudyInstanceUID,
        RTReferencedSeriesSequence=[images],
    )
    return _item(FrameOfReferenceUID=series.header.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _instance(header: Dataset, frame: int | None = None) -> Dataset:
    item = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _add_roi(dataset: Dataset, number: int, lesion: _Lesion, series: _Series, algorithm: str, version: str) -> None:
    dataset.StructureSetROISequence.append(
        _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=series.header.FrameOfReferenceUID,
            ROIName=lesion.name,
            ROIVolume=f"{lesion.mask.sum() * series.grid.voxel_ml:.6g}",
            ROIGenerationAlgorithm="AUTOMATIC",
            ROIGenerationDescription=f"{algorithm} {version}"[:64],
        )
    )
    contours = list(_contours(lesion, series))
    for place, contour in enumerate(contours, 1):
        contour.ContourNumber = place
    dataset.ROIContourSequence.append(
        _item(ReferencedROINumber=number, ROIDisplayColor=list(lesion.kind.rgb), ContourSequence=contours)
    )
    code = _item(
        CodeValue=lesion.kind.code.value,
        CodingSchemeDesignator=lesion.kind.code.scheme_designator,
        CodeMeaning=lesion.kind.code.meaning,
    )
    dataset.RTROIObservationsSequence.append(
        _item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIIdentificationCodeSequence=[code],
            RTROIInterpretedType="",  # a GTV is what a physician declares one
            ROIInterpreter="",
        )
    )


def _contours(lesion: _Lesion, series: _Series) -> Iterator[Dataset]:
    """Contour items of a lesion, slice by slice, each in the plane of its image."""
    for k in range(lesion.mask.shape[2]):
        image = series.slices[lesion.start[2] + k]
        for outline in outlines(lesion.mask[..., k]):
            points = image.plane.position + (outline + lesion.start[:2]) @ series.grid.matrix[:, :2].T
            yield _item(
                ContourImageSequence=[_instance(image.header, image.frame)],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{number:.4f}" for number in points.ravel()],
            )

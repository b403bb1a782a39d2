"""Small DICOM objects for tests: single-frame PET and CT series, enhanced PET, structure sets, segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedPETImageStorage,
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    generate_uid,
)

from mtvlib.volume import Grid, Identity

STUDY_UID, FRAME_UID = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame"])
STORAGE = {"PT": PositronEmissionTomographyImageStorage, "CT": CTImageStorage}

PATIENT = {
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Müller^Jörg",
    "PatientID": "P1",
    "PatientBirthDate": "19500203",
    "PatientSex": "M",
    "PatientWeight": 80.0,
    "PatientSize": 1.75,
    "StudyDate": "20200102",
    "StudyTime": "100000",
    "StudyID": "7",
    "StudyDescription": "PET/CT",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "",
}
SERIES: dict[str, dict[str, Any]] = {
    "PT": {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SeriesType": ["STATIC", "IMAGE"],
        "Units": "BQML",
        "CountsSource": "EMISSION",
        "CorrectedImage": ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "DCAL", "NORM"],
        "DecayCorrection": "START",
        "AttenuationCorrectionMethod": "CT",
        "RandomsCorrectionMethod": "DLYD",
        "ReconstructionMethod": "OSEM",
        "FrameReferenceTime": 0.0,
        "ActualFrameDuration": 180000,
        "NumberOfTimeSlices": 1,
    },
    "CT": {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "KVP": 120,
        "RescaleType": "HU",
        "ConvolutionKernel": "B30f",
    },
}
RADIOPHARMACEUTICAL = {
    "Radiopharmaceutical": "FDG -- fluorodeoxyglucose",
    "RadiopharmaceuticalStartTime": "090000",
    "RadionuclideTotalDose": 300e6,
    "RadionuclideHalfLife": 6586.2,
    "RadionuclidePositronFraction": 0.967,
}


def series(
    folder: Path,
    *,
    modality: str = "PT",
    size: tuple[int, int, int] = (12, 10, 8),
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 3.0),
    origin: tuple[float, float, float] = (-20.0, -15.0, 100.0),
    direction: Sequence[float] = Identity,
    values: np.ndarray | None = None,
    **tags: Any,
) -> list[Path]:
    """Write a single-frame series below `folder`; returns its files in the order of the grid's third axis.

    Geometry as in `volume.Grid`: the first axis is the column, the second the row, the third the slice, whose direction
    may be either of the two normals of the image plane. `values` (x, y, z): Bq/ml or whatever `Units` says, with a
    rescale slope of its own in each slice, or HU; random ones if None. `tags` by keyword: a value, None to leave the
    tag out, or a function of the slice's number; those of the radiopharmaceutical go into its sequence. File names and
    instance numbers do not follow the slices.
    """
    grid = Grid(size, spacing_mm, origin, tuple(direction))
    values = _values(modality, size) if values is None else values
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(size[2]):
        image = _image(grid, k, modality, values[..., k], {"SeriesInstanceUID": series_uid(folder, modality)}, tags)
        paths.append(folder / f"{image.SOPInstanceUID[-12:]}.dcm")
        save(image, paths[-1])
    return paths


def headers(paths: Sequence[Path]) -> list[Dataset]:
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]


def series_uid(folder: Path, modality: str) -> str:
    return generate_uid(entropy_srcs=[folder.name, modality])


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return path


def _values(modality: str, size: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.uniform(0, 3e4, size) if modality == "PT" else random.integers(-1000, 1000, size)


def _image(
    grid: Grid, k: int, modality: str, values: np.ndarray, default: dict[str, Any], tags: dict[str, Any]
) -> Dataset:
    dataset = _new(STORAGE[modality], generate_uid(entropy_srcs=[default["SeriesInstanceUID"], str(k)]))
    axes = np.reshape(grid.direction, (3, 3))
    place = {
        "Modality": modality,
        "FrameOfReferenceUID": FRAME_UID,
        "StudyInstanceUID": STUDY_UID,
        "SeriesNumber": 4,
        "SeriesDescription": f"{modality} WB",
        "SeriesDate": "20200102",
        "SeriesTime": "100000",
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "100000",
        "InstanceNumber": grid.size[2] - k,
        "ImagePositionPatient": _short(grid.to_mm(np.array([[0, 0, k]]))[0]),
        "ImageOrientationPatient": _short([*axes[:, 0], *axes[:, 1]]),
        "PixelSpacing": [grid.spacing_mm[1], grid.spacing_mm[0]],  # between rows, between columns
        "SliceThickness": grid.spacing_mm[2],
        "PatientPosition": "HFS",
        "Manufacturer": "ACME",
        "ManufacturerModelName": "Scanner",
        "SoftwareVersions": "1",
    }
    if modality == "PT":
        place |= {"NumberOfSlices": grid.size[2], "ImageIndex": k + 1}
    _pixels(dataset, values, modality)
    _set(dataset, {**PATIENT, **SERIES[modality], **place, **default, **tags}, k)
    if modality == "PT":
        _radiopharmaceutical(dataset, tags, k)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _radiopharmaceutical(dataset: Dataset, tags: dict[str, Any], k: int) -> None:
    if "RadiopharmaceuticalInformationSequence" not in tags:
        item = Dataset()
        _set(item, {**RADIOPHARMACEUTICAL, **{name: value for name, value in tags.items() if _of_dose(name)}}, k)
        dataset.RadiopharmaceuticalInformationSequence = [item]
    for name in filter(_of_dose, tags):
        if name in dataset:
            del dataset[name]


def _of_dose(name: str) -> bool:
    return name.startswith(("Radiopharmaceutical", "Radionuclide")) and not name.endswith("InformationSequence")


def _new(storage: str, uid: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = storage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    return dataset


def _set(dataset: Dataset, tags: dict[str, Any], k: int = 0) -> None:
    for name, value in tags.items():
        value = value(k) if callable(value) else value
        if value is not None:
            setattr(dataset, name, value)
        elif name in dataset:
            delattr(dataset, name)


def _pixels(dataset: Dataset, values: np.ndarray, modality: str) -> None:
    """Store `values` (x, y): a PET's slice by its own slope, a CT as whole HU."""
    slope = max(float(values.max()), 1e-6) / 32767 if modality == "PT" else 1.0
    slope = float(f"{slope:.8g}")  # as the tag will hold it
    intercept = 0.0 if modality == "PT" else -1024.0
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.Columns, dataset.Rows = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.round((values - intercept) / slope).astype("<i2").T.tobytes()


def _short(numbers: Any) -> list[str]:
    """Decimal strings of at most 16 characters."""
    return [f"{number:.10f}"[:16] for number in numbers]


def enhanced(grid: Grid, **tags: Any) -> Dataset:
    """Header of one enhanced multi-frame PET object; its frames lie in the order of the grid's third axis."""
    dataset = _image(grid, 0, "PT", np.zeros(grid.size[:2]), {"SeriesInstanceUID": generate_uid()}, tags)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedPETImageStorage
    dataset.NumberOfFrames = grid.size[2]
    shared = Dataset()
    shared.PixelMeasuresSequence = [_moved(dataset, "PixelSpacing", "SliceThickness")]
    shared.PlaneOrientationSequence = [_moved(dataset, "ImageOrientationPatient")]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k in range(grid.size[2]):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = _short(grid.to_mm(np.array([[0, 0, k]]))[0])
        frame.PlanePositionSequence = [position]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    del dataset.ImagePositionPatient
    del dataset.PixelData
    return dataset


def _moved(dataset: Dataset, *names: str) -> Dataset:
    item = Dataset()
    for name in names:
        setattr(item, name, dataset[name].value)
        delattr(dataset, name)
    return item


def structure_set(
    rois: dict[str, Sequence[np.ndarray]], *, frame_uid: str = FRAME_UID, series_uids: Sequence[str] = (), **tags: Any
) -> Dataset:
    """RTSTRUCT of closed contours (n, 3), LPS mm, by ROI name."""
    dataset = _new(RTStructureSetStorage, generate_uid(entropy_srcs=["rtstruct", *rois]))
    _set(dataset, {**PATIENT, "Modality": "RTSTRUCT", "StudyInstanceUID": STUDY_UID, "StructureSetLabel": "test"})
    frame, study = Dataset(), Dataset()
    frame.FrameOfReferenceUID = frame_uid
    study.RTReferencedSeriesSequence = [_item(SeriesInstanceUID=uid) for uid in series_uids]
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), 1):
        dataset.StructureSetROISequence.append(
            _item(ROINumber=number, ReferencedFrameOfReferenceUID=frame_uid, ROIName=name)
        )
        items = [contour(points) for points in contours]
        dataset.ROIContourSequence.append(_item(ReferencedROINumber=number, ContourSequence=items))
    _set(dataset, tags)
    return dataset


def contour(points: np.ndarray, kind: str = "CLOSED_PLANAR") -> Dataset:
    numbers = [f"{number:.8g}" for number in np.ravel(points)]
    return _item(ContourGeometricType=kind, NumberOfContourPoints=len(points), ContourData=numbers)


def _item(**tags: Any) -> Dataset:
    item = Dataset()
    _set(item, tags)
    return item

"""Regions that someone drew (DICOM RTSTRUCT and SEG) as label maps on the grid of an image.

A table of regular expressions (`data/roi_names.yml`) says which region is the primary tumour and which are nodes; a
voxel belongs to a region when its centre lies inside. How contours become voxels is in `contours.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import SimpleITK as sitk
import yaml
from pydicom import Dataset
from pydicom.uid import RTStructureSetStorage

from mtvlib.classes import BACKGROUND, NODES, PRIMARY
from mtvlib.contours import SAME_PLANE_MM, Stack, rasterise, stacked
from mtvlib.errors import InputError, Refusal
from mtvlib.volume import Grid, around_labels, resample, to_array, to_image

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_UNEVEN_MM = 0.1  # rounding of positions in headers
_THICKEST_MM = 6.0  # slices of PET and CT are hardly thicker
_ROI_NAMES = "--roi-names names.yml"


# --- names


class Category(StrEnum):
    """What a region's name or code says that it is."""

    PRIMARY = "primary"
    NODES = "nodes"
    IGNORED = "ignored"
    AMBIGUOUS = "ambiguous"
    UNMATCHED = "unmatched"


_LESIONS = {Category.PRIMARY: PRIMARY, Category.NODES: NODES}
_TABLE_KEYS = {"primary": Category.PRIMARY, "nodes": Category.NODES, "ambiguous": Category.AMBIGUOUS}
_TABLE_KEYS |= {"ignored": Category.IGNORED, "organs": Category.IGNORED}
_SIDE = "(left|right|both|gauche|droite?|lt|rt|l|r|g|d|[0-9]+)"


@dataclass(frozen=True)
class _Table:
    patterns: tuple[tuple[re.Pattern[str], Category], ...]
    codes: dict[str, Category]

    def of_name(self, name: str) -> Category:
        return _agreed(category for pattern, category in self.patterns if pattern.fullmatch(name))

    def of_codes(self, codes: Iterable[str]) -> Category:
        return _agreed(self.codes[code] for code in codes if code in self.codes)


@dataclass(frozen=True)
class Names:
    """The tables of region names, the one to ask first in front."""

    tables: tuple[_Table, ...]

    def classify(self, name: str, *, codes: Iterable[str] = ()) -> Category:
        """Category of a region by its name and its coded concepts (`scheme:value`, say SCT:86049000).

        The first table that knows the name decides, and likewise for the codes. A definite word outweighs an ambiguous
        one; two that contradict each other make the region ambiguous.
        """
        plain, codes = " ".join(name.split()), tuple(codes)
        found = [_first(table.of_name(plain) for table in self.tables)]
        found.append(_first(table.of_codes(codes) for table in self.tables))
        definite = [one for one in found if one not in (Category.UNMATCHED, Category.AMBIGUOUS)]
        return _agreed(definite or [one for one in found if one is Category.AMBIGUOUS])


def _agreed(categories: Iterable[Category]) -> Category:
    found = set(categories)
    if len(found) > 1:
        return Category.AMBIGUOUS
    return found.pop() if found else Category.UNMATCHED


def _first(categories: Iterable[Category]) -> Category:
    return next((one for one in categories if one is not Category.UNMATCHED), Category.UNMATCHED)


def read_names(path: Path | None) -> Names:
    """The default table of region names, and before it the user's own at `path` (alone if it says `extend: false`).

    Raises `InputError` that lists every unknown key and every regular expression that cannot be read.
    """
    default = _table(yaml.safe_load(resources.files("mtvlib").joinpath("data/roi_names.yml").read_text("utf-8")), None)
    if path is None:
        return Names((default,))
    values = _yaml(Path(path))
    own = _table(values, Path(path))
    return Names((own, default) if values.get("extend", True) else (own,))


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="correct the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"is not YAML: {' '.join(str(error).split())}", file=path, remedy="correct it.") from None
    if not isinstance(values, dict):
        raise InputError("must hold lists of names, such as `primary: [GTVp]`", file=path, value=type(values).__name__)
    return values


def _table(values: dict[str, Any], path: Path | None) -> _Table:
    problems = [f"unknown key '{key}'" for key in values if key not in {*_TABLE_KEYS, "codes", "extend"}]
    if not isinstance(values.get("extend", True), bool):
        problems.append("extend must be true or false")
    patterns = [
        (_pattern(text, key, problems), category)
        for key, category in _TABLE_KEYS.items()
        for text in _texts(values, key, problems)
    ]
    codes = _codes_table(values.get("codes") or {}, problems)
    if problems:
        known = ", ".join([*_TABLE_KEYS, "codes", "extend"])
        raise InputError(
            "names of regions: " + "; ".join(problems), file=path, remedy=f"correct these; the keys are {known}."
        )
    return _Table(tuple(patterns), codes)


def _codes_table(values: Any, problems: list[str]) -> dict[str, Category]:
    if not isinstance(values, dict):
        problems.append("codes must have the keys primary, nodes, ambiguous or ignored")
        return {}
    known = {key: category for key, category in _TABLE_KEYS.items() if key != "organs"}
    problems += [f"unknown key 'codes.{key}'" for key in values if key not in known]
    codes = {code: known[key] for key in known for code in _texts(values, key, problems)}
    problems += [f"the code '{code}' is not scheme:value" for code in codes if not re.fullmatch(r"[^:]+:[^:]+", code)]
    return codes


def _texts(values: dict[str, Any], key: str, problems: list[str]) -> list[str]:
    texts = values.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        problems.append(f"{key} must be a list of texts")
        return []
    return texts


def _pattern(text: str, key: str, problems: list[str]) -> re.Pattern[str]:
    side = rf"({_SIDE}[ _.-]*)?(?:%s)([ _.-]*{_SIDE})?" if key == "organs" else "%s"
    try:
        re.compile(text)  # alone first, so that the message is about the user's own text
        return re.compile(side % text, re.IGNORECASE)
    except re.error as error:
        problems.append(f"{key}: '{text}' is not a regular expression ({error})")
        return re.compile("")


# --- what an object holds


@dataclass(frozen=True)
class Region:
    """One ROI of an RTSTRUCT or one segment of a SEG; `codes` as scheme:value."""

    number: int
    name: str
    codes: tuple[str, ...]
    frame_of_reference_uid: str
    referenced_series_uids: tuple[str, ...]


def region_objects_summary(dataset: Dataset) -> list[Region]:
    """The ROIs of an RTSTRUCT or the segments of a SEG, in the object's order.

    Raises `Refusal` `not_a_region_object` for anything else.
    """
    if dataset.get("SOPClassUID") == RTStructureSetStorage:
        return _rois(dataset)
    if dataset.get("SOPClassUID") in _SEGMENTATIONS:
        return _segments(dataset)
    raise _refusal(dataset, "not_a_region_object", "holds no regions", dataset.get("Modality", "no modality"))


def _rois(dataset: Dataset) -> list[Region]:
    codes = {
        int(item.ReferencedROINumber): _codes(item.get("RTROIIdentificationCodeSequence"))
        for item in dataset.get("RTROIObservationsSequence") or []
    }
    return [
        Region(
            int(roi.ROINumber),
            str(roi.get("ROIName") or ""),
            codes.get(int(roi.ROINumber), ()),
            str(roi.get("ReferencedFrameOfReferenceUID") or dataset.get("FrameOfReferenceUID") or ""),
            _roi_series(dataset, roi.get("ReferencedFrameOfReferenceUID")),
        )
        for roi in dataset.get("StructureSetROISequence") or []
    ]


def _roi_series(dataset: Dataset, frame_uid: str | None) -> tuple[str, ...]:
    """Series that an RTSTRUCT refers to in one frame of reference (all, if it is not stated)."""
    return tuple(
        str(series.SeriesInstanceUID)
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        if frame_uid in (None, frame.get("FrameOfReferenceUID"))
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    )


def _segments(dataset: Dataset) -> list[Region]:
    frame = str(dataset.get("FrameOfReferenceUID") or "")
    series = tuple(str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or [])
    return [
        Region(
            int(segment.SegmentNumber),
            str(segment.get("SegmentLabel") or ""),
            _codes(segment.get("SegmentedPropertyTypeCodeSequence")),
            frame,
            series,
        )
        for segment in dataset.get("SegmentSequence") or []
        if int(segment.SegmentNumber) > 0  # 0 is the background of a label map
    ]


def _codes(sequence: Iterable[Dataset] | None) -> tuple[str, ...]:
    """Coded concepts as scheme:value; the three names of SNOMED's old codes become one."""
    old = {"SNM3": "SRT", "99SDM": "SRT"}
    schemes = [(str(item.get("CodingSchemeDesignator")), item.get("CodeValue")) for item in sequence or []]
    return tuple(f"{old.get(scheme, scheme)}:{value}" for scheme, value in schemes)


def check_reference(dataset: Dataset, frame_uid: str, series_uids: Iterable[str]) -> None:
    """Raise `Refusal` `other_frame_of_reference` unless a region was drawn in this frame or on one of these series.

    A referred series outweighs another frame UID: the coordinates are the patient coordinates of that series.
    """
    regions, wanted = region_objects_summary(dataset), set(series_uids)
    if any(one.frame_of_reference_uid == frame_uid or wanted & set(one.referenced_series_uids) for one in regions):
        return
    raise _refusal(
        dataset,
        "other_frame_of_reference",
        f"its regions were drawn in another frame of reference than the image's, {frame_uid}",
        ", ".join(sorted({one.frame_of_reference_uid or "none" for one in regions})) or "no region",
        "give the object that was drawn on this image, or register the two first.",
    )


def _refusal(dataset: Dataset, code: str, problem: str, value: Any = None, remedy: str | None = None) -> Refusal:
    patient, file = dataset.get("PatientID"), getattr(dataset, "filename", None)
    return Refusal(code, problem, patient=patient and str(patient), file=file, value=value, remedy=remedy)


# --- a label map


@dataclass(frozen=True)
class RegionMask:
    """Voxels of one region on a grid, what of it lies outside of the grid, and what a reader should know."""

    mask: np.ndarray  # (x, y, z), bool
    outside_ml: float = 0.0
    drawn: bool = True  # whether the object holds any shape for it
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """The label map of an RTSTRUCT or SEG object on a grid, and how it came about.

    `nodes_stated` is false when no node region was drawn, which does not mean that the patient has no nodes.
    `overlap_ml`: volume in both classes. `outside_ml`: volume outside of the grid, summed over the regions used.
    """

    image: sitk.Image  # uint8: 0, 1, 2
    categories: dict[str, Category]
    nodes_stated: bool
    overlap_ml: float
    outside_ml: float
    notes: list[str] = field(default_factory=list)


def label_map(dataset: Dataset, grid: Grid, names: Names, *, frame_uid: str | None = None) -> Labelled:
    """Primary tumour (1) and nodes (2) of an RTSTRUCT or SEG object on `grid`, by the centres of its voxels.

    Several regions of one class are united; where the classes overlap, nodes win (HECKTOR's rule). With `frame_uid`
    only regions of that frame of reference are used. Raises `Refusal`: `no_region_matched` if no name is known,
    `other_frame_of_reference` if the regions lie in several frames, `broken_contours` or `broken_segments` for a
    geometry that has no single reading, `empty_region` if no voxel's centre lies inside.
    """
    regions = region_objects_summary(dataset)
    classified = [(region, names.classify(region.name, codes=region.codes)) for region in regions]
    categories = {region.name: category for region, category in classified}
    notes = _notes_on_names(categories)
    used = _used(dataset, classified, frame_uid, notes)
    masks: dict[Category, np.ndarray] = {}
    outside_ml, nodes_stated = 0.0, False
    for region, category in used:
        found = region_mask(dataset, region.number, grid)
        masks[category] = masks[category] | found.mask if category in masks else found.mask
        outside_ml += found.outside_ml
        nodes_stated |= found.drawn and category is Category.NODES
        notes += found.notes
    labels = np.full(grid.size, BACKGROUND, np.uint8)
    for category in sorted(masks, key=lambda one: _LESIONS[one]):  # nodes last: they win
        labels[masks[category]] = _LESIONS[category]
    if not labels.any():
        raise _empty(dataset, [region.name for region, _ in used], outside_ml)
    overlap = np.logical_and(*masks.values()).sum() if len(masks) == 2 else 0
    return Labelled(to_image(labels, grid), categories, nodes_stated, float(overlap) * grid.voxel_ml, outside_ml, notes)


def _notes_on_names(categories: dict[str, Category]) -> list[str]:
    notes = []
    for category in (Category.AMBIGUOUS, Category.UNMATCHED):
        found = sorted(name for name, one in categories.items() if one is category)
        if found:
            notes.append(f"not used, {category}: {', '.join(found)}")
    return notes


def _used(
    dataset: Dataset, classified: list[tuple[Region, Category]], frame_uid: str | None, notes: list[str]
) -> list[tuple[Region, Category]]:
    """The regions that are lesions, all in one frame of reference."""
    lesions = [(region, category) for region, category in classified if category in _LESIONS]
    if not lesions:
        raise _refusal(
            dataset,
            "no_region_matched",
            "none of its regions is known as primary tumour or nodes",
            ", ".join(f"{region.name} ({category})" for region, category in classified) or "no region",
            f"say which is which in a table of names ({_ROI_NAMES}).",
        )
    used = [one for one in lesions if frame_uid in (None, one[0].frame_of_reference_uid)]
    notes += [f"not used, other frame of reference: {one[0].name}" for one in lesions if one not in used]
    frames = sorted({region.frame_of_reference_uid for region, _ in used})
    if len(frames) != 1:
        raise _refusal(
            dataset,
            "other_frame_of_reference",
            "its lesions lie in several frames of reference" if frames else f"no lesion lies in frame {frame_uid}",
            ", ".join(frames or sorted({region.frame_of_reference_uid for region, _ in lesions})),
            "give the object that was drawn on this image.",
        )
    return used


def _empty(dataset: Dataset, names: list[str], outside_ml: float) -> Refusal:
    return _refusal(
        dataset,
        "empty_region",
        "no voxel's centre lies inside its regions"
        + (f", {outside_ml:.3g} ml of them lie outside of the image" if outside_ml else ""),
        ", ".join(names),
        "check that they were drawn on this image and are not empty.",
    )


def region_mask(dataset: Dataset, number: int, grid: Grid) -> RegionMask:
    """The voxels of one ROI of an RTSTRUCT or one segment of a SEG on `grid`; see `label_map` for what is refused."""
    if dataset.get("SOPClassUID") == RTStructureSetStorage:
        return _roi_mask(dataset, number, grid)
    return _segment_mask(dataset, number, grid)


# --- contours


def _roi_mask(dataset: Dataset, number: int, grid: Grid) -> RegionMask:
    name = next(region.name for region in _rois(dataset) if region.number == number)
    notes: list[str] = []
    contours = _contours(dataset, number, name, notes)
    if not contours:
        notes.append(f"{name}: has no closed contour")
        return RegionMask(np.zeros(grid.size, bool), drawn=False, notes=tuple(notes))
    try:
        stack = stacked(contours)
    except Refusal as error:
        raise _broken_contours(dataset, f"{name}: {error.problem}", error.value) from None
    spacing = _plane_spacing(dataset, stack, grid)
    mask, outside = rasterise(stack, spacing, grid)
    notes += [f"{name}: {note}" for note in _notes_on_contours(stack, spacing, mask)]
    return RegionMask(mask, outside * grid.voxel_ml, notes=tuple(notes))


def _notes_on_contours(stack: Stack, spacing_mm: float, mask: np.ndarray) -> Iterator[str]:
    bridged, wide = stack.missing(spacing_mm)
    if stack.repeated:
        yield f"{stack.repeated} repeated contours left out"
    if bridged:
        yield f"{bridged} single missing planes bridged"
    if len(wide):
        yield f"{len(wide)} gaps of up to {wide.max():.4g} mm between its planes left open"
    if not mask.any():
        yield "no voxel's centre lies inside"


def _broken_contours(dataset: Dataset, problem: str, value: Any) -> Refusal:
    return _refusal(dataset, "broken_contours", problem, value, "export the structure set again.")


def _contours(dataset: Dataset, number: int, name: str, notes: list[str]) -> list[np.ndarray]:
    """Points (n, 3) of each closed contour of an ROI, LPS mm; what is none is noted and left out."""
    items = [
        contour
        for roi in dataset.get("ROIContourSequence") or []
        if int(roi.ReferencedROINumber) == number
        for contour in roi.get("ContourSequence") or []
    ]
    closed = [item for item in items if item.get("ContourGeometricType", "CLOSED_PLANAR") in _CLOSED]
    if len(closed) < len(items):
        notes.append(f"{name}: {len(items) - len(closed)} points and open contours left out")
    found = [_points(dataset, item, name) for item in closed]
    areas = [points for points in found if len(points) >= 3]
    if len(areas) < len(found):
        notes.append(f"{name}: {len(found) - len(areas)} contours of fewer than three points left out")
    return areas


def _points(dataset: Dataset, contour: Dataset, name: str) -> np.ndarray:
    """Points (n, 3) of a contour. Bytes as they lie in the file are read by numpy: pydicom makes an object a number."""
    value = contour.get_item("ContourData").value if "ContourData" in contour else None
    try:
        texts = value.decode("ascii").rstrip("\0 ").split("\\") if isinstance(value, bytes) else value
        numbers = np.array([] if texts in (None, [""]) else texts, float)
        if not np.isfinite(numbers).all() or numbers.size % 3:
            raise ValueError(f"{numbers.size} numbers, {np.isfinite(numbers).sum()} of them finite")
    except ValueError as error:
        raise _broken_contours(dataset, f"{name}: a contour is not a list of points", str(error)) from None
    return numbers.reshape(-1, 3)


def _plane_spacing(dataset: Dataset, stack: Stack, grid: Grid) -> float:
    """Distance between contour planes, mm: the ROI's median or, for one of few planes, what the other ROIs show.

    Two planes may be two lesions far apart, and one plane has no spacing. Without other ROIs their distance is taken up
    to the thickest usual slice, and beyond that the size of the grid's voxels along the normal.
    """
    if len(stack.gaps_mm) >= 3:
        return float(np.median(stack.gaps_mm))
    own = stack.gaps_mm.tolist()
    others = [gap for region in _rois(dataset) for gap in _gaps_along(dataset, region, stack.normal)]
    if others:
        return min([float(np.median(others)), *own])
    along = np.argmax(np.abs(stack.normal @ grid.matrix) / grid.spacing_mm)
    return min([gap for gap in own if gap <= _THICKEST_MM] or [float(grid.spacing_mm[along])])


def _gaps_along(dataset: Dataset, region: Region, normal: np.ndarray) -> list[float]:
    """Gaps between the planes of a region that has at least four planes; a damaged one has no say."""
    try:
        contours = _contours(dataset, region.number, region.name, [])
    except Refusal:
        return []
    heights = [points.mean(axis=0) @ normal for points in contours]
    gaps = np.diff(np.sort(heights))
    gaps = gaps[gaps > SAME_PLANE_MM]
    return gaps.tolist() if len(gaps) >= 3 else []


# --- segments


@dataclass(frozen=True)
class Plane:
    """Where an image plane lies: one single-frame image or one frame of a multi-frame object; LPS mm."""

    position: np.ndarray  # (3,): centre of the first pixel
    orientation: np.ndarray  # (2, 3): direction along a row, direction along a column
    between_columns_mm: float
    between_rows_mm: float
    between_planes_mm: float | None  # as stated
    thickness_mm: float | None

    @classmethod
    def of(cls, position: Dataset, orientation: Dataset, measures: Dataset) -> Plane:
        """From the items that hold position, orientation and pixel measures; one header may be all three."""
        rows, columns = (float(number) for number in measures.PixelSpacing)
        between, thickness = measures.get("SpacingBetweenSlices"), measures.get("SliceThickness")
        return cls(
            np.array(position.ImagePositionPatient, float),
            np.array(orientation.ImageOrientationPatient, float).reshape(2, 3),
            columns,
            rows,
            abs(float(between)) if between else None,
            float(thickness) if thickness else None,
        )

    @property
    def normal(self) -> np.ndarray:
        return np.cross(*self.orientation)


def frame_planes(dataset: Dataset) -> list[Plane]:
    """The plane of each frame of a multi-frame object."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    return [
        Plane.of(*((frame if name in frame else shared)[name].value[0] for name in names))
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]


def _segment_mask(dataset: Dataset, number: int, grid: Grid) -> RegionMask:
    """A segment on `grid`: exact where the voxels coincide, else linear on the indicator, from 0.5 on.

    The indicator of a fractional segment, be it probability or occupancy, is a value of at least half the largest.
    """
    name = next(region.name for region in _segments(dataset) if region.number == number)
    try:
        indicator, own = _segment(dataset, number, grid)
    except (ValueError, RuntimeError, AttributeError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, Refusal):
            raise
        raise _broken_segments(dataset, f"segment {name} cannot be read", str(error)) from error
    mask = np.zeros(grid.size, bool)
    if not indicator.any():
        return RegionMask(mask, drawn=False, notes=(f"{name}: the segment is empty",))
    part = around_labels(to_image(np.pad(indicator, 1), _from(own, np.array([-1, -1, -1]), 2 + np.array(own.size))))
    box, sub = _overlap(grid, Grid.of(part))
    if sub is not None:
        share = resample(sitk.Cast(part, sitk.sitkFloat32), sub, outside=0.0)
        mask[box] = to_array(share) >= 0.5 - 1e-5  # rounding
    outside = ~grid.contains(own.to_mm(np.argwhere(indicator)))
    notes = () if mask.any() else (f"{name}: no voxel's centre lies inside",)
    return RegionMask(mask, float(outside.sum()) * own.voxel_ml, notes=notes)


def _broken_segments(dataset: Dataset, problem: str, value: Any) -> Refusal:
    return _refusal(dataset, "broken_segments", problem, value, "export the segmentation again.")


def _from(grid: Grid, start: np.ndarray, size: np.ndarray) -> Grid:
    """The lattice of `grid`, from the index `start` on."""
    sides: list[int] = size.tolist()
    origin = grid.to_mm(start[None].astype(float))[0]
    return Grid((sides[0], sides[1], sides[2]), grid.spacing_mm, tuple(origin.tolist()), grid.direction)


def _overlap(grid: Grid, other: Grid) -> tuple[tuple[slice, ...], Grid | None]:
    """The box of `grid` that holds the centres of `other`'s voxels, and its grid; None if there is none."""
    corners = other.to_mm(np.array(list(product(*((0, side - 1) for side in other.size)))))
    indices = grid.to_indices(corners)
    low = np.clip(np.floor(indices.min(axis=0)).astype(int), 0, grid.size)
    high = np.clip(np.ceil(indices.max(axis=0)).astype(int) + 1, 0, grid.size)
    box = tuple(slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    return box, _from(grid, low, high - low) if np.all(high > low) else None


def _segment(dataset: Dataset, number: int, grid: Grid) -> tuple[np.ndarray, Grid]:
    """Indicator (x, y, z: column, row, plane) of a segment on the object's own grid; absent frames are empty."""
    planes = frame_planes(dataset)
    own, indices = _frames_grid(dataset, planes, grid)
    indicator = np.zeros(own.size, bool)
    reader = hd.seg.Segmentation.from_dataset(dataset, copy=not isinstance(dataset, hd.seg.Segmentation))
    for frame in _frames_of(dataset, number):
        stored = reader.get_stored_frame(frame + 1).T
        indicator[..., indices[frame]] |= _is_in(dataset, stored, number)
    return indicator, own


def _frames_of(dataset: Dataset, number: int) -> list[int]:
    """Frames (from 0 on) that show a segment; in a label map all of them may."""
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    if dataset.SegmentationType == "LABELMAP":
        return list(range(len(groups)))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    numbers = [
        (group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence[0]
        for group in groups
    ]
    return [frame for frame, item in enumerate(numbers) if int(item.ReferencedSegmentNumber) == number]


def _is_in(dataset: Dataset, stored: np.ndarray, number: int) -> np.ndarray:
    if dataset.SegmentationType == "LABELMAP":
        return stored == number
    if dataset.SegmentationType == "FRACTIONAL":
        return stored >= 0.5 * int(dataset.MaximumFractionalValue)
    return stored > 0


def _frames_grid(dataset: Dataset, planes: list[Plane], grid: Grid) -> tuple[Grid, list[int]]:
    """The grid that an object's frames span, and the index of each frame along its third axis."""
    first, normal = planes[0], planes[0].normal
    offsets = np.array([plane.position - first.position for plane in planes])
    turned = max(float(np.abs(plane.orientation - first.orientation).max()) for plane in planes)
    heights = offsets @ normal
    aside = float(np.linalg.norm(offsets - heights[:, None] * normal, axis=1).max())
    step = _frame_step(planes, np.unique(np.round(heights, 3)), grid)
    if step is None or turned > 1e-4 or aside > _UNEVEN_MM:
        why = "evenly spaced" if step is None else "parallel, one above the other"
        raise _broken_segments(dataset, f"its frames are not {why}", f"{len(planes)} frames")
    indices = np.round((heights - heights.min()) / step).astype(int)
    size = (int(dataset.Columns), int(dataset.Rows), int(indices.max()) + 1)
    origin = planes[int(np.argmin(heights))].position
    direction = np.column_stack([*first.orientation, normal])
    spacing = (first.between_columns_mm, first.between_rows_mm, step)
    return Grid(size, spacing, tuple(origin.tolist()), tuple(direction.ravel().tolist())), indices.tolist()


def _frame_step(planes: list[Plane], heights: np.ndarray, grid: Grid) -> float | None:
    """Distance between neighbouring planes, mm, of which empty ones may be absent; None if nothing fits all gaps.

    As stated; else, in this order, the gap if there are several of one size, the slice thickness, the smallest gap,
    and the step of the image that the regions are wanted on.
    """
    gaps = np.diff(heights)
    gaps = gaps[gaps > SAME_PLANE_MM]
    smallest = float(gaps.min()) if gaps.size else None
    even = smallest if gaps.size > 1 and np.ptp(gaps) < _UNEVEN_MM else None
    along = float(grid.spacing_mm[np.argmax(np.abs(planes[0].normal @ grid.matrix) / grid.spacing_mm)])
    for step in (planes[0].between_planes_mm, even, planes[0].thickness_mm, smallest, along):
        if step and np.all(np.abs(gaps - np.round(gaps / step) * step) < _UNEVEN_MM) and np.all(gaps > 0.5 * step):
            return step
    return None

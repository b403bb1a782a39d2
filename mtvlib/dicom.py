"""DICOM series to images: which files belong together, where their slices lie, and PET in SUV of body weight.

Slices are put in order by their positions, never by names or numbers. What an image with right angles and even slices
cannot hold (gantry tilt, uneven or missing slices) is interpolated and flagged, or refused with a reason code where too
much is missing. Classic and enhanced multi-frame objects are treated alike: see `flat_headers`.
"""

from __future__ import annotations

import logging
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian
from scipy import ndimage

from mtvlib.errors import InputError, Refusal
from mtvlib.suv import Clinical, Flag, Suv, number, suv_factors
from mtvlib.volume import Grid, to_image

MAX_GAP_MM = 10.0  # between neighbouring slices: what lies in a larger gap is not known (choice)
_EVEN_MM = 0.02  # deviation of slices from even spacing, and of their corners from a straight line
_SAME_PLACE_MM = 0.01
_MOST_BYTES = 2**31  # of one inflated file: more is no image but an attack
BODY_SUV = (0.02, 20.0)  # mean of the body: outside it the scale is wrong (1 by definition, if all were the body)
USUAL_BODY_SUV = (0.3, 3.0)
MOST_SUV, USUAL_MOST_SUV = 1000.0, 100.0

Plane = np.ndarray  # (rows, columns)


@dataclass(frozen=True)
class Slice:
    """One plane of a series: its flat header and where its pixels are."""

    header: Dataset
    path: Path
    frame: int | None = None  # of a multi-frame file, from 0

    @cached_property
    def position_mm(self) -> np.ndarray:
        return np.array([float(value) for value in self.header.ImagePositionPatient])

    @cached_property
    def orientation(self) -> np.ndarray:
        """(2, 3): direction along a row, and along a column."""
        return np.array([float(value) for value in self.header.ImageOrientationPatient]).reshape(2, 3)

    @property
    def in_plane(self) -> tuple[Any, ...]:
        """What must be the same in all slices of an image."""
        spacing = tuple(round(float(value), 5) for value in self.header.PixelSpacing)
        return (int(self.header.Rows), int(self.header.Columns), *spacing, *np.round(self.orientation, 4).ravel())


@dataclass(frozen=True)
class Series:
    """The slices of one series, in any order."""

    slices: list[Slice]

    @property
    def header(self) -> Dataset:
        return self.slices[0].header

    @property
    def uid(self) -> str:
        return str(self.header.get("SeriesInstanceUID", ""))

    @property
    def modality(self) -> str:
        return str(self.header.get("Modality", ""))


@dataclass(frozen=True)
class Read:
    """An image, what a person should know about it, and for PET how SUV was found."""

    image: sitk.Image
    flags: tuple[Flag, ...]
    suv: Suv | None = None


def quiet() -> None:
    """Keep pydicom and highdicom from warning about a header: they quote its values, which may name the patient."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)\b")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)


# --- files


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders, sorted; links that lead out of it are not followed."""
    top = folder.resolve()
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if not path.is_symlink() or path.resolve().is_relative_to(top):
                yield path


def read_file(path: Path, *, pixels: bool = False, tags: Sequence[str] = ()) -> Dataset | None:
    """A DICOM object, or its `tags` alone; None for a file that is none. Raises `Refusal` (`damaged`, `too_large`)."""
    try:
        _check_deflated(path)
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=list(tags) or None)
    except InvalidDicomError:
        return None
    except Refusal:
        raise
    except (OSError, ValueError, KeyError, AttributeError, NotImplementedError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None


def _check_deflated(path: Path) -> None:
    """Refuse a deflated object that would inflate to more than any image has."""
    with open(path, "rb") as file:
        if file.read(132)[128:] != b"DICM":
            return
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with open(path, "rb") as file:
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))  # preamble, the length's own element, the rest
        while chunk := inflate.unconsumed_tail or file.read(2**20):
            total += len(inflate.decompress(chunk, 2**24))
            if total > _MOST_BYTES:
                raise Refusal("too_large", "inflates to more than an image holds", file=path, value=f"> {total} bytes")


def _damaged(path: Path, error: Exception) -> Refusal:
    what = " ".join(str(error).split())[:200] or type(error).__name__
    return Refusal("damaged", "is damaged or truncated", file=path, value=what, remedy="copy or export it again.")


def read_series(paths: Iterable[Path]) -> list[Series]:
    """The image series in these files; what is no DICOM image is left out. Raises `Refusal` for a damaged file."""
    found: dict[str, list[Slice]] = {}
    for path in paths:
        header = read_file(path)
        if header is not None and "Rows" in header:
            for one in slices_of(header, path):
                found.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(one)
    return [Series(slices) for slices in found.values()]


def slices_of(header: Dataset, path: Path) -> list[Slice]:
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [Slice(header, path)]
    return [Slice(flat, path, number) for number, flat in enumerate(flat_headers(header))]


def instances(series: Series) -> list[Dataset]:
    """The headers of a series' objects as they are in the files: for objects that refer to them."""
    if series.slices[0].frame is None:
        return [one.header for one in series.slices]
    headers = [read_file(path) for path in sorted({one.path for one in series.slices})]
    return [header for header in headers if header is not None]


# --- enhanced multi-frame objects

# Attributes of the classic objects, by the functional group that holds them in the enhanced ones.
_MOVED = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameContentSequence": ("FrameAcquisitionDateTime", "FrameAcquisitionDuration", "FrameReferenceDateTime"),
    "PETFrameTypeSequence": ("FrameType",),
    "CTImageFrameTypeSequence": ("FrameType",),
    "PETFrameCorrectionFactorsSequence": (),
    "UnassignedSharedConvertedAttributesSequence": (),
    "UnassignedPerFrameConvertedAttributesSequence": (),
}
_UNITS_OF_UCUM = {"Bq/ml": "BQML", "Bq/mL": "BQML", "g/ml{SUVbw}": "GML", "{SUVbw}g/ml": "GML", "{counts}": "CNTS"}


def flat_headers(header: Dataset) -> list[Dataset]:
    """The header of each frame of an enhanced object with the attributes and names of the classic ones."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    whole = Dataset()
    whole.update({element.tag: element for element in header if element.VR != "SQ" or "Radiopharm" in element.name})
    return [_flat(whole, shared, frame) for frame in header.PerFrameFunctionalGroupsSequence]


def _flat(whole: Dataset, shared: Dataset, frame: Dataset) -> Dataset:
    flat = Dataset()
    flat.update(whole)
    for groups in (shared, frame):
        for name in _MOVED:
            for item in groups.get(name) or []:
                flat.update({element.tag: element for element in item})
        _take_real_world_values(flat, groups)
    _take_times(flat)
    return flat


def _take_real_world_values(flat: Dataset, groups: Dataset) -> None:
    """Units and, where there is no other, slope and intercept of the real-world value mapping."""
    for item in groups.get("RealWorldValueMappingSequence") or []:
        codes = item.get("MeasurementUnitsCodeSequence") or [Dataset()]
        units = _UNITS_OF_UCUM.get(str(codes[0].get("CodeValue", "")))
        if units is None:
            continue
        flat.Units = flat.get("Units") or units
        if flat.Units == units and "RealWorldValueSlope" in item:
            flat.RescaleSlope, flat.RescaleIntercept = item.RealWorldValueSlope, item.RealWorldValueIntercept


def _take_times(flat: Dataset) -> None:
    if "FrameAcquisitionDateTime" in flat:
        flat.AcquisitionDateTime = flat.FrameAcquisitionDateTime
        flat.AcquisitionDate, flat.AcquisitionTime = None, None
    if "FrameAcquisitionDuration" in flat:
        flat.ActualFrameDuration = flat.FrameAcquisitionDuration
    if str(flat.get("DecayCorrected", "")) == "YES" and flat.get("DecayCorrectionDateTime"):
        moment = str(flat.DecayCorrectionDateTime)
        flat.DecayCorrection, flat.SeriesDate, flat.SeriesTime = "START", moment[:8], moment[8:21]
    elif str(flat.get("DecayCorrected", "")) == "NO":
        flat.DecayCorrection = "NONE"
    if str(flat.get("AttenuationCorrected", "")) == "YES" and not flat.get("CorrectedImage"):
        flat.CorrectedImage = ["ATTN"]


# --- order and geometry


@dataclass(frozen=True)
class Stack:
    """Slices in order along their common normal, one a place."""

    slices: list[Slice]
    along_mm: np.ndarray  # (n,), ascending
    offsets_mm: np.ndarray  # (n, 2): shift of each slice along rows and columns against the first
    flags: list[Flag] = field(default_factory=list)

    @property
    def first(self) -> Slice:
        return self.slices[0]

    @property
    def spacing_mm(self) -> float:
        return float(np.median(np.diff(self.along_mm)))

    @property
    def is_even(self) -> bool:
        steps = np.arange(len(self.along_mm)) * (np.ptp(self.along_mm) / (len(self.along_mm) - 1))
        return bool(np.abs(self.along_mm - self.along_mm[0] - steps).max() <= _EVEN_MM)

    @property
    def is_straight(self) -> bool:
        return bool(np.abs(self.offsets_mm).max() <= _EVEN_MM)


def stack(series: Series) -> Stack:
    """The slices of a series in order. Raises `Refusal` where they do not make one image (the code tells why)."""
    flags: list[Flag] = []
    slices = _of_one_shape(_placed(series.slices, flags), flags)
    frames = {str(one.header.get("FrameOfReferenceUID", "")) for one in slices}
    if len(frames) > 1:
        raise Refusal("several_frames_of_reference", "the slices have several frames of reference", value=len(frames))
    normal = _normal(slices[0])
    slices = sorted(slices, key=lambda one: float(one.position_mm @ normal))
    slices = _without_copies(slices, normal, flags)
    if len(slices) < 2:
        raise Refusal("too_few_slices", "a volume needs two slices at least", value=len(slices))
    positions = np.array([one.position_mm for one in slices])
    found = Stack(slices, positions @ normal, (positions - positions[0]) @ slices[0].orientation.T, flags)
    _check_gaps(found)
    return found


def _placed(slices: Sequence[Slice], flags: list[Flag]) -> list[Slice]:
    """Those with a position, an orientation and a pixel spacing."""
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    found = [one for one in slices if all(one.header.get(name) not in (None, "") for name in needed)]
    if not found:
        raise Refusal("no_geometry", "no slice has position, orientation and pixel spacing")
    if len(found) < len(slices):
        flags.append(Flag("slices_without_position", f"{len(slices) - len(found)} slices have no position"))
    return found


def _of_one_shape(slices: list[Slice], flags: list[Flag]) -> list[Slice]:
    """The slices that agree in size, spacing and orientation: nearly all, or the series is no volume."""
    groups: dict[tuple[Any, ...], list[Slice]] = {}
    for one in slices:
        groups.setdefault(one.in_plane, []).append(one)
    largest = max(groups.values(), key=len)
    if len(largest) < 0.9 * len(slices):
        raise Refusal(
            "mixed_geometry", "the slices differ in size, spacing or orientation", value=f"{len(groups)} kinds"
        )
    if len(groups) > 1:
        flags.append(Flag("slices_left_out", f"{len(slices) - len(largest)} slices of another geometry were left out"))
    return largest


def _normal(one: Slice) -> np.ndarray:
    row, column = one.orientation
    if abs(row @ column) > 1e-3 or abs(row @ row - 1) > 1e-3 or abs(column @ column - 1) > 1e-3:
        raise Refusal("orientation", "rows and columns are not at right angles", value=one.orientation.tolist())
    normal = np.cross(row, column)
    return normal / np.linalg.norm(normal)


def _without_copies(slices: list[Slice], normal: np.ndarray, flags: list[Flag]) -> list[Slice]:
    """One slice a place. Copies of a slice are dropped; different slices at one place are a refusal."""
    kept: list[Slice] = []
    for one in slices:
        if kept and abs((one.position_mm - kept[-1].position_mm) @ normal) < _SAME_PLACE_MM:
            if not _same_pixels(one, kept[-1]):
                raise Refusal(
                    "several_images_a_slice",
                    "different images lie at the same place: a dynamic or gated series, or several reconstructions",
                    remedy="export one static series.",
                )
        else:
            kept.append(one)
    if len(kept) < len(slices):
        flags.append(Flag("duplicate_slices", f"{len(slices) - len(kept)} slices were there twice"))
    return kept


def _same_pixels(a: Slice, b: Slice) -> bool:
    if a.frame is None and b.frame is None and a.header.get("SOPInstanceUID") == b.header.get("SOPInstanceUID"):
        return True
    return bool(np.array_equal(read_plane(a), read_plane(b)))


def _check_gaps(stack: Stack) -> None:
    gaps, usual = np.diff(stack.along_mm), stack.spacing_mm
    if gaps.max() > max(MAX_GAP_MM, 1.01 * usual):
        raise Refusal(
            "slice_gap",
            f"slices are missing: the largest gap between two is {gaps.max():.1f} mm, the usual one {usual:.1f} mm",
            value=f"{int((gaps > 1.5 * usual).sum())} gaps",
            remedy="export the whole series.",
        )
    if gaps.max() > 1.5 * usual:
        stack.flags.append(
            Flag("missing_slices", f"slices are missing, up to {gaps.max():.1f} mm, and were interpolated")
        )
    elif not stack.is_even:
        stack.flags.append(Flag("uneven_slices", "the slices are unevenly spaced and were interpolated"))
    if not stack.is_straight:
        stack.flags.append(Flag("tilted", "the slices are sheared (gantry tilt) and were interpolated"))


# --- pixels


def read_plane(one: Slice) -> Plane:
    """Voxel values (rows, columns) float32 after slope and intercept. Raises `Refusal` where pixels cannot be read."""
    return _scaled(one, _pixels(one.path, one.frame))


def _pixels(path: Path, frame: int | None) -> np.ndarray:
    try:
        found = read_file(path, pixels=True)
        array = found.pixel_array  # type: ignore[union-attr]
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # every decoder has errors of its own
        raise _damaged(path, error) from None
    if array.ndim > 3 or (array.ndim == 3 and frame is None):
        raise Refusal("pixels", "holds colour or several planes where one grey plane is expected", file=path)
    return array if frame is None or array.ndim == 2 else array[frame]


def _scaled(one: Slice, pixels: np.ndarray) -> Plane:
    slope, intercept = number(one.header, "RescaleSlope"), number(one.header, "RescaleIntercept")
    if pixels.shape != (int(one.header.Rows), int(one.header.Columns)):
        raise Refusal("pixels", "the pixels do not fill rows and columns", file=one.path, value=pixels.shape)
    if slope is None and one.header.get("Modality") == "PT":
        raise Refusal("no_rescale_slope", "has no RescaleSlope", file=one.path, remedy="export the series again.")
    scaled = pixels.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
    return scaled.astype(np.float32)


def _planes(slices: Sequence[Slice]) -> Iterator[Plane]:
    """The planes in order; a multi-frame file is decoded once."""
    decoded: tuple[Path, np.ndarray] | None = None
    for one in slices:
        if one.frame is None:
            yield read_plane(one)
            continue
        if decoded is None or decoded[0] != one.path:
            decoded = (one.path, _all_frames(one))
        yield _scaled(one, decoded[1][one.frame])


def _all_frames(one: Slice) -> np.ndarray:
    array = _pixels(one.path, 0) if int(one.header.get("NumberOfFrames") or 1) == 1 else None
    if array is not None:
        return array[None]
    try:
        return read_file(one.path, pixels=True).pixel_array  # type: ignore[union-attr]
    except InputError:
        raise
    except Exception as error:
        raise _damaged(one.path, error) from None


def assemble(
    found: Stack, factors: Sequence[float], *, outside: float, say: Callable[[int], None] = lambda done: None
) -> sitk.Image:
    """One image of the slices, each times its factor: float32, index axes along rows, columns and normal.

    Sheared slices are shifted within their planes onto the first one's, over a field that holds all of them; uneven
    ones are interpolated linearly onto the usual spacing. `outside` fills what no slice covers.
    """
    rows, columns = int(found.first.header.Rows), int(found.first.header.Columns)
    shifts, (low, size) = _shifts(found, (columns, rows))
    volume = np.empty((len(found.slices), size[1], size[0]), np.float32)
    for place, (plane, factor) in enumerate(zip(_planes(found.slices), factors, strict=True)):
        values = plane if factor == 1 else plane * np.float32(factor)
        volume[place] = values if found.is_straight else _shifted(values, shifts[place], size, outside)
        say(place + 1)
    if not found.is_even:
        volume = _evenly_spaced(volume, found.along_mm, found.spacing_mm)
    return to_image(volume.transpose(2, 1, 0), _grid(found, low, volume.shape[::-1]))


def _shifts(found: Stack, size: tuple[int, int]) -> tuple[np.ndarray, tuple[np.ndarray, tuple[int, int]]]:
    """Shift of each slice in voxels (columns, rows), and first voxel and size of the field that holds all of them."""
    if found.is_straight:
        return np.zeros((len(found.slices), 2)), (np.zeros(2), size)
    voxels = found.offsets_mm / _in_plane_mm(found.first)
    low, high = np.floor(voxels.min(axis=0)), np.ceil(voxels.max(axis=0))
    wide = tuple((np.array(size) + high - low).astype(int).tolist())
    return voxels - low, (low, wide)  # type: ignore[return-value]


def _in_plane_mm(one: Slice) -> np.ndarray:
    """Spacing along a row, and along a column; DICOM gives that between rows first."""
    between_rows, between_columns = (float(value) for value in one.header.PixelSpacing)
    return np.array([between_columns, between_rows])


def _shifted(plane: Plane, shift: np.ndarray, size: tuple[int, int], outside: float) -> Plane:
    canvas = np.full((size[1], size[0]), outside, np.float32)
    canvas[: plane.shape[0], : plane.shape[1]] = plane
    return ndimage.shift(canvas, (shift[1], shift[0]), order=1, mode="constant", cval=outside)


def _evenly_spaced(volume: np.ndarray, along_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
    wanted = along_mm[0] + spacing_mm * np.arange(int(np.ptp(along_mm) / spacing_mm + 1e-3) + 1)
    above = np.clip(np.searchsorted(along_mm, wanted), 1, len(along_mm) - 1)
    share = (wanted - along_mm[above - 1]) / (along_mm[above] - along_mm[above - 1])
    share = np.clip(share, 0, 1).astype(np.float32)[:, None, None]
    return volume[above - 1] * (1 - share) + volume[above] * share


def _grid(found: Stack, low: np.ndarray, size: tuple[int, ...]) -> Grid:
    first = found.first
    in_plane = _in_plane_mm(first)
    count = len(found.along_mm)
    between = float(np.ptp(found.along_mm)) / (count - 1) if found.is_even else found.spacing_mm
    origin = first.position_mm + (low * in_plane) @ first.orientation
    direction = np.column_stack([*_orthonormal(first.orientation), _normal(first)])
    spacing = (float(in_plane[0]), float(in_plane[1]), between)
    return Grid(size, spacing, tuple(origin.tolist()), tuple(direction.ravel().tolist()))  # type: ignore[arg-type]


def _orthonormal(orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns at exactly right angles: headers round to a few digits."""
    row = orientation[0] / np.linalg.norm(orientation[0])
    column = orientation[1] - (orientation[1] @ row) * row
    return row, column / np.linalg.norm(column)


# --- PET and CT


def read_pet_suv(folder: str | Path) -> sitk.Image:
    """The PET series in a folder as SUV of body weight (g/ml), float32, on its own grid (LPS mm).

    Raises `Refusal`, whose `code` gives the reason, where there is none, more than one, or one that cannot be SUV.
    """
    return read_pet(pet_series(Path(folder))).image


def pet_series(folder: Path) -> Series:
    """The one usable PET series below a folder; `Refusal` (`no_pet`, `several_pets`, or why the only one is not)."""
    if not folder.is_dir():
        raise Refusal("no_folder", "there is no such folder", file=folder, remedy="name a folder of DICOM files.")
    found = [series for series in read_series(files_below(folder)) if series.modality == "PT"]
    usable = [series for series in found if why_no_pet(series) is None]
    if not found:
        raise Refusal("no_pet", "holds no PET series", file=folder, remedy="name the folder of a PET series.")
    if not usable:
        code, problem = why_no_pet(found[0])  # type: ignore[misc]
        raise Refusal(code, problem, file=folder, remedy="name the folder of a static, corrected PET series.")
    best = _primary(usable)
    if len(best) > 1:
        raise Refusal(
            "several_pets", "holds several PET series", file=folder, value=len(best), remedy="name one's folder."
        )
    return best[0]


def _primary(series: list[Series]) -> list[Series]:
    """Those that are as the scanner made them, if any are: later copies and reformats give way."""
    original = [one for one in series if not is_derived(one.header)]
    return original or series


def _image_type(header: Dataset) -> list[str]:
    value = header.get("ImageType") or []
    return [str(part).upper() for part in (value if isinstance(value, MultiValue | list) else [value])]


def is_derived(header: Dataset) -> bool:
    return "DERIVED" in _image_type(header) or "SECONDARY" in _image_type(header)


_NO_VOLUME = {"MIP", "MAX_IP", "PROJECTION IMAGE", "REPROJECTION", "LOCALIZER", "SCOUT", "SCREEN SAVE", "MPR"}


def why_no_volume(series: Series) -> tuple[str, str] | None:
    """Code and words for a series that is a view of a volume and not one itself, by what its header says."""
    kinds = {*_image_type(series.header), *(str(part).upper() for part in series.header.get("SeriesType") or [])}
    if kinds & _NO_VOLUME:
        return "no_volume", "is a projection, a scout or a reformat"
    if kinds & {"DYNAMIC", "GATED"}:
        return "dynamic", "is dynamic or gated"
    return None


def why_no_pet(series: Series) -> tuple[str, str] | None:
    """Code and words for a PET series that is not the static, corrected volume; None if it may be."""
    unusable = why_no_volume(series)
    stated = str(series.header.get("CorrectedImage") or "").upper()
    if unusable is None and stated and "ATTN" not in stated:
        return "not_attenuation_corrected", "is not corrected for attenuation"
    return unusable


def read_pet(series: Series, clinical: Clinical | None = None) -> Read:
    """A PET series as SUV of body weight, with its flags. Raises `Refusal`, see `suv.suv_factors` and `stack`."""
    found = stack(series)
    suv = suv_factors([one.header for one in found.slices], clinical)
    image = assemble(found, suv.factors, outside=0.0)
    return Read(image, (*found.flags, *suv.flags, *check_suv_scale(sitk.GetArrayViewFromImage(image))), suv)


def check_suv_scale(values: np.ndarray) -> list[Flag]:
    """Flags of an unlikely scale of SUV; `Refusal` (`implausible_suv`) for an impossible one.

    The body is what exceeds a fiftieth of nearly the hottest voxel: a threshold that does not know the scale.
    """
    most = float(values.max())
    limit = 0.02 * float(np.percentile(values, 99.5))
    body = float(values[values > limit].mean()) if most > limit else 0.0
    scale = f"maximum {most:.3g}, mean of the body {body:.3g}"
    if not (BODY_SUV[0] <= body <= BODY_SUV[1] and most <= MOST_SUV):
        remedy = "check weight, activity and times in the header, or give them in the clinical table."
        raise Refusal("implausible_suv", "the SUV cannot be right", value=scale, remedy=remedy)
    flags = [] if most <= USUAL_MOST_SUV else [Flag("high_suv", f"the highest SUV is {most:.0f}")]
    usual = USUAL_BODY_SUV[0] <= body <= USUAL_BODY_SUV[1]
    return flags if usual else [*flags, Flag("body_suv", f"the mean SUV of the body, {body:.2f}, is unusual")]


def ct_series(folder: Path, frame_uid: str) -> Series:
    """The CT with most slices in a frame of reference (the PET's) below a folder; `Refusal` `no_ct` without one."""
    if not folder.is_dir():
        raise Refusal("no_folder", "there is no such folder", file=folder, remedy="name a folder of DICOM files.")
    found = [one for one in read_series(files_below(folder)) if one.modality == "CT" and why_no_volume(one) is None]
    there = [one for one in found if str(one.header.get("FrameOfReferenceUID", "")) == frame_uid]
    if not there:
        problem = "holds no CT in the PET's frame of reference" if found else "holds no CT series"
        raise Refusal("no_ct", problem, file=folder, remedy="name the folder of the CT of the same examination.")
    return max(there, key=lambda one: (len(one.slices), one.uid))


def read_ct(series: Series) -> Read:
    """A CT series in HU, with its flags. Raises `Refusal`, see `stack`."""
    found = stack(series)
    image = assemble(found, [1.0] * len(found.slices), outside=-1000.0)
    return Read(_as_integers(image), tuple(found.flags))


def _as_integers(image: sitk.Image) -> sitk.Image:
    """HU are whole numbers in nearly all scanners: half the size, and no digit lost."""
    values = sitk.GetArrayViewFromImage(image)
    whole = bool((values == np.rint(values)).all()) and values.min() >= -32768 and values.max() <= 32767
    return sitk.Cast(image, sitk.sitkInt16) if whole else image

"""An image with its geometry: read, write, resample, the study's grid, and back to an original grid.

The image type is `SimpleITK.Image`; physical coordinates are LPS mm; arrays are (x, y, z). NIfTI files are read through
nibabel's header because ITK repairs silently: a truncated file is filled with zeros, a zero pixdim becomes 1 mm, and of
two contradicting orientations it picks one.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import cc3d
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import isal_zlib
from scipy import ndimage

from mtvlib.errors import InputError
from mtvlib.files import atomic_path

_SPACING_LIMITS_MM = (0.1, 20.0)
_ORTHONORMAL_TOLERANCE = 1e-4
# A qform stores a rotation in single precision; near half a turn its corners may be 0.1 mm off without any mistake.
_FORMS_TOLERANCE_MM = 0.2
_CONVERT_AGAIN = "convert the series from DICOM again (dcm2niix, SimpleITK or `mtv import dicom`)."
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_BYTES, _SLACK_BYTES = 2**32, 2**24  # of an unpacked file; what may follow the voxels
_NEARLY = 1e-4  # of a probability: far above what rounding can turn
_ISAL_ERROR = cast("type[Exception]", isal_zlib.error)  # its stub calls it an instance
_DAMAGED = (EOFError, _ISAL_ERROR, zlib.error, gzip.BadGzipFile)
_GZIP = 31  # zlib's name for a gzip header, the largest window and the checksum at the end
_SLAB = 32  # slices at once on an original grid: bounds the memory on a 512 x 512 CT

Identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie: LPS mm, `direction` row-major as in SimpleITK, origin = centre of voxel 0."""

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...] = Identity

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def voxel_ml(self) -> float:
        return math.prod(self.spacing_mm) / 1000

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3): a step of one voxel along each index axis, mm, as columns."""
        return np.reshape(self.direction, (3, 3)) * self.spacing_mm

    def to_mm(self, indices: np.ndarray) -> np.ndarray:
        """Physical points (n, 3) of continuous indices (n, 3)."""
        return indices @ self.matrix.T + self.origin_mm

    def to_indices(self, points_mm: np.ndarray) -> np.ndarray:
        """Continuous indices (n, 3) of physical points (n, 3)."""
        return (points_mm - self.origin_mm) @ np.linalg.inv(self.matrix).T

    def contains(self, points_mm: np.ndarray) -> np.ndarray:
        """Which physical points (n, 3) lie in the field, that is within the outer faces of its voxels."""
        indices = self.to_indices(points_mm)
        return np.all((indices >= -0.5) & (indices < np.array(self.size) - 0.5), axis=1)

    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest LPS coordinates (3,) of the field, outer faces of the voxels included."""
        corners = self.to_mm(np.array(list(product(*((-0.5, side - 0.5) for side in self.size)))))
        return corners.min(0), corners.max(0)

    def slab(self, start: int, stop: int) -> Grid:
        """The part of this grid from slice `start` up to `stop` (exclusive) along its third index axis."""
        return self.part((0, 0, start), (*self.size[:2], stop))

    def part(self, start: tuple[int, int, int], stop: tuple[int, int, int]) -> Grid:
        """The part of this grid from voxel `start` up to `stop` (exclusive)."""
        origin = self.to_mm(np.array([start]))[0]
        x, y, z = (last - first for first, last in zip(start, stop, strict=True))
        return Grid((x, y, z), self.spacing_mm, tuple(origin.tolist()), self.direction)

    def __str__(self) -> str:
        def numbers(values: tuple[float, ...]) -> str:
            return ", ".join(f"{value:.6g}" for value in values)

        return (
            f"size ({numbers(self.size)}), spacing ({numbers(self.spacing_mm)}) mm, "
            f"origin ({numbers(self.origin_mm)}) mm, direction ({numbers(self.direction)})"
        )


# --- arrays


def to_array(image: sitk.Image) -> np.ndarray:
    """Voxels as (x, y, z); a copy."""
    return sitk.GetArrayFromImage(image).T


def to_image(array: np.ndarray, grid: Grid) -> sitk.Image:
    """Image of an array (x, y, z) on `grid`; bool becomes uint8."""
    if array.shape != tuple(grid.size):
        raise ValueError(f"array of shape {array.shape} does not fit the grid's size {grid.size}")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


# --- geometry of two images


def corner_distance_mm(a: Grid, b: Grid) -> float:
    """Largest distance between corresponding corner voxels of two grids of the same size, mm."""
    corners = np.array(list(product(*((0, side - 1) for side in a.size))))
    return float(np.linalg.norm(a.to_mm(corners) - b.to_mm(corners), axis=1).max())


def same_grid(a: sitk.Image | Grid, b: sitk.Image | Grid, tolerance_mm: float = 1e-3) -> bool:
    """Whether two images have the same size and no corner voxel lies more than `tolerance_mm` apart."""
    a, b = _grid(a), _grid(b)
    return tuple(a.size) == tuple(b.size) and corner_distance_mm(a, b) <= tolerance_mm


def check_same_grid(
    a: sitk.Image | Grid,
    b: sitk.Image | Grid,
    *,
    patient: str | None = None,
    file: str | Path | None = None,
    tolerance_mm: float = 1e-3,
) -> None:
    """Raise `InputError` with both geometries unless `same_grid`; `file` is the one of `b`."""
    a, b = _grid(a), _grid(b)
    if same_grid(a, b, tolerance_mm):
        return
    apart = f"{corner_distance_mm(a, b):.4g} mm apart" if tuple(a.size) == tuple(b.size) else "of different size"
    raise InputError(
        f"the grids are {apart}, {tolerance_mm:g} mm are allowed; expected {a}",
        patient=patient,
        file=file,
        value=b,
        remedy="resample one image onto the other's grid (SimpleITK.Resample), or give the file that belongs here.",
    )


def _grid(image: sitk.Image | Grid) -> Grid:
    return image if isinstance(image, Grid) else Grid.of(image)


# --- files


def read_image(path: str | Path, *, patient: str | None = None) -> sitk.Image:
    """Read a NIfTI image: 3D, complete, finite, with one well-defined geometry.

    Floating-point and scaled voxels come as float32, others in their own type. Raises `InputError` (patient, file,
    value, remedy) for a missing, truncated or foreign file, other than three dimensions, no voxels, NaN or infinity, a
    spacing that is not positive or outside 0.1-20 mm, and an orientation that is missing, sheared, or contradictory.
    """
    path = Path(path)
    try:
        raw = _bytes(path)
        header = _header(raw)
        _check_shape(header, len(raw))
        grid = _nifti_grid(header)
        array = _voxels(header, raw)
    except InputError as error:
        raise InputError(
            error.problem, patient=patient, file=path, value=error.value, remedy=error.remedy or _CONVERT_AGAIN
        ) from None
    return to_image(array, grid)


def read_scan(path: str | Path, *, patient: str | None = None) -> sitk.Image:
    """`read_image` for a PET or CT: also refuses an image that has the same value everywhere."""
    image = read_image(path, patient=patient)
    array = sitk.GetArrayViewFromImage(image)
    if array.min() == array.max():
        raise InputError(
            "every voxel has the same value",
            patient=patient,
            file=path,
            value=array.flat[0],
            remedy="export the series again.",
        )
    return image


def read_labels(path: str | Path, classes: tuple[int, ...] = (0, 1, 2), *, patient: str | None = None) -> sitk.Image:
    """`read_image` for a label map: uint8, and only values among `classes`, else `InputError` listing the others."""
    image = read_image(path, patient=patient)
    array = sitk.GetArrayViewFromImage(image)
    known = np.logical_or.reduce([array == number for number in classes])
    foreign = np.unique(array[~known]).tolist()
    if foreign:
        whole = all(float(value).is_integer() for value in foreign)
        raise InputError(
            f"a label map may hold {', '.join(map(str, classes))} only" + ("" if whole else ", not fractions"),
            patient=patient,
            file=path,
            value=", ".join(f"{value:g}" for value in foreign[:5]) + (", ..." if len(foreign) > 5 else ""),
            remedy="recode it: 0 background, 1 primary tumour, 2 lymph node metastasis."
            if whole
            else "resample label maps by nearest neighbour or class by class, and save them as integers.",
        )
    return sitk.Cast(image, sitk.sitkUInt8)


def write_image(image: sitk.Image, path: str | Path) -> None:
    """Write NIfTI (`.nii` or `.nii.gz`, by suffix), atomically; qform and sform carry the same geometry."""
    grid = Grid.of(image)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = grid.matrix, grid.origin_mm
    nifti = nib.Nifti1Image(to_array(image), _RAS_TO_LPS @ affine, dtype=to_array(image).dtype)
    nifti.header.set_xyzt_units("mm")
    nifti.set_qform(nifti.affine, code="scanner")
    nifti.set_sform(nifti.affine, code="scanner")
    with atomic_path(path) as temporary:
        nib.save(nifti, temporary)


def _bytes(path: Path) -> bytes:
    """The uncompressed file. All of it, so that gzip's checksum is verified."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError("is not a NIfTI file (.nii or .nii.gz)")
    try:
        raw = path.read_bytes()
        return _unpacked(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise InputError("there is no such file", remedy="correct the path or put the file there.") from None
    except _DAMAGED as error:
        raise InputError(f"is truncated or damaged ({error})", remedy="copy the file again.") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", remedy="check its permissions.") from None


def _unpacked(packed: bytes) -> bytes:
    """The contents of a gzip file, to its end; one that holds far more than its header tells is refused.

    In one call of ISA-L for the file's first part, nearly always its only one: `gzip.GzipFile` takes twice as
    long. What follows it is left to that, which knows parts and zeros that fill a file up.
    """
    if not packed.startswith(b"\x1f\x8b"):
        raise gzip.BadGzipFile(f"Not a gzipped file ({packed[:2]!r})")
    start, _ = _first_part(packed, nib.Nifti2Header.sizeof_hdr)
    most = min(_told_bytes(start) + _SLACK_BYTES, _MOST_BYTES)
    raw, part = _first_part(packed, most + 1)
    if part.unused_data.strip(b"\0"):
        with gzip.GzipFile(fileobj=io.BytesIO(part.unused_data)) as rest:
            raw += rest.read(most + 1 - len(raw))
    if len(raw) > most:
        raise InputError("unpacks to far more than an image holds", value=f"more than {most} bytes")
    return raw


def _first_part(packed: bytes, most: int) -> tuple[bytes, Any]:
    """Up to so many bytes of a gzip file's first part, and what unpacked them."""
    part = isal_zlib.decompressobj(_GZIP)
    raw = part.decompress(packed, most)
    if len(raw) < most and not part.eof:
        raise EOFError("it ends before the end of the compressed data")
    return raw, part


def _told_bytes(start: bytes) -> int:
    """The most bytes that the voxels can take, by the header's dimensions."""
    dim = [int(side) for side in _header(start)["dim"]]
    return 8 * math.prod(max(1, side) for side in dim[1 : 1 + min(max(dim[0], 0), 7)])


def _header(raw: bytes) -> Any:
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(raw[: kind.sizeof_hdr]):
            return kind.from_fileobj(io.BytesIO(raw), check=False)
    raise InputError("is not a NIfTI file, or its header is damaged", value=f"{len(raw)} bytes")


def _check_shape(header: Any, n_bytes: int) -> None:
    dims = int(header["dim"][0])
    shape = tuple(int(side) for side in header["dim"][1 : dims + 1]) if 1 <= dims <= 7 else ()
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise InputError(
            "must be one three-dimensional image", value=f"shape {shape}", remedy="extract the volume that is meant."
        )
    if min(shape) < 1:
        raise InputError("is empty: it has no voxels", value=f"shape {shape}")
    try:
        dtype = header.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError):
        raise InputError("has an unknown data type", value=f"datatype {int(header['datatype'])}") from None
    if dtype.kind not in "iuf":
        raise InputError("must hold one real number a voxel", value=str(dtype), remedy="export it as grey values.")
    expected = int(header.get_data_offset()) + math.prod(shape) * dtype.itemsize
    if n_bytes < expected:
        raise InputError("is truncated", value=f"{n_bytes} of {expected} bytes", remedy="copy the file again.")


def _nifti_grid(header: Any) -> Grid:
    size: tuple[int, int, int] = tuple(int(side) for side in header["dim"][1:4])  # type: ignore[assignment]
    spacing = tuple(float(side) for side in header["pixdim"][1:4])
    low, high = _SPACING_LIMITS_MM
    if not all(low <= side <= high for side in spacing):  # also false for NaN
        raise InputError(f"the voxel spacing must lie within {low:g} and {high:g} mm", value=f"pixdim {spacing}")
    if int(header["xyzt_units"]) & 7 not in (0, 2):
        raise InputError("lengths must be in mm", value=f"xyzt_units {int(header['xyzt_units'])}")
    forms = _forms(header)
    lps = _RAS_TO_LPS @ forms[0]
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    if not np.allclose(lengths, spacing, rtol=1e-3):
        raise InputError(f"the header contradicts itself: pixdim {_mm(spacing)}, but its axes say {_mm(lengths)}")
    direction = lps[:3, :3] / lengths
    if np.abs(direction.T @ direction - np.eye(3)).max() > _ORTHONORMAL_TOLERANCE:
        raise InputError(
            "the axes are not at right angles (sheared, gantry tilt)",
            value=f"direction {np.round(direction, 5).tolist()}",
            remedy="resample the image onto a grid with orthogonal axes.",
        )
    _check_forms(forms, size)
    return Grid(size, tuple(lengths.tolist()), tuple(lps[:3, 3].tolist()), tuple(direction.ravel().tolist()))


def _forms(header: Any) -> list[np.ndarray]:
    """The RAS affines that the header states, the one to use first: sform, qform."""
    try:
        both = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise InputError(f"the qform is damaged ({error})") from None
    forms = [form for form in both if form is not None]
    if not forms:
        raise InputError("has neither qform nor sform, so its orientation is unknown")
    if not all(np.isfinite(form).all() for form in forms):
        raise InputError("the orientation holds NaN or infinity", value=forms[0].tolist())
    return forms


def _check_forms(forms: list[np.ndarray], size: tuple[int, ...]) -> None:
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in size))])
    apart = float(np.linalg.norm((corners @ (forms[0] - forms[-1]).T), axis=1).max())
    if apart > _FORMS_TOLERANCE_MM:
        raise InputError(
            f"sform and qform disagree by up to {apart:.3g} mm: sform {forms[0].round(4).tolist()}",
            value=f"qform {forms[-1].round(4).tolist()}",
            remedy="keep the right one: nibabel's image.set_qform(image.get_sform()), or the reverse.",
        )


def _mm(values: Any) -> str:
    return " x ".join(f"{value:.4g}" for value in values) + " mm"


def _voxels(header: Any, raw: bytes) -> np.ndarray:
    array = _stored(header, raw).reshape(header.get_data_shape()[:3], order="F")
    array = array.astype(np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("="), copy=False)
    # In double precision the sum of finite single ones is finite, and one pass tells.
    if array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError("holds NaN or infinity", value=f"{bad} of {array.size} voxels")
    return array


def _stored(header: Any, raw: bytes) -> np.ndarray:
    """The voxels in one row, scaled as the header says; without a scale a view of `raw`."""
    if header.get_slope_inter() not in ((None, None), (1, 0)):
        return header.data_from_fileobj(io.BytesIO(raw)).ravel(order="F")
    count = math.prod(header.get_data_shape())
    return np.frombuffer(raw, header.get_data_dtype(), count, int(header.get_data_offset()))


# --- resampling


def resample(image: sitk.Image, grid: Grid, *, outside: float) -> sitk.Image:
    """Linear interpolation onto `grid`, float32; `outside` where the image has no voxel (no smoothing before)."""
    return sitk.Resample(
        image,
        grid.size,
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        grid.origin_mm,
        grid.spacing_mm,
        grid.direction,
        outside,
        sitk.sitkFloat32,
    )


def resample_labels(labels: sitk.Image, grid: Grid) -> sitk.Image:
    """Label map (uint8) on `grid`: linear on each class's indicator, then the class with the largest share.

    Background takes part, ties go to the lower class; so volumes keep, which nearest neighbour does not ensure for
    small structures nor thresholds at other values for large ones (choice; the paper does not say).
    """
    part = around_labels(labels)
    values = [int(value) for value in np.unique(sitk.GetArrayViewFromImage(part)) if value]
    best = np.ones(grid.size, np.float32, order="F")  # background: what the other classes leave; in ITK's order
    shares = []
    for value in values:
        shares.append(to_array(resample(sitk.Cast(part == value, sitk.sitkFloat32), grid, outside=0.0)))
        best -= shares[-1]
    result = np.zeros(grid.size, np.uint8, order="F")
    for value, share in zip(values, shares, strict=True):
        # Shares that are equal but for rounding are ties.
        won = share > best + 1e-5
        result[won], best[won] = value, share[won]
    return to_image(result, grid)


def around_labels(labels: sitk.Image) -> sitk.Image:
    """The part of a label map that holds all labels with one voxel of background around, as far as there is any."""
    array = sitk.GetArrayViewFromImage(labels).T
    slices = []
    for axis in range(3):
        used = np.flatnonzero(array.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = (used[0], used[-1]) if used.size else (0, 0)
        slices.append(slice(max(0, int(first) - 1), min(array.shape[axis], int(last) + 2)))
    return labels[tuple(slices)]


def probabilities_to_labels(probabilities: np.ndarray, grid: Grid, target_grid: Grid) -> sitk.Image:
    """Label map (uint8) on `target_grid` of class probabilities (K, x, y, z) on `grid`.

    Interpolates the probabilities linearly first, then takes the highest (paper, Methods, "Network evaluation"); class
    0 outside of `grid`. Works slab by slab, so memory stays small on a large target, and only where another class than
    0 can win: between voxels in which 0 is the most probable it is so too.
    """
    result = np.zeros(target_grid.size, np.uint8, order="F")
    box = _undecided(probabilities, grid, target_grid)
    if box is not None:
        start, stop = box
        inner = target_grid.part(start, stop)
        maps = [to_image(np.asarray(one, np.float32), grid) for one in probabilities]
        found = result[tuple(slice(*ends) for ends in zip(start, stop, strict=True))]
        for first, slab in _slabs(inner):
            values = [to_array(resample(one, slab, outside=0.0)) for one in maps]
            found[..., first : first + slab.size[2]] = np.argmax(values, axis=0)
    return to_image(result, target_grid)


def _undecided(
    probabilities: np.ndarray, grid: Grid, target: Grid
) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """First and last (exclusive) voxel of `target` within a voxel of `grid` in which class 0 hardly wins, or none."""
    close = probabilities[1:].max(0) > probabilities[0] - _NEARLY
    if not close.any():
        return None
    ends = []
    for axis in range(3):
        used = np.flatnonzero(close.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((used[0] - 1.0, used[-1] + 1.0))  # to the next voxel's centre an interpolation reaches
    corners = target.to_indices(grid.to_mm(np.array(list(product(*ends)))))
    start = np.clip(np.floor(corners.min(0)), 0, target.size).astype(int)
    stop = np.clip(np.ceil(corners.max(0)) + 1, start, target.size).astype(int)
    if (start == stop).any():
        return None
    return tuple(start.tolist()), tuple(stop.tolist())


def _slabs(grid: Grid) -> Iterator[tuple[int, Grid]]:
    for start in range(0, grid.size[2], _SLAB):
        yield start, grid.slab(start, min(start + _SLAB, grid.size[2]))


# --- the study's grid

_BODY_HU, _BODY_SUV = -500.0, 0.3
_IN_PLANE = ndimage.generate_binary_structure(3, 2) * np.array([0, 1, 0])  # neighbours within a slice only
_COARSE_MM = 4.0
_THICK_VOXELS = 7  # side of the square that must fit into the body: couch, headrest and tubes do not hold it
_HEAD_AREA_MM2 = 8000.0  # more than a raised arm, less than a head
_SKULLCAP_MM = 30.0  # from the first slice of that area up to the vertex, with a little air
_OVER_BRAIN_MM = 20.0  # from the upper end of the brain's uptake to the vertex, with a little air
_DISAGREEMENT_MM = 35.0  # between the head's top by the body and by the brain that is no doubt yet


@dataclass(frozen=True)
class AxialCrop:
    """What is kept of a field along the patient's axis: LPS z, mm. `doubts` say why it may be wrong."""

    bottom_mm: float
    top_mm: float
    brain_mm: tuple[float, float] | None = None  # lower and upper end; None if not found or not looked for
    doubts: tuple[str, ...] = ()


def study_grid(
    pet: sitk.Image,
    ct: sitk.Image | None,
    spacing_mm: float,
    crop_shape: tuple[int, int],
    axial_mm: float,
    crop: AxialCrop | None = None,
) -> Grid:
    """The grid of the study: isotropic voxels along the LPS axes, whatever the PET's own orientation.

    In plane `crop_shape` voxels centred on the centre of the PET's field, axially the whole field (paper, Methods:
    2.5 mm, central 128 x 128 crop). A field longer than `axial_mm` is cut to the head and neck, from the vertex down
    `axial_mm` (choice; the paper says only "variable axial crop"); `crop` is that of `axial_crop`, if made already.
    """
    low, high = Grid.of(pet).box_mm()
    kept = crop or axial_crop(pet, ct, axial_mm)
    slices = max(1, int((kept.top_mm - kept.bottom_mm) / spacing_mm + 1e-6))
    size = (*crop_shape, slices)
    centre = np.array([*(low + high)[:2] / 2, kept.top_mm - slices * spacing_mm / 2])
    origin = centre - (np.array(size) - 1) / 2 * spacing_mm
    return Grid(size, (spacing_mm,) * 3, tuple(origin.tolist()))


def axial_crop(pet: sitk.Image, ct: sitk.Image | None, axial_mm: float) -> AxialCrop:
    """The head and neck in a field longer than `axial_mm`; a shorter one is kept whole, unlooked at.

    The vertex is sought twice: by the body's outline on the CT or, without one, on the PET (`body_sections`), and by
    the brain on the PET (`find_brain`). Where they agree, the outline says where the crop begins; where not (arms
    crossed above the head, a couch's end), the brain does. Doubts: they disagree; no brain is found; the field ends
    within the head; the brain is at the field's lower end, as in an image whose header has head and feet exchanged,
    which is then cut from its lower end up.
    """
    low, high = (float(end[2]) for end in Grid.of(pet).box_mm())
    if high - low <= axial_mm:
        return AxialCrop(low, high)
    sections = body_sections(pet, ct)
    brain = find_brain(pet, sections)
    if brain is not None and not brain.upright:
        bottom = max(low, brain.low_mm - _OVER_BRAIN_MM)
        doubt = "the brain lies at the lower end: head and feet may be exchanged"
        return AxialCrop(bottom, min(high, bottom + axial_mm), (brain.low_mm, brain.high_mm), (doubt,))
    top, doubts = _head_top(sections, brain, high)
    ends = None if brain is None else (brain.low_mm, brain.high_mm)
    return AxialCrop(max(low, top - axial_mm), top, ends, tuple(doubts))


def _head_top(sections: BodySections, brain: Brain | None, field_top: float) -> tuple[float, list[str]]:
    by_body = min(field_top, sections.highest_mm(_HEAD_AREA_MM2, below_mm=field_top) + _SKULLCAP_MM)
    if brain is None:
        cut = [_CUT_HEAD] if sections.reach(field_top, _HEAD_AREA_MM2) else []
        return by_body, ["no brain was found in the PET", *cut]
    by_brain = min(field_top, brain.high_mm + _OVER_BRAIN_MM)
    cut = [_CUT_HEAD] if brain.cut else []
    if abs(by_body - by_brain) <= _DISAGREEMENT_MM:
        return by_body, cut
    doubt = f"the head ends at {by_brain:.0f} mm by the brain, which is taken, but at {by_body:.0f} mm by the outline"
    return by_brain, [doubt, *cut]


_CUT_HEAD = "the field ends within the head"


# --- the body's outline


@dataclass(frozen=True)
class BodySections:
    """Area of the largest connected section of the body at each height (LPS z, mm, ascending)."""

    heights_mm: np.ndarray
    areas_mm2: np.ndarray

    def highest_mm(self, area_mm2: float, below_mm: float) -> float:
        """The highest section of at least this area; infinity if there is none below `below_mm`."""
        heights = self.heights_mm[(self.areas_mm2 >= area_mm2) & (self.heights_mm < below_mm)]
        return float(heights[-1]) if heights.size else math.inf

    def largest_mm2(self, low_mm: float, high_mm: float) -> float:
        within = (self.heights_mm >= low_mm) & (self.heights_mm <= high_mm)
        return float(self.areas_mm2[within].max(initial=0.0))

    def reach(self, end_mm: float, area_mm2: float) -> bool:
        """Whether the sections next to a height are at least that large."""
        return self.largest_mm2(end_mm - 2 * _COARSE_MM, end_mm) >= area_mm2


def body_sections(pet: sitk.Image, ct: sitk.Image | None) -> BodySections:
    """The body on the CT (above -500 HU) or, without one, on the PET (SUV 0.3), slice by slice.

    An opening by a 28 mm square removes couch and headrest (choice).
    """
    image, threshold = (pet, _BODY_SUV) if ct is None else (ct, _BODY_HU)
    grid = _coarse_grid(Grid.of(image))
    body = to_array(resample(image, grid, outside=threshold - 1)) > threshold
    square = (_THICK_VOXELS, _THICK_VOXELS, 1)
    solid = ndimage.maximum_filter(ndimage.minimum_filter(body, square), square)
    sections, n = ndimage.label(solid, structure=_IN_PLANE)
    areas = np.bincount(sections.ravel(), minlength=n + 1) * _COARSE_MM**2
    areas[0] = 0
    heights = grid.origin_mm[2] + np.arange(grid.size[2]) * _COARSE_MM
    return BodySections(heights, areas[sections].max(axis=(0, 1)))


def _coarse_grid(grid: Grid) -> Grid:
    """A grid along the LPS axes over the whole field, `_COARSE_MM` apart."""
    low, high = grid.box_mm()
    size = np.maximum(1, ((high - low) / _COARSE_MM).astype(int))
    origin = (low + high) / 2 - (size - 1) / 2 * _COARSE_MM
    return Grid(tuple(size.tolist()), (_COARSE_MM,) * 3, tuple(origin.tolist()))


# --- the brain

_BRAIN_SUV = (2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0)  # one of them parts the brain from what lies beside it
_BRAIN_ML = (600.0, 2500.0)
_BRAIN_MM = np.array([(95.0, 190.0), (120.0, 230.0), (70.0, 200.0)])  # extent along x, y, z
_BRAIN_PART_ML, _BRAIN_PART_MM = 120.0, 20.0  # at least, of a brain that the field cuts
_CUT_AREA_MM2 = 2000.0  # a smaller section at the field's end is the tip of the brain, or its blur
_BRAIN_FILL = 0.55  # share of the ellipsoid of the same extent
_BRAIN_SYMMETRY = 0.75  # overlap (Dice) with its mirror image
_BRAIN_SHARE = 0.45  # of the body's section: no organ of the trunk has as much of it
_BRAIN_BLUR_MM = 4.0
_FAR_MM = 45.0  # beyond the brain only raised arms are left
_BESIDE = 0.6  # largest section beyond the brain, of the largest on the other side


@dataclass(frozen=True)
class Brain:
    """Where the brain lies (LPS z, mm), whether the field cuts it, and on which side of the trunk it is."""

    low_mm: float
    high_mm: float
    cut: bool
    upright: bool
    fill: float  # how much like an ellipsoid: of several candidates the best is the brain


def find_brain(pet: sitk.Image, sections: BodySections) -> Brain | None:
    """The brain in a FDG PET in SUV, or None.

    A component above one of several thresholds with the brain's volume and extent that is compact, symmetric, takes up
    much of the body's section and has the trunk on one side only. So bladder, heart and liver are none, and a tumour
    beside the brain parts from it at some threshold. At the field's end part of a brain is enough. Limits are choices.
    """
    grid = _coarse_grid(Grid.of(pet))
    suv = to_array(resample(pet, grid, outside=0.0))
    suv = ndimage.gaussian_filter(suv, _BRAIN_BLUR_MM / _COARSE_MM)
    found = [brain for level in _BRAIN_SUV for brain in _brains(suv > level, grid, sections)]
    # Upright ones first: a large tumour of a leg is far from the head.
    return max(found, key=lambda brain: (brain.upright, not brain.cut, brain.fill), default=None)


def _brains(hot: np.ndarray, grid: Grid, sections: BodySections) -> Iterator[Brain]:
    numbers = cc3d.connected_components(hot, connectivity=6)
    found = cc3d.statistics(numbers, no_slice_conversion=False)
    for number, (voxels, box) in enumerate(zip(found["voxel_counts"], found["bounding_boxes"], strict=True)):
        if number and _BRAIN_PART_ML <= voxels * grid.voxel_ml <= _BRAIN_ML[1]:
            brain = _as_brain(numbers[box] == number, box, grid, sections)
            if brain is not None:
                yield brain


def _as_brain(part: np.ndarray, box: tuple[slice, slice, slice], grid: Grid, sections: BodySections) -> Brain | None:
    """A component as a brain, or None if it is none."""
    ends = part[:, :, 0] if box[2].start == 0 else part[:, :, -1] if box[2].stop == grid.size[2] else part[:0]
    cut = ends.sum() * _COARSE_MM**2 > _CUT_AREA_MM2
    extent = np.array(part.shape) * _COARSE_MM
    limits = _BRAIN_MM if not cut else np.array([*_BRAIN_MM[:2], (_BRAIN_PART_MM, _BRAIN_MM[2, 1])])
    ml, area = part.sum() * grid.voxel_ml, part.sum(axis=(0, 1)).max() * _COARSE_MM**2
    fill = ml * 1000 / (math.pi / 6 * extent.prod())
    low = grid.origin_mm[2] + (box[2].start - 0.5) * _COARSE_MM
    high = low + extent[2]
    fits = (
        np.all((extent >= limits[:, 0]) & (extent <= limits[:, 1]))
        and (cut or ml >= _BRAIN_ML[0])
        and fill >= _BRAIN_FILL
        and _symmetry(part) >= _BRAIN_SYMMETRY
        and area >= _BRAIN_SHARE * sections.largest_mm2(low, high)
    )
    above, below = sections.largest_mm2(high + _FAR_MM, math.inf), sections.largest_mm2(-math.inf, low - _FAR_MM)
    if not fits or min(above, below) > _BESIDE * max(above, below):
        return None
    return Brain(float(low), float(high), bool(cut), bool(above <= below), float(fill))


def _symmetry(part: np.ndarray) -> float:
    """Overlap (Dice) of a component with its mirror image about its own middle, left to right."""
    padded = np.pad(part, ((2, 2), (0, 0), (0, 0)))
    mirrored = padded[::-1]
    shifts = (np.roll(mirrored, step, axis=0) for step in (-2, -1, 0, 1, 2))
    return float(max((padded & shifted).sum() for shifted in shifts) / part.sum())

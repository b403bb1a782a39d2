"""The same image under two names, however it was stored, and collections that are known to share patients.

An image is known by its *marks*: the local maxima of the smoothed image, each with the pattern of values round it as
ratios to its own value. Such patterns are unlike in any two persons, while they hardly depend on how a scan was stored.
So these are found as the same image, in any combination: another file, compression, voxel type or rounding; other order
or sense of the stored axes; another origin; SUV and Bq/ml, or a wrong scale; another crop, as long as about 14 cm in
each direction are in common; another sampling up to voxels of 5 mm (of a CT with little bone in it, 2.5 mm).

Also found, though not the same: a second scan of a person who lay the same way, and as a rule another reconstruction.
Not found: a person at another time in another posture (only the column `person` can tell); an image with a wrong
spacing, or mirrored or turned without its header saying so; images that share less than `_MARKS_NEEDED` marks, unless
all their voxels are the same; a heavily smoothed copy.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.distance import cdist

from mtvlib.volume import Grid, to_array

Kind = Literal["pet", "ct"]
KINDS: tuple[Kind, ...] = ("pet", "ct")


@dataclass(frozen=True)
class _Look:
    """How a kind of image is looked at. Ratios are of values above `floor` and up to `most`."""

    floor: float
    most: float
    smoothing_mm: float  # standard deviation: so wide that voxel sizes up to 5 mm make little difference
    reach_mm: float  # of a pattern; marks are the maxima within half of it, none is nearer to the field's end


_LOOKS: dict[Kind, _Look] = {
    "pet": _Look(0.0, float(np.finfo(np.float32).max), 4.0, 14.0),
    # From fat to bone: above air all soft tissue is alike, and metal would outshine everything.
    "ct": _Look(-100.0, 500.0, 5.0, 16.0),
}
_SHRUNK_MM = 4.0  # fine voxels are averaged up to about this size, for speed
_FAINT = 0.05  # share of the image's 99th percentile below which maxima are noise of the air
_SAME_PATTERN = 0.3  # largest distance of two patterns; 24 ratios, unlike marks are more than 1 apart as a rule
_NEAR_PATTERN = 0.2  # among all images only patterns so near are looked for, for speed
_ASKED = 40  # patterns of an image that are looked for, those with the fewest others near: they tell most at least cost
_CELL_AXES = 5  # along which patterns are sorted into cells before they are compared
_COMPARED_AT_ONCE = 2**22  # pairs of patterns whose distances are in memory together
_HITS = 2  # of these at one shift, before two images are compared mark by mark
_SAME_PLACE_MM = 4.0
_MARKS_NEEDED = 4
_SHARE_NEEDED = 0.3  # of the marks within the common field; a couch or a mask of the same kind gives far less
_SHARE_OF_COPY = 0.75


def _icosahedron() -> np.ndarray:
    """Unit vectors (12, 3) to its corners: evenly spread directions."""
    golden = (1 + np.sqrt(5)) / 2
    corner = [(0.0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    corners = np.array([np.roll(one, turn) for one in corner for turn in range(3)])
    return corners / np.hypot(1, golden)


_AROUND = np.concatenate([_icosahedron() / 2, _icosahedron()])  # in units of the reach


@dataclass(frozen=True)
class ImagePrint:
    """What an image is known by; some 10 kB for a head and neck, 200 kB for a noisy whole body."""

    digest: bytes  # of all voxels in the order of the patient's axes
    low_mm: np.ndarray  # (3,) of the field
    high_mm: np.ndarray
    marks_mm: np.ndarray  # (n, 3) LPS
    patterns: np.ndarray  # (n, 24): values round each mark in units of the mark's own
    reach_mm: float = 14.0  # from a mark to the end of its pattern

    def marks_within(self, low_mm: np.ndarray, high_mm: np.ndarray) -> int:
        """Number of marks in a box that are far enough from its faces to be marks there too."""
        inside = (self.marks_mm > low_mm + self.reach_mm) & (self.marks_mm < high_mm - self.reach_mm)
        return int(inside.all(axis=1).sum())


@dataclass(frozen=True)
class SameImage:
    """Two images, by number, that are one; `shift_mm` leads from the first's coordinates to the second's."""

    first: int
    second: int
    shift_mm: tuple[float, float, float] | None  # None: all voxels are the same
    marks: int = 0  # in common
    of: int = 0  # marks that the poorer image has in the common field

    @property
    def copy(self) -> bool:
        """Whether it is one scan, not two of a person who lay the same way (whose noise moves a third of the marks)."""
        return self.shift_mm is None or self.marks >= _SHARE_OF_COPY * self.of

    def __str__(self) -> str:
        if self.shift_mm is None:
            return "every voxel is the same"
        moved = ", ".join(str(round(side)) for side in self.shift_mm)
        return f"{self.marks} of {self.of} marks agree, moved by ({moved}) mm"


# --- one image


def image_print(image: sitk.Image, kind: Kind) -> ImagePrint:
    """The print of a PET (any unit) or of a CT in HU."""
    look, (low, high) = _LOOKS[kind], Grid.of(image).box_mm()
    smooth = _smoothed(image, look)
    values, grid = to_array(smooth), Grid.of(smooth)
    indices = _peaks(values, grid, look.reach_mm)
    found = _patterns(values, grid, indices, look.reach_mm) if len(indices) else (np.zeros((0, 3)), np.zeros((0, 24)))
    marks, patterns = (array.astype(np.float32) for array in found)
    return ImagePrint(_digest(image), low, high, marks, patterns, look.reach_mm)


def _digest(image: sitk.Image) -> bytes:
    """Hash of the voxels along the patient's axes; slice by slice, so that no second copy is in memory."""
    grid, digest = Grid.of(image), hashlib.blake2b(digest_size=16)
    orientation = nib.io_orientation(nib.affines.from_matvec(grid.matrix, grid.origin_mm))
    array = nib.apply_orientation(sitk.GetArrayViewFromImage(image).T, orientation)
    digest.update(repr(array.shape).encode())
    for z in range(array.shape[2]):
        digest.update(array[:, :, z].astype(np.float32).tobytes())
    return digest.digest()


def _smoothed(image: sitk.Image, look: _Look) -> sitk.Image:
    """Values above the floor, averaged over fine voxels and blurred along the image's own axes (no interpolation)."""
    spacing, size = np.array(image.GetSpacing()), image.GetSize()
    factors = [int(min(max(_SHRUNK_MM / side, 1), n)) for side, n in zip(spacing + 1e-3, size, strict=True)]
    above = sitk.Cast(sitk.BinShrink(image, factors), sitk.sitkFloat32) - look.floor
    above = sitk.Clamp(above, sitk.sitkFloat32, 0.0, look.most - look.floor)
    return sitk.SmoothingRecursiveGaussian(above, look.smoothing_mm) if min(above.GetSize()) >= 4 else above


def _peaks(values: np.ndarray, grid: Grid, reach_mm: float) -> np.ndarray:
    """Indices (n, 3) of the local maxima that are no noise of the air and lie away from the field's end."""
    spacing = np.array(grid.spacing_mm)
    sides = tuple(2 * np.rint(reach_mm / 2 / spacing).astype(int) + 1)
    faint = _FAINT * float(np.percentile(values[::2, ::2, ::2], 99))
    highest = values == ndimage.maximum_filter(values, sides, mode="nearest")
    indices = np.argwhere(highest & (values > max(faint, 1e-6)))
    margin = np.ceil(reach_mm / spacing)
    return indices[np.all((indices >= margin) & (indices <= np.array(grid.size) - 1 - margin), axis=1)]


def _patterns(values: np.ndarray, grid: Grid, indices: np.ndarray, reach_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Marks (n, 3), mm, and their patterns (n, 24), at the maxima of the parabolas through each peak."""
    coefficients = ndimage.spline_filter(values, output=np.float32)
    marks = grid.to_mm(indices + _to_top(values, indices))

    def at(points: np.ndarray) -> np.ndarray:
        places = grid.to_indices(points.reshape(-1, 3)).T
        sampled = ndimage.map_coordinates(coefficients, places, order=3, prefilter=False, mode="nearest")
        return sampled.reshape(points.shape[:-1])

    patterns = at(marks[:, None] + reach_mm * _AROUND) / at(marks)[:, None]
    clear = patterns.mean(axis=1) < 0.95  # flat maxima move with the noise of rounding
    return marks[clear], patterns[clear]


def _to_top(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """From each peak's voxel to the top of a parabola through its neighbours, in voxels, axis by axis."""
    steps = np.zeros(indices.shape)
    for axis, one in enumerate(np.eye(3, dtype=int)):
        before, here, after = (values[tuple((indices + k * one).T)] for k in (-1, 0, 1))
        bend = before - 2 * here + after
        steps[:, axis] = np.where(bend < 0, (before - after) / (2 * np.minimum(bend, -1e-12)), 0)
    return np.clip(steps, -0.5, 0.5)


# --- many images


def same_images(prints: Sequence[ImagePrint]) -> list[SameImage]:
    """All pairs of images that are one, sorted; of images that are the same voxel by voxel, each with the first."""
    first: dict[bytes, int] = {}
    found = [
        SameImage(first[one.digest], number, None)
        for number, one in enumerate(prints)
        if first.setdefault(one.digest, number) != number
    ]
    found += _alike(prints, sorted(first.values()))
    return sorted(found, key=lambda pair: (pair.second, pair.first))


def _alike(prints: Sequence[ImagePrint], numbers: Sequence[int]) -> Iterator[SameImage]:
    """Pairs among these images that share marks."""
    for first, second in _candidates([prints[number] for number in numbers]):
        pair = _compared(prints, numbers[first], numbers[second])
        if pair:
            yield pair


def _candidates(prints: Sequence[ImagePrint]) -> list[tuple[int, int]]:
    """Pairs of images, sorted, that have near patterns at one shift, among those that each image is asked for."""
    sizes = np.array([len(one.patterns) for one in prints], int)
    owner = np.repeat(np.arange(len(prints)), sizes)
    marks = np.concatenate([np.zeros((0, 3), np.float32), *(one.marks_mm for one in prints)])
    cells = Cells(np.concatenate([np.zeros((0, 24), np.float32), *(one.patterns for one in prints)]), _NEAR_PATTERN)
    by_crowd = np.lexsort((cells.crowd(), owner))
    asked = np.zeros(len(owner), bool)
    asked[by_crowd] = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < _ASKED
    hits = [np.zeros(0, int)]
    for one, other in cells.near(asked):
        one, other = np.minimum(one, other), np.maximum(one, other)  # asked from both sides it is one hit
        hits.append((one * len(owner) + other)[owner[one] != owner[other]])
    keys, pairs = _of_several(np.unique(np.concatenate(hits)), owner, len(prints))
    one, other = np.divmod(keys, max(len(owner), 1))
    pairs = np.unique(_at_one_shift(pairs, marks[other] - marks[one]))
    return list(zip(*(side.tolist() for side in np.divmod(pairs, max(len(prints), 1))), strict=True))


def _of_several(keys: np.ndarray, owner: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Those hits, numbers (n,) of two marks, whose two images have several, and the numbers of these images."""
    pairs = owner[keys // max(len(owner), 1)] * images + owner[keys % max(len(owner), 1)]
    several = _often(pairs)
    return keys[several], pairs[several]


def _often(numbers: np.ndarray) -> np.ndarray:
    """Whether each of the numbers (n,) is there `_HITS` times."""
    _, which, times = np.unique(numbers, return_inverse=True, return_counts=True)
    return times[which] >= _HITS


def _at_one_shift(pairs: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Those of the pairs (n,) of which several shifts (n, 3) are the same place, and some that are nearly.

    Shifts that differ by less than `_SAME_PLACE_MM` along each axis share a box twice as wide in one of eight grids.
    """
    found = [np.zeros(0, int)]
    for grid in itertools.product((0.0, 0.5), repeat=3):
        boxes = np.floor(shifts / (2 * _SAME_PLACE_MM) + grid).astype(int)
        _, alike = np.unique(np.column_stack([pairs, boxes]), axis=0, return_inverse=True)
        found.append(pairs[_often(alike)])
    return np.concatenate(found)


class Cells:
    """Patterns (n, 24) sorted into cells as wide as a radius, along the few axes in which they differ most.

    Those of a cell have all that is nearer than the radius in it or in the cells around it: with some hundredths of all
    they have to be compared. (In 24 dimensions a tree is no better than comparing all with all.)
    """

    def __init__(self, patterns: np.ndarray, radius: float) -> None:
        self.radius = radius
        turned = _along_main_axes(patterns) if len(patterns) else patterns
        cells = np.floor(turned[:, :_CELL_AXES] / radius).astype(int)
        cells += 1 - cells.min(axis=0, initial=0)
        # A cell's number; those of the neighbours along the last axis follow each other.
        weights = np.cumprod([1, *(cells.max(axis=0, initial=0) + 2)[:0:-1]])[::-1]
        numbers = cells @ weights
        self.order = np.argsort(numbers, kind="stable")
        self.sorted, numbers = turned[self.order].astype(np.float32, copy=False), numbers[self.order]
        del turned
        around = np.array(list(itertools.product((-1, 0, 1), repeat=_CELL_AXES - 1))) @ weights[:-1]
        own, self.starts, self.sizes = np.unique(numbers, return_index=True, return_counts=True)
        self.firsts = np.searchsorted(numbers, own[:, None] + around - 1)  # (cells, rows of neighbours)
        self.ends = np.searchsorted(numbers, own[:, None] + around + 1, side="right")

    def crowd(self) -> np.ndarray:
        """How many patterns (n,) lie in the cell of each and around it."""
        found = np.empty(len(self.order), int)
        found[self.order] = np.repeat((self.ends - self.firsts).sum(axis=1), self.sizes)
        return found

    def near(self, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers (k,) of patterns that were `asked` (n,) for and, beside them, of those nearer than the radius."""
        squares = np.einsum("ij,ij->i", self.sorted, self.sorted)
        for start, size, first, last in zip(self.starts, self.sizes, self.firsts, self.ends, strict=True):
            members = np.arange(start, start + size)[asked[self.order[start : start + size]]]
            if not len(members):
                continue
            others = np.concatenate([np.arange(*pair) for pair in zip(first, last, strict=True)])
            theirs = self.sorted[others].T
            for part in np.array_split(members, 1 + len(members) * len(others) // _COMPARED_AT_ONCE):
                apart = squares[part][:, None] + squares[others] - 2 * self.sorted[part] @ theirs
                one, other = np.nonzero(apart < self.radius**2)
                yield self.order[part[one]], self.order[others[other]]


def _along_main_axes(points: np.ndarray) -> np.ndarray:
    """Points (n, d) turned so that they spread most along the first axis, then along the second, ..."""
    centred = points - points.mean(axis=0, dtype=float).astype(points.dtype)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1]


def _compared(prints: Sequence[ImagePrint], first: int, second: int) -> SameImage | None:
    """The pair, if one shift brings most of the marks of the common field onto each other."""
    a, b = prints[first], prints[second]
    apart = cdist(a.patterns, b.patterns)
    like = apart.argmin(axis=1)
    shifts = (b.marks_mm[like] - a.marks_mm)[apart.min(axis=1) < _SAME_PATTERN]
    agree = cdist(shifts, shifts) < _SAME_PLACE_MM
    best = agree[agree.sum(axis=1).argmax()]
    shift, marks = shifts[best].mean(axis=0), int(best.sum())
    of = min(a.marks_within(b.low_mm - shift, b.high_mm - shift), b.marks_within(a.low_mm + shift, a.high_mm + shift))
    if marks < _MARKS_NEEDED or marks < _SHARE_NEEDED * of:
        return None
    return SameImage(first, second, tuple(shift.tolist()), marks, max(marks, of))


# --- collections


@dataclass(frozen=True)
class Overlap:
    """Two public collections that share patients under other names; patterns of their sites' and patients' names."""

    names: tuple[str, str]
    patterns: tuple[str, str]
    why: str


# HECKTOR's centres and MD Anderson: https://hecktor.grand-challenge.org and TCIA, by names and clinical tables.
OVERLAPS = (
    Overlap(
        ("Head-Neck-PET-CT", "HECKTOR"),
        (r"head.?neck.?pet.?ct|^HN-(CHUM|CHUS|HGJ|HMR)(?![a-z])", r"hecktor|^(CHUM|CHUS|HGJ|HMR)(?![a-z])"),
        "HECKTOR's cases of CHUM, CHUS, HGJ and HMR are patients of Head-Neck-PET-CT",
    ),
    Overlap(
        ("HNSCC", "HECKTOR"),
        (r"(?<!TCGA-)\bHNSCC(?![a-z])", r"hecktor|^MDA(?![a-z])"),
        "HECKTOR's cases of MDA and the collection HNSCC are both of MD Anderson and share patients",
    ),
)


@dataclass(frozen=True)
class Shared:
    """A known overlap in a cohort: the rows, by number, of each of the two collections."""

    overlap: Overlap
    rows: tuple[list[int], list[int]]


def shared_collections(names: Mapping[int, Sequence[str]]) -> list[Shared]:
    """Known overlaps of which both collections occur; `names` by row: of its site, its collection and its patient.

    A row that is of the first collection is not of the second, whatever its site is called.
    """
    found = []
    for overlap in OVERLAPS:
        first, second = (
            [row for row, texts in names.items() if any(re.search(pattern, text, re.IGNORECASE) for text in texts)]
            for pattern in overlap.patterns
        )
        second = sorted(set(second) - set(first))
        if first and second:
            found.append(Shared(overlap, (first, second)))
    return found

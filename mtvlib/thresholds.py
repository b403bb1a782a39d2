"""Delineation by a threshold of the SUV, lesion by lesion: what PET alone gives once somebody has shown the lesions.

Every method here needs a seed for each lesion and works within a search region around it. So it cannot miss a lesion
whose seed is above the threshold, nor invent one far away, nor take a node for a primary tumour. Beside a method that
finds and tells apart the lesions by itself, its overlap is an upper bound.

The methods are families of AAPM TG-211 (Hatt et al. 2017, Med Phys 44:e1). The adaptive threshold is the family of the
paper's reference (ROVER; Hofheinz et al. 2013, Med Phys 40:082503), T_abs = T (R - Bg) + Bg with T = 0.39. What that
formula leaves open is our choice and no claim about ROVER: R is the highest SUV of the seed, Bg the median SUV at 10 to
20 mm from the region of interest (air included, other lesions' search regions not), and the iteration begins at Bg = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cc3d
import numpy as np
from scipy import ndimage

from mtvlib.classes import NODES
from mtvlib.errors import InputError
from mtvlib.lesions import Box, Connectivity, bounding_box, components

MARGIN_MM = 10.0  # of the search region round a seed: choice
ADAPTIVE_T = 0.39  # Hofheinz et al. 2013
SHELL_MM = (10.0, 20.0)  # where the background is measured, from the region of interest: choice
MOST_ROUNDS = 20  # of the adaptive threshold; a handful is usual


@dataclass(frozen=True)
class Search:
    """Where one lesion is delineated: arrays (x, y, z) of the volume's part `box`, which the shell fits into."""

    label: int  # the seed's class
    box: Box
    suv: np.ndarray
    allowed: np.ndarray  # bool: the search region
    foreign: np.ndarray  # bool: the search regions of other lesions
    seed: tuple[int, ...]  # the seed's hottest voxel, in the box
    spacing_mm: tuple[float, ...]
    connectivity: Connectivity

    @property
    def suv_max(self) -> float:
        return float(self.suv[self.seed])

    def above(self, threshold: float) -> np.ndarray:
        """The part of the search region at or above the threshold that is connected to the seed."""
        hot = self.allowed & (self.suv >= threshold)
        if not hot[self.seed]:
            return np.zeros_like(hot)
        numbers = cc3d.connected_components(hot, connectivity=self.connectivity)
        return numbers == numbers[self.seed]


# --- the methods


def fixed(search: Search, suv: float) -> np.ndarray:
    """SUV of at least `suv`."""
    return search.above(suv)


def relative(search: Search, share: float) -> np.ndarray:
    """At least that share of the lesion's SUVmax."""
    return search.above(share * search.suv_max)


def adaptive(search: Search) -> np.ndarray:
    """T (R - Bg) + Bg, with the background round the region that the last threshold gave, until the region stays.

    It stops as well where the shell has no voxel left, or after 20 rounds.
    """
    region = search.above(ADAPTIVE_T * search.suv_max)
    for _ in range(MOST_ROUNDS):
        background = _background(search, region)
        if background is None:
            return region
        before, region = region, search.above(ADAPTIVE_T * (search.suv_max - background) + background)
        if np.array_equal(before, region):
            return region
    return region


def _background(search: Search, region: np.ndarray) -> float | None:
    """Median SUV in the shell round a region; None if the region or the shell is empty."""
    if not region.any():
        return None
    box = _grown(bounding_box(region), SHELL_MM[1], search.spacing_mm, region.shape)
    distance = ndimage.distance_transform_edt(~region[box], sampling=search.spacing_mm)
    shell = (distance > SHELL_MM[0]) & (distance <= SHELL_MM[1]) & ~search.foreign[box]
    return float(np.median(search.suv[box][shell])) if shell.any() else None


METHODS: dict[str, tuple[str, Callable[[Search], np.ndarray]]] = {
    "suv_2_5": ("SUV 2.5", partial(fixed, suv=2.5)),
    "suv_4_0": ("SUV 4.0", partial(fixed, suv=4.0)),
    "max_41": ("41 % of SUVmax", partial(relative, share=0.41)),
    "max_50": ("50 % of SUVmax", partial(relative, share=0.50)),
    "adaptive": ("Adaptive threshold", adaptive),
}


def threshold_methods() -> dict[str, str]:
    """Name of each method, safe as a folder's name, and its label for readers."""
    return {name: label for name, (label, _) in METHODS.items()}


# --- delineating


def delineate(
    method: str,
    suv: np.ndarray,
    seeds: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    margin_mm: float = MARGIN_MM,
    connectivity: Connectivity = 26,
) -> np.ndarray:
    """Label map (x, y, z) uint8 of a method; `seeds` is a reference, or a label map of regions or points.

    Each component of `seeds` of one class is one lesion. Its search region are the voxels within `margin_mm` of it, cut
    halfway to other seeds; what is found gets the seed's class. A seed of one voxel belongs on the hottest voxel of the
    lesion. Empty where the seed lies below the threshold. Raises `InputError` for an unknown method or unfit arrays.
    """
    return delineate_all(suv, seeds, spacing_mm, margin_mm=margin_mm, connectivity=connectivity, methods=[method])[
        method
    ]


def delineate_all(
    suv: np.ndarray,
    seeds: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    margin_mm: float = MARGIN_MM,
    connectivity: Connectivity = 26,
    methods: Sequence[str] = tuple(METHODS),
) -> dict[str, np.ndarray]:
    """The label maps of several methods, see `delineate`; they share the search regions."""
    _check(suv, seeds, methods)
    spacing = tuple(float(side) for side in spacing_mm)
    labels = {name: np.zeros(suv.shape, np.uint8) for name in methods}
    part = _part(seeds, margin_mm, spacing)
    for search in _searches(suv[part], seeds[part], spacing, margin_mm, connectivity):
        for name in methods:
            labels[name][part][search.box][METHODS[name][1](search)] = search.label
    return labels


def searches(
    suv: np.ndarray,
    seeds: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    margin_mm: float = MARGIN_MM,
    connectivity: Connectivity = 26,
) -> tuple[Box, list[Search]]:
    """What `delineate` works on, for whoever tries many thresholds: the search of each lesion, in a part of the volume.

    The boxes of the searches count from that part's corner.
    """
    _check(suv, seeds, ())
    spacing = tuple(float(side) for side in spacing_mm)
    part = _part(seeds, margin_mm, spacing)
    return part, list(_searches(suv[part], seeds[part], spacing, margin_mm, connectivity))


def _part(seeds: np.ndarray, margin_mm: float, spacing_mm: Sequence[float]) -> Box:
    """All that the searches need: a CT's grid may be huge."""
    return _grown(bounding_box(seeds), margin_mm + SHELL_MM[1], spacing_mm, seeds.shape)


def _check(suv: np.ndarray, seeds: np.ndarray, methods: Sequence[str]) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError("is no threshold method", value=unknown[0], remedy=f"choose one of {', '.join(METHODS)}.")
    if suv.shape != seeds.shape or suv.ndim != 3:
        shapes = {"SUV": suv.shape, "seeds": seeds.shape}
        raise InputError("SUV and seeds differ in shape or are not 3D", value=shapes)
    if seeds.dtype.kind not in "ui" or seeds.max(initial=0) > NODES or seeds.min(initial=0) < 0:
        raise InputError("seeds must hold the integer classes 0, 1, 2", value=str(seeds.dtype))


def _searches(
    suv: np.ndarray, seeds: np.ndarray, spacing_mm: tuple[float, ...], margin_mm: float, connectivity: Connectivity
) -> Iterator[Search]:
    """The search of each lesion, in the order of their numbers."""
    lesions, numbers = _lesions(seeds, connectivity)
    owners = _search_regions(numbers, lesions, spacing_mm, margin_mm)
    for number, box in lesions.items():
        voxels = np.argwhere(numbers[box] == number) + [side.start for side in box]
        hottest = voxels[np.argmax(suv[tuple(voxels.T)])]
        around = _grown(box, margin_mm + SHELL_MM[1], spacing_mm, suv.shape)
        part = owners[around]
        yield Search(
            label=int(seeds[tuple(hottest)]),
            box=around,
            suv=suv[around],
            allowed=part == number,
            foreign=(part != number) & (part > 0),
            seed=tuple(int(place - side.start) for place, side in zip(hottest, around, strict=True)),
            spacing_mm=spacing_mm,
            connectivity=connectivity,
        )


def _lesions(seeds: np.ndarray, connectivity: Connectivity) -> tuple[dict[int, Box], np.ndarray]:
    """Box of each component of one class by number, and the map of the numbers."""
    numbers = components(seeds.astype(np.uint8), connectivity).astype(np.int32)
    return dict(enumerate(ndimage.find_objects(numbers), start=1)), numbers


def _search_regions(
    numbers: np.ndarray, lesions: Mapping[int, Box], spacing_mm: Sequence[float], margin_mm: float
) -> np.ndarray:
    """Number of the nearest lesion within `margin_mm` of each voxel, 0 for none; at equal distance the lower number."""
    owners = np.zeros(numbers.shape, np.int32)
    nearest = np.full(numbers.shape, np.inf, np.float32)
    for number, box in lesions.items():
        around = _grown(box, margin_mm, spacing_mm, numbers.shape)
        distance = ndimage.distance_transform_edt(numbers[around] != number, sampling=spacing_mm)
        closer = (distance <= margin_mm) & (distance < nearest[around])
        owners[around][closer], nearest[around][closer] = number, distance[closer]
    return owners


def _grown(box: Box, margin_mm: float, spacing_mm: Sequence[float], shape: Sequence[int]) -> Box:
    """A box with `margin_mm` on every side, as far as the volume reaches."""
    steps = [int(np.ceil(margin_mm / side)) for side in spacing_mm]
    first, second, third = (
        slice(max(0, side.start - step), min(length, side.stop + step))
        for side, step, length in zip(box, steps, shape, strict=True)
    )
    return first, second, third

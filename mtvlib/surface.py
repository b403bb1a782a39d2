"""Distances between the surfaces of two masks: surface DSC, HD95 and ASSD, in mm.

A surface is made of elements (Nikolov et al. 2021, doi 10.2196/26151): one at every corner of the voxel lattice where
voxels inside and outside meet. Its area is that of the marching-cubes triangles between the eight voxels round the
corner (Lorensen and Cline 1987); distances run from corner to corner. Means and percentiles weigh elements by area:
counted alike, oblique faces would weigh more than straight ones. Beyond the array there is background. docs/metrics.md
tells what the metrics give for empty masks, and where other programs define them otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtvlib.classes import TARGETS, target_mask
from mtvlib.intervals import Bootstrap, Estimate, ratio
from mtvlib.lattice import areas_mm2, neighbour_code
from mtvlib.lesions import bounding_box

TOLERANCES_MM = {"2_5mm": 2.5, "5mm": 5.0}  # one and two voxels of the paper's grid
PERCENTILE = 95.0
MEASURES = (*(f"surface_dsc_{name}" for name in TOLERANCES_MM), "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class Surface:
    """The n elements of a surface: corners of the voxel lattice (n, 3) int, (0, 0, 0) before voxel 0; areas (n,)."""

    corners: np.ndarray
    area_mm2: np.ndarray


@dataclass(frozen=True)
class Distances:
    """From each element of two surfaces to the other surface: distances and areas (n,) of both together.

    `of_reference` (n,) bool tells whose elements they are.
    """

    distance_mm: np.ndarray
    area_mm2: np.ndarray
    of_reference: np.ndarray


def surface(mask: np.ndarray, spacing_mm: Sequence[float]) -> Surface:
    """The surface of a mask (x, y, z) bool; without elements if the mask is empty."""
    box = bounding_box(mask)
    code = neighbour_code(mask[box])
    places = np.flatnonzero((code > 0) & (code < 255))
    corners = np.column_stack(np.unravel_index(places, code.shape)) + [side.start for side in box]
    return Surface(corners, element_areas_mm2(spacing_mm)[code.ravel()[places]])


def element_areas_mm2(spacing_mm: Sequence[float]) -> np.ndarray:
    """Area of the element of each neighbour code, (256,).

    Of the two sets of voxels, inside and outside, the smaller is cut off (where both have four, that inside): voxels
    that meet only across an edge or the corner are cut off one by one. A mask and its complement so have one surface.
    """
    smaller = [code if code.bit_count() <= 4 else 255 - code for code in range(256)]
    return areas_mm2("lorensen", *(float(side) for side in spacing_mm))[smaller]


def surface_distances(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> Distances:
    """Distances between the surfaces of two masks (x, y, z) bool on one grid, neither of them empty."""
    one, other = surface(reference, spacing_mm), surface(prediction, spacing_mm)
    return Distances(
        np.concatenate([_nearest_mm(one, other, spacing_mm), _nearest_mm(other, one, spacing_mm)]),
        np.concatenate([one.area_mm2, other.area_mm2]),
        np.repeat([True, False], [len(one.corners), len(other.corners)]),
    )


def _nearest_mm(own: Surface, other: Surface, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance of each element to the nearest of the other surface, (n,).

    Found in a tree of elements: unlike that of a distance transform, its cost does not grow with the box round both
    masks, which is large where lesions lie on both sides of a neck or a wrong one lies far away.
    """
    from scipy.spatial import KDTree  # not needed for delineating a patient

    spacing = np.asarray(spacing_mm, float)
    tree = KDTree(other.corners * spacing, leafsize=24, balanced_tree=False)  # a third faster than with the defaults
    _, nearest = tree.query(own.corners * spacing)
    return np.sqrt((((own.corners - other.corners[nearest]) * spacing) ** 2).sum(axis=1))


# --- one patient


def surface_dsc(distances: Distances, tolerance_mm: float) -> float:
    """Share of both surfaces' area that lies within the tolerance (that included) of the other surface."""
    # A relative 1e-9 keeps a distance of exactly the tolerance, whatever the rounding of the voxel's sides.
    within = distances.distance_mm <= tolerance_mm * (1 + 1e-9)
    return float(distances.area_mm2[within].sum() / distances.area_mm2.sum())


def hd95_mm(distances: Distances) -> float:
    """The larger of the 95th percentiles of the distances from the one surface to the other and back, by area."""
    sides = (distances.of_reference, ~distances.of_reference)
    return max(_percentile_mm(distances.distance_mm[side], distances.area_mm2[side]) for side in sides)


def _percentile_mm(distance_mm: np.ndarray, area_mm2: np.ndarray) -> float:
    """The smallest distance within which at least 95 % of the area lie."""
    order = np.lexsort((area_mm2, distance_mm))  # by area too, so that a mirrored patient has the same rounding
    share = np.cumsum(area_mm2[order]) / area_mm2.sum()
    return float(distance_mm[order[min(int(np.searchsorted(share, PERCENTILE / 100)), len(order) - 1)]])


def assd_mm(distances: Distances) -> float:
    """Average symmetric surface distance: the mean over the area of both surfaces together."""
    return float(distances.distance_mm @ distances.area_mm2 / distances.area_mm2.sum())


def boundary(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float | None]:
    """`surface_dsc_2_5mm`, `surface_dsc_5mm`, `hd95_mm` and `assd_mm` of two masks (x, y, z) bool on one grid.

    Surface DSC as the DSC: 1 if both are empty, 0 if one is. Distances are None then: an empty mask has no surface.
    """
    empty = not reference.any(), not prediction.any()
    if any(empty):
        overlaps = {f"surface_dsc_{name}": float(all(empty)) for name in TOLERANCES_MM}
        return {**overlaps, "hd95_mm": None, "assd_mm": None}
    distances = surface_distances(reference, prediction, spacing_mm)
    overlaps = {f"surface_dsc_{name}": surface_dsc(distances, mm) for name, mm in TOLERANCES_MM.items()}
    return {**overlaps, "hd95_mm": hd95_mm(distances), "assd_mm": assd_mm(distances)}


def boundaries(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float | None]:
    """`boundary` of each target of two label maps (x, y, z), under the names of `columns`."""
    row: dict[str, float | None] = {}
    for target in TARGETS:
        values = boundary(target_mask(reference, target), target_mask(prediction, target), spacing_mm)
        row |= dict(zip(columns(target), values.values(), strict=True))
    return row


def columns(target: str) -> list[str]:
    """Columns of patients.csv: `surface_dsc_2_5mm_primary`, `surface_dsc_5mm_primary`, `hd95_primary_mm`, ..."""
    return [*(f"surface_dsc_{name}_{target}" for name in TOLERANCES_MM), f"hd95_{target}_mm", f"assd_{target}_mm"]


# --- the summary


def summarise_boundary(
    man_ml: np.ndarray, cnn_ml: np.ndarray, values: np.ndarray, bootstrap: Bootstrap, absent: str
) -> dict[str, Any]:
    """Boundary of a partition from the patients' volumes (n,) and `values` (n, 4) in the order of `MEASURES`.

    Of the surface DSC the mean, also without the patients in whom both masks are empty, and the median; of the
    distances, NaN where undefined, the median of the others. `n_distance_undefined` patients have an empty mask; among
    them are those who were missed altogether (`n_one_empty`), so these medians flatter a network that misses patients.
    All null for the reason `absent` if both masks are empty in all patients.
    """
    empty = np.column_stack([man_ml, cnn_ml]) == 0
    both, either = empty.all(axis=1), empty.any(axis=1)
    counts = {"n_distance_undefined": int(either.sum()), "n_one_empty": int((either & ~both).sum())}
    estimates = _means(values[:, : len(TOLERANCES_MM)], ~both, bootstrap) | _medians(values, bootstrap)
    if both.all():
        nothing = {name: None for key in estimates for name in (key, f"{key}_ci95")}
        return {**nothing, **counts, "reason": absent}
    block: dict[str, Any] = {}
    for key, estimate in estimates.items():
        block |= estimate.entries(key)
    return block | counts


def _means(overlaps: np.ndarray, scored: np.ndarray, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Means of the patients' surface DSC (n, 2): of all patients, and of those `scored` (n,), with a mask not empty."""
    names = [f"mean_{name}" for name in MEASURES[: len(TOLERANCES_MM)]]
    counts = np.column_stack([overlaps, np.ones(len(scored)), overlaps * scored[:, None], scored])
    shares = dict.fromkeys(names, len(scored))
    shares |= {f"{name}_without_both_empty": int(scored.sum()) for name in names}

    def means(sums: np.ndarray) -> dict[str, np.ndarray]:
        halves = np.split(sums, 2, axis=-1)  # of all patients, of those scored
        values = np.concatenate([ratio(half[..., :-1], half[..., -1:]) for half in halves], axis=-1)
        return dict(zip(shares, np.moveaxis(values, -1, 0), strict=True))

    return bootstrap.of_sums(counts, means, shares=shares)


def _medians(values: np.ndarray, bootstrap: Bootstrap) -> dict[str, Estimate]:
    names = [f"median_{name}" for name in MEASURES]

    def medians(sample: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, np.moveaxis(_median(sample), -1, 0), strict=True))

    return bootstrap.of_sample(values, medians, dict.fromkeys(names, "in no patient do both masks hold the target"))


def _median(sample: np.ndarray) -> np.ndarray:
    """Median over the patients of samples (..., n, k) in whom a value is defined: (..., k), NaN if in none."""
    ordered = np.sort(sample, axis=-2)  # NaN last
    known = (~np.isnan(sample)).sum(axis=-2, keepdims=True)
    middle = (np.maximum(known - 1, 0) // 2, known // 2)
    low, high = (np.take_along_axis(ordered, place, axis=-2) for place in middle)
    return np.where(known > 0, (low + high) / 2, np.nan)[..., 0, :]

"""Contours to masks and masks to contours.

A voxel belongs to a region when its centre lies inside. A contour stands for the slab around its plane, half way to the
neighbouring planes and, at the two ends, half a plane spacing further: so the volume is the sum of area times spacing,
and no shape is invented between planes. Contours of one plane follow the even-odd rule: an inner contour is a hole, and
so is a keyhole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtvlib.errors import Refusal
from mtvlib.volume import Grid

SAME_PLANE_MM = 0.05  # less than any slice spacing: what contours of one plane may differ by
_FLAT_MM = 0.5  # what a contour's points may lie off its plane: registration and rounding leave some
_TIE_MM = 1e-4  # rounding; a voxel centre half way between two planes belongs to the lower one
_LONGEST_MM = 3000.0  # no patient is longer
_MISSING = (1.5, 2.5)  # gaps, in plane spacings, that count as one missing plane

Step = tuple[int, int]


# --- contours to masks


@dataclass(frozen=True)
class Stack:
    """Contours of one region, plane by plane along their normal."""

    normal: np.ndarray  # (3,)
    positions_mm: np.ndarray  # (planes,), ascending
    planes: list[list[np.ndarray]]  # the contours of each plane: points (n, 3), LPS mm
    repeated: int  # contours that were there twice, and left out

    @property
    def gaps_mm(self) -> np.ndarray:
        """(planes - 1,): distances of neighbouring planes."""
        return np.diff(self.positions_mm)

    def missing(self, spacing_mm: float) -> tuple[int, np.ndarray]:
        """How many gaps lack one plane, which `rasterise` bridges, and the wider gaps (mm), which it leaves open."""
        relative = self.gaps_mm / spacing_mm
        bridged = (relative > _MISSING[0]) & (relative <= _MISSING[1])
        return int(bridged.sum()), self.gaps_mm[relative > _MISSING[1]]


def stacked(contours: Sequence[np.ndarray]) -> Stack:
    """Closed contours, points (n, 3) in LPS mm, sorted into parallel planes of any orientation.

    Contours that repeat another are dropped: they would cancel it under the even-odd rule. Raises `Refusal`
    `broken_contours` if they are not flat and parallel within 0.5 mm, or longer than a patient.
    """
    normal = _normal(contours)
    heights = [points @ normal for points in contours]
    off = max(float(np.abs(height - height.mean()).max()) for height in heights)
    if off > _FLAT_MM:
        raise Refusal("broken_contours", "the contours are not flat and parallel", value=f"{off:.3g} mm off a plane")
    length = float(np.ptp(np.concatenate(contours), axis=0).max())
    if length > _LONGEST_MM:
        raise Refusal("broken_contours", "the contours are too far apart for a patient", value=f"{length:.4g} mm")
    positions = np.array([height.mean() for height in heights])
    order = np.argsort(positions, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(positions[order]) > SAME_PLANE_MM) + 1)
    planes = [_without_repeats([contours[i] for i in group]) for group in groups]
    repeated = len(contours) - sum(map(len, planes))
    return Stack(normal, np.array([positions[group].mean() for group in groups]), planes, repeated)


def _normal(contours: Sequence[np.ndarray]) -> np.ndarray:
    """The direction (3,) along which the contours' points vary least, towards the positive main axis."""
    centred = np.concatenate([points - points.mean(axis=0) for points in contours])
    normal = np.linalg.eigh(centred.T @ centred)[1][:, 0]
    return normal * np.sign(normal[np.argmax(np.abs(normal))])


def _without_repeats(contours: list[np.ndarray]) -> list[np.ndarray]:
    return list({np.round(points, 3).tobytes(): points for points in contours}.values())


def rasterise(stack: Stack, spacing_mm: float, grid: Grid) -> tuple[np.ndarray, int]:
    """Mask (x, y, z) on `grid`, oriented as it may be, and how many voxels would lie beyond it if it went on.

    `spacing_mm` is the usual distance of the contours' planes. Where a single plane is missing, the place is filled by
    what both its neighbours enclose; wider gaps stay open. Works on one sheet of the bounding box at a time, along the
    index axis nearest to the normal, so memory stays small.
    """
    slabs = _slabs(stack.positions_mm, spacing_mm)
    basis, across, along, upwards = _axes(stack.normal, grid)
    edges = [_edges([points @ basis[:2].T for points in plane]) for plane in stack.planes]
    low, high = _index_box(stack, _MISSING[1] / 2 * spacing_mm, grid)
    steps, origin = basis @ grid.matrix, basis @ grid.origin_mm
    lines = origin + np.outer(np.arange(low[across], high[across]), steps[:, across]) + low[along] * steps[:, along]
    mask, outside = np.zeros(grid.size, bool), 0
    sheets = mask.transpose(upwards, across, along)
    here, there = zip(*(_common(low[axis], high[axis], grid.size[axis]) for axis in (across, along)), strict=True)
    for k in range(low[upwards], high[upwards]):
        starts = lines + k * steps[:, upwards]
        found = _in_slabs(starts, steps[:, along], high[along] - low[along], slabs, edges)
        outside += int(found.sum())
        if 0 <= k < grid.size[upwards]:
            sheets[k][there] = found[here]
            outside -= int(found[here].sum())
    return mask, outside


def _common(low: int, high: int, size: int) -> tuple[slice, slice]:
    """Where the indices from `low` up to `high` that lie within 0 .. size are, counted from `low` and from 0."""
    first, last = min(max(low, 0), size), min(max(high, 0), size)
    return slice(first - low, last - low) if last > first else slice(0, 0), slice(first, last)


@dataclass(frozen=True)
class _Slab:
    """Heights above `low` up to `high` (mm along the normal) that belong to what all of these planes enclose."""

    low: float
    high: float
    planes: tuple[int, ...]


def _slabs(positions: np.ndarray, spacing: float) -> list[_Slab]:
    """The slab of each plane, ascending; where one plane is missing, what both its neighbours enclose fills its place.

    Both, so that a forgotten contour is bridged, but two lesions above each other are not joined. Wider gaps stay open.
    """
    slabs, low = [], positions[0] - spacing / 2
    for plane, gap in enumerate(np.diff(positions)):
        below, above = positions[plane], positions[plane + 1]
        half = gap / 2 if gap <= _MISSING[0] * spacing else spacing / 2
        slabs.append(_Slab(low, below + half, (plane,)))
        if _MISSING[0] * spacing < gap <= _MISSING[1] * spacing:
            slabs.append(_Slab(below + half, above - half, (plane, plane + 1)))
        low = above - half
    return [*slabs, _Slab(low, positions[-1] + spacing / 2, (len(positions) - 1,))]


def _axes(normal: np.ndarray, grid: Grid) -> tuple[np.ndarray, int, int, int]:
    """Rows (3, 3): two directions in the contour planes and the normal; the grid's axes across, along and upwards.

    The first direction is that of the axis `along`, projected: so a line of voxels along it has one second coordinate.
    """
    axes = grid.matrix / grid.spacing_mm
    along, across, upwards = (int(axis) for axis in np.argsort(np.abs(normal @ axes), kind="stable"))
    first = axes[:, along] - (axes[:, along] @ normal) * normal
    first /= np.linalg.norm(first)
    return np.array([first, np.cross(normal, first), normal]), across, along, upwards


def _index_box(stack: Stack, reach_mm: float, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 index (3,) of the voxels that may lie inside, also beyond the grid."""
    points = np.concatenate([points for plane in stack.planes for points in plane])
    reach = reach_mm * stack.normal
    indices = grid.to_indices(np.concatenate([points + reach, points - reach]))
    return np.floor(indices.min(axis=0)).astype(int), np.ceil(indices.max(axis=0)).astype(int) + 1


def _in_slabs(starts: np.ndarray, step: np.ndarray, n: int, slabs: list[_Slab], edges: list[np.ndarray]) -> np.ndarray:
    """Which of the `n` voxels of each line (lines, n) lie inside of their slab's contours.

    Lines by their first voxel (lines, 3) and the step along them (3,), as in plane, in plane, height, mm.
    """
    heights = starts[:, 2, None] + np.arange(n) * step[2] - _TIE_MM
    found = np.zeros(heights.shape, bool)
    lowest, highest = heights.min(), heights.max()
    for slab in slabs:
        if slab.low <= highest and lowest < slab.high:
            inside = (slab.low <= heights) & (heights < slab.high)
            for plane in slab.planes:
                inside &= _inside(starts[:, :2], step[0], n, edges[plane])
            found |= inside
    return found


def _edges(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Edges (n, 4: x0, y0, x1, y1) of closed polygons, each upwards, so that a line drawn twice cancels exactly."""
    edges = np.concatenate([np.hstack([points, np.roll(points, -1, axis=0)]) for points in polygons])
    upwards = edges[:, 1] <= edges[:, 3]
    return np.where(upwards[:, None], edges, edges[:, [2, 3, 0, 1]])


def _inside(starts: np.ndarray, step: float, n: int, edges: np.ndarray) -> np.ndarray:
    """Even-odd rule for points on lines (lines, n): those with an odd number of edges before or at them.

    `starts` (lines, 2) are the first points, `step` is the distance of the points of a line, towards higher x. A point
    on a lower or left edge is inside, on an upper or right one outside, so that regions side by side share none.
    """
    order = np.argsort(starts[:, 1], kind="stable")
    x, y = starts[order].T
    first, last = np.searchsorted(y, edges[:, 1]), np.searchsorted(y, edges[:, 3])
    counts = last - first
    line = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    x0, y0, x1, y1 = np.repeat(edges, counts, axis=0).T
    crossings = x0 + (y[line] - y0) / (y1 - y0) * (x1 - x0)
    next_point = np.clip(np.ceil((crossings - x[line]) / step), 0, n).astype(int)
    crossed = np.bincount(order[line] * (n + 1) + next_point, minlength=len(starts) * (n + 1))
    return np.cumsum(crossed.reshape(-1, n + 1)[:, :n], axis=1) % 2 == 1


# --- masks to contours


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a 2D mask along the edges of its pixels: corners (n, 2) in index coordinates.

    Outer ones run with the mask to their left, those of holes too, hence the other way round. Pixels that touch at a
    corner only get outlines of their own.
    """
    following = _border_steps(mask)
    found = []
    while following:
        start = next(iter(following))
        corners, here, heading = [start], start, following[start][0]
        while True:
            step = _leave(following, here, heading)
            here = (here[0] + step[0], here[1] + step[1])
            if step == heading and len(corners) > 1:
                corners.pop()  # straight on: no corner
            heading = step
            if here == start:
                break
            corners.append(here)
        found.append(np.array(_without_straight_start(corners)) - 0.5)
    return found


def _border_steps(mask: np.ndarray) -> dict[Step, list[Step]]:
    """Steps along the border of the mask, the mask to the left, by the corner where each begins."""
    padded = np.pad(mask.astype(bool), 1)
    following: dict[Step, list[Step]] = {}
    # The neighbour that is missing, where the step along that side starts from the pixel's lower corner, and the step.
    sides = (((0, -1), (0, 0), (1, 0)), ((1, 0), (1, 0), (0, 1)), ((0, 1), (1, 1), (-1, 0)), ((-1, 0), (0, 1), (0, -1)))
    for neighbour, corner, step in sides:
        beyond = np.roll(padded, (-neighbour[0], -neighbour[1]), axis=(0, 1))
        for pixel in (np.argwhere(padded & ~beyond) - 1 + corner).tolist():
            following.setdefault((pixel[0], pixel[1]), []).append(step)
    return following


def _leave(following: dict[Step, list[Step]], here: Step, heading: Step) -> Step:
    """Take the step that leaves a corner; of two, the one to the left, which stays with the same pixel."""
    steps = following[here]
    left = (-heading[1], heading[0])
    step = left if len(steps) > 1 and left in steps else steps[0]
    steps.remove(step)
    if not steps:
        del following[here]
    return step


def _without_straight_start(corners: list[Step]) -> list[Step]:
    """The first point may lie in the middle of a side."""
    before, start, after = corners[-1], corners[0], corners[1]
    straight = (start[0] - before[0]) * (after[1] - start[1]) == (start[1] - before[1]) * (after[0] - start[0])
    return corners[1:] if straight else corners

"""Whole bodies for tests: a phantom's head and neck on a simple trunk with organs, legs and arms, 5 mm voxels.

Distances below are mm from the vertex down to the feet; x and y as in `mtvlib.anatomy`, relative to the phantom's axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from mtvlib.phantom import Patient
from mtvlib.volume import Grid, resample, resample_labels, to_array, to_image

VOXEL_MM = 5.0
Arms = Literal["down", "raised", "crossed"]

# centre (x, y, distance), radii, SUV, HU
ORGANS = {
    "lung": ((-75, 5, 430), (55, 75, 110), 0.4, -800),
    "other lung": ((75, 5, 430), (55, 75, 110), 0.4, -800),
    "heart": ((35, -30, 490), (52, 45, 50), 9.0, 50),
    "liver": ((-75, -5, 610), (95, 85, 70), 2.6, 60),
    "kidney": ((-70, 50, 680), (25, 25, 50), 7.0, 40),
    "other kidney": ((70, 50, 680), (25, 25, 50), 7.0, 40),
    "bowel": ((20, -40, 760), (90, 40, 60), 2.2, 30),
    "bladder": ((0, -30, 880), (62, 50, 52), 30.0, 10),
}


@dataclass(frozen=True)
class WholeBody:
    pet: sitk.Image
    ct: sitk.Image
    reference: sitk.Image
    vertex_mm: float  # LPS z of the top of the head, whether in the field or not


def whole_body(
    patient: Patient, length_mm: float, arms: Arms = "down", *, above_mm: float = 0.0, below_vertex_mm: float = 0.0
) -> WholeBody:
    """A field of `length_mm` from `above_mm` above the phantom's field down; `below_vertex_mm` cuts the head off."""
    vertex = vertex_mm(patient.ct)
    top = float(Grid.of(patient.pet).box_mm()[1][2]) + above_mm
    top = vertex - below_vertex_mm if below_vertex_mm else top
    grid = _grid(patient.pet, top, length_mm)
    suv, hu = _trunk(grid, vertex, arms)
    _paste_head(suv, hu, grid, patient)
    noise = np.random.default_rng(0).normal(1, 0.08, (*grid.size[:2], 40)).astype(np.float32)
    suv *= np.concatenate([noise] * (grid.size[2] // 40 + 1), axis=2)[:, :, : grid.size[2]]
    return WholeBody(to_image(suv, grid), to_image(hu, grid), resample_labels(patient.reference, grid), vertex)


def vertex_mm(ct: sitk.Image) -> float:
    """The top of the head: the highest slice with 4 cm2 of tissue that holds a 15 mm square, which a couch does not."""
    grid = Grid.of(ct)
    square = (2 * round(7 / grid.spacing_mm[0]) + 1,) * 2 + (1,)
    tissue = ndimage.maximum_filter(ndimage.minimum_filter(to_array(ct) > -400, square), square)
    slices = np.flatnonzero(tissue.sum(axis=(0, 1)) * grid.spacing_mm[0] * grid.spacing_mm[1] > 400)
    return float(grid.origin_mm[2] + slices[-1] * grid.spacing_mm[2])


def _grid(pet: sitk.Image, top_mm: float, length_mm: float) -> Grid:
    low, high = Grid.of(pet).box_mm()
    size = (round((high - low)[0] / VOXEL_MM), round((high - low)[1] / VOXEL_MM), round(length_mm / VOXEL_MM))
    first = (low[0] + VOXEL_MM / 2, low[1] + VOXEL_MM / 2, top_mm - (size[2] - 0.5) * VOXEL_MM)
    return Grid(size, (VOXEL_MM,) * 3, tuple(float(side) for side in first))


def _axes(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of the voxels along x, y (from the field's middle) and z (LPS), mm, to be broadcast."""
    x, y, z = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * VOXEL_MM for n in grid.size)
    middle = grid.origin_mm[2] + (grid.size[2] - 1) / 2 * VOXEL_MM
    return x[:, None, None], y[None, :, None], z[None, None, :] + np.float32(middle)


def _paste_head(suv: np.ndarray, hu: np.ndarray, grid: Grid, patient: Patient) -> None:
    """Put the phantom over the trunk, as far as it reaches; its arms end where its field ends."""
    low, high = Grid.of(patient.pet).box_mm()
    x, _, z = _axes(grid)
    slices = np.flatnonzero((z.ravel() > low[2] + VOXEL_MM) & (z.ravel() < high[2]))
    part = slice(int(slices[0]), int(slices[-1]) + 1)
    slab = grid.slab(part.start, part.stop)
    arms = suv[:, :, part] * (np.abs(x) > 130)
    suv[:, :, part] = np.maximum(to_array(resample(patient.pet, slab, outside=0.0)), arms)
    drawn = np.rint(to_array(resample(patient.ct, slab, outside=-1000.0))).astype(np.int16)
    hu[:, :, part] = np.maximum(drawn, hu[:, :, part])


def _trunk(grid: Grid, vertex: float, arms: Arms) -> tuple[np.ndarray, np.ndarray]:
    """SUV and HU of everything below the neck, and of the arms."""
    x, y, z = _axes(grid)
    distance = vertex - z
    tissue = ((x / 175) ** 2 + (y / 115) ** 2 < 1) & (distance > 300) & (distance < 900)
    radius = np.interp(distance, (880, 1300, 1650, 1720), (82, 58, 42, 35)).astype(np.float32)
    tissue |= ((np.abs(x) - 88) ** 2 + y**2 < radius**2) & (distance >= 880) & (distance < 1720)
    tissue |= _arms(np.abs(x), y, distance, arms)
    suv, hu = tissue * np.float32(0.7), np.where(tissue, np.int16(40), np.int16(-1000))
    for centre, radii, uptake, density in ORGANS.values():
        place, inside = _ellipsoid((x, y, distance), centre, radii)
        suv[place][inside], hu[place][inside] = uptake, density
    return ndimage.gaussian_filter1d(suv, 1, axis=0), hu


def _ellipsoid(
    axes: tuple[np.ndarray, ...], centre: tuple[float, ...], radii: tuple[float, ...]
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box round an ellipsoid, empty outside of the field, and which of its voxels lie inside."""
    spans = [np.flatnonzero(np.abs(axis.ravel() - c) < r) for axis, c, r in zip(axes, centre, radii, strict=True)]
    place = tuple(slice(span[0], span[-1] + 1) if span.size else slice(0) for span in spans)
    parts = [((axis.ravel() - c) / r)[span] ** 2 for axis, c, r, span in zip(axes, centre, radii, place, strict=True)]
    return place, parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :] < 1


def _arms(beside: np.ndarray, y: np.ndarray, distance: np.ndarray, arms: Arms) -> np.ndarray:
    if arms == "down":
        return ((beside - 215) ** 2 + y**2 < 38**2) & (distance > 380) & (distance < 950)
    upper = ((beside - 165) ** 2 + (y + 20) ** 2 < 42**2) & (distance > -150) & (distance < 350)
    if arms == "raised":
        return upper
    # Forearms folded above the head: a section larger than a head's.
    return upper | ((beside < 170) & (np.abs(y + 20) < 42) & (distance > -150) & (distance < -60))

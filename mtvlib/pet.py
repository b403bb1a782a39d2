"""Quantities of a lesion in PET: metabolic tumour volume (MTV), total lesion glycolysis (TLG), SUV values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from mtvlib.lattice import areas_mm2, neighbour_code, normals, triangles

PEAK_RADIUS_MM = (3 * 1000 / (4 * math.pi)) ** (1 / 3)  # 6.2 mm: a sphere of 1 cm3
CHUNK = 1_000_000  # values in spheres held at once (8 MB), whatever the size of the lesion


def voxel_ml(spacing_mm: Sequence[float]) -> float:
    return math.prod(float(side) for side in spacing_mm) / 1000


@dataclass(frozen=True)
class Uptake:
    """SUV values (g/ml) and TLG (g) of a region; the maximum, mean and peak of an empty one are None, its TLG is 0."""

    suv_max: float | None
    suv_mean: float | None
    suv_peak: float | None
    tlg: float


def uptake(suv: np.ndarray, voxels: np.ndarray, spacing_mm: Sequence[float]) -> Uptake:
    """SUVmax, SUVmean, SUVpeak and TLG = MTV x SUVmean of a region of `suv` (x, y, z): its voxel indices (n, 3)."""
    if not len(voxels):
        return Uptake(None, None, None, 0.0)
    values = suv[tuple(voxels.T)].astype(np.float64)
    tlg = float(values.sum()) * voxel_ml(spacing_mm)
    return Uptake(float(values.max()), float(values.mean()), suv_peak(suv, voxels, spacing_mm), tlg)


def suv_peak(suv: np.ndarray, voxels: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Highest mean SUV in a sphere of 1 cm3 centred on any of the voxels (n > 0, 3).

    IBSI's "global intensity peak" (Zwanenburg et al. 2020, 0F91): the sphere holds the voxels whose centres lie within
    6.2 mm; it may reach beyond the region, but counts only voxels inside the image.
    """
    return float(peak_means(suv, voxels, spacing_mm).max())


def suv_peak_local(suv: np.ndarray, voxels: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Mean SUV in a sphere of 1 cm3 round the hottest of the voxels: IBSI's "local intensity peak" (VJGA).

    Where several are the hottest, the highest of their peaks.
    """
    values = suv[tuple(voxels.T)]
    return float(peak_means(suv, voxels[values == values.max()], spacing_mm).max())


def peak_means(suv: np.ndarray, centres: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Mean SUV (n,) in the spheres of 1 cm3 round the voxels `centres` (n, 3)."""
    offsets = _sphere(*(float(side) for side in spacing_mm))
    reach = offsets.max(axis=0)
    low = np.maximum(centres.min(axis=0) - reach, 0)
    box = suv[tuple(slice(first, last + 1) for first, last in zip(low, centres.max(axis=0) + reach, strict=True))]
    padded = np.full(np.add(box.shape, 2 * reach), np.nan)
    padded[tuple(slice(side, side + length) for side, length in zip(reach, box.shape, strict=True))] = box
    steps = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    flat, first, sphere = padded.ravel(), (centres - low + reach) @ steps, offsets @ steps
    chunks = range(0, len(first), max(1, CHUNK // len(sphere)))
    return np.concatenate([_mean_inside(flat[first[at : at + chunks.step, None] + sphere]) for at in chunks])


def _mean_inside(values: np.ndarray) -> np.ndarray:
    """Means (n,) of rows of values (n, k), without the NaN of voxels outside the image."""
    means = values.mean(axis=1)
    outside = np.isnan(means)
    means[outside] = np.nanmean(values[outside], axis=1)
    return means


@lru_cache(maxsize=16)
def _sphere(x_mm: float, y_mm: float, z_mm: float) -> np.ndarray:
    """Offsets (k, 3) of the voxels whose centres lie within the sphere's radius."""
    spacing = np.array([x_mm, y_mm, z_mm])
    reach = np.floor(PEAK_RADIUS_MM / spacing).astype(int)
    offsets = np.indices(2 * reach + 1).reshape(3, -1).T - reach
    return offsets[((offsets * spacing) ** 2).sum(axis=1) <= PEAK_RADIUS_MM**2]


# --- shape


def mesh_area_and_volume(voxels: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Area (mm2) and volume (mm3) of the mesh round a region's voxels (n > 0, 3), by marching cubes at 0.5.

    IBSI's mesh-based surface area (C0JK) and volume (RNU0, Zwanenburg et al. 2020): the faces of voxels overestimate
    the surface of a smooth body by half, this mesh by a tenth.
    """
    spacing = [float(side) for side in spacing_mm]
    low = voxels.min(axis=0)
    mask = np.zeros(voxels.max(axis=0) - low + 1, bool)
    mask[tuple((voxels - low).T)] = True
    code = neighbour_code(mask)
    corners = np.argwhere((code > 0) & (code < 255))
    codes = code[tuple(corners.T)]
    volumes, outward = _mesh_volumes()
    volume = volumes[codes].sum() + np.einsum("ij,ij->", corners, outward[codes]) / 3
    return float(areas_mm2("lewiner", *spacing)[codes].sum()), float(abs(volume)) * math.prod(spacing)


@cache
def _mesh_volumes() -> tuple[np.ndarray, np.ndarray]:
    """What the mesh in the cube of each neighbour code adds to the volume, in voxels, and its normal: (256,), (256, 3).

    The volume is that between the triangles and the cube's own corner. A cube elsewhere adds a third of the product of
    its place and its normal (the divergence theorem).
    """
    (codes, corners), outward = triangles("lewiner"), normals("lewiner")
    volumes = np.bincount(codes, np.einsum("ij,ij->i", corners[:, 0], outward) / 3, minlength=256)
    return volumes, np.column_stack([np.bincount(codes, along, minlength=256) for along in outward.T])


def asphericity(voxels: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """(S^3 / (36 pi V^2))^(1/3) - 1 of the region's mesh (Apostolova et al. 2014; IBSI 25C7).

    0 for a sphere, and 0.09 to 0.12 for a ball of voxels, whose mesh keeps their steps.
    """
    area, volume = mesh_area_and_volume(voxels, spacing_mm)
    return (area**3 / (36 * math.pi * volume**2)) ** (1 / 3) - 1

"""Augmentation of patches on the device where they are used: what might have been seen in another patient or scanner.

The paper trained without and names that as a limitation. Here each kind is one parameter (`augment_*` in `params.py`)
whose neutral value leaves every voxel as it is, bit for bit. What happens to a patch is drawn from the seed of its
step, kind by kind in a fixed order: the strength of one kind does not change what another one draws.

Geometry (rotation, zoom, elastic) moves PET, CT and labels together: images by linear, labels by nearest neighbour,
beyond the patch its outermost voxels are repeated. The rest changes images alone. Blur, coarser voxels and shifts are
linear along each axis, so each one is three small matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtvlib.params import Params

CONTROL_MM = 64.0  # between control points of the elastic deformation: bends a neck, does not wrinkle a node (choice)
_BSPLINE_POWER = 151 / 315  # mean over all positions of the sum of the squared cubic B-spline weights
_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class Plan:
    """What happens to one patch. Lengths in voxels; the defaults do nothing."""

    rotation_deg: float = 0.0  # about the z axis, from +x towards +y
    zoom: float = 1.0  # above 1: larger
    control: np.ndarray | None = None  # (3, a, b, c), displacement of the elastic deformation's control points
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the CT
    suv_factor: float = 1.0
    noise: float = 0.0  # standard deviation
    noise_seed: int = 0
    blur: float = 0.0  # full width at half maximum, PET
    low_resolution: float = 1.0  # side of the coarser voxels

    @property
    def moves(self) -> bool:
        return self.rotation_deg != 0 or self.zoom != 1 or self.control is not None


# --- drawing


def wanted(params: Params) -> bool:
    """Whether any augmentation of this module is turned on."""
    return bool(set(params.augmentations) - {"mirroring"})


def draw(params: Params, shape: Sequence[int], random: np.random.Generator) -> Plan:
    """A plan for a patch of this shape. Takes the same numbers from `random` whatever the strengths are."""
    chosen = random.random(8) < params.augment_share
    uniform = random.uniform(-1, 1, 8)
    shift = random.uniform(-1, 1, 3) * params.augment_misalignment_mm / params.spacing_mm
    control = random.standard_normal((3, *(_control_points(n, params.spacing_mm) for n in shape)))
    scatter, noise_seed = random.standard_normal(), int(random.integers(2**62))
    neutral, elastic = Plan(), params.augment_elastic_mm / params.spacing_mm
    share = (uniform + 1) / 2
    return Plan(
        rotation_deg=uniform[0] * params.augment_rotation_deg if chosen[0] else neutral.rotation_deg,
        zoom=(1 + params.augment_zoom) ** uniform[1] if chosen[1] else neutral.zoom,
        control=control * elastic / _BSPLINE_POWER**1.5 if chosen[2] and elastic else neutral.control,
        shift=tuple(shift.tolist()) if chosen[3] else neutral.shift,
        suv_factor=math.exp(scatter * params.augment_suv_scatter) if chosen[4] else neutral.suv_factor,
        noise=share[5] * params.augment_noise if chosen[5] else neutral.noise,
        noise_seed=noise_seed,
        blur=share[6] * params.augment_blur_mm / params.spacing_mm if chosen[6] else neutral.blur,
        low_resolution=1 + share[7] * (params.augment_low_resolution - 1) if chosen[7] else neutral.low_resolution,
    )


def augment(
    inputs: Tensor, labels: Tensor, params: Params, seed: Sequence[int], first: int = 0
) -> tuple[Tensor, Tensor]:
    """A batch's patches, each by a plan of its own: inputs (N, C, X, Y, Z) in [0, 1], labels (N, X, Y, Z).

    The plans depend on `seed` and the patches' places in the batch alone, the result on the device's arithmetic too.
    `first`: place of the first of these patches, where others of the batch are another rank's.
    """
    if not len(inputs):
        return inputs, labels
    random = np.random.default_rng(seed)
    plans = [draw(params, inputs.shape[2:], random) for _ in range(first + len(inputs))][first:]
    pairs = [apply(*pair, params.channels) for pair in zip(inputs, labels, plans, strict=True)]
    return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])


def apply(image: Tensor, labels: Tensor, plan: Plan, channels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """One patch (C, X, Y, Z) with its labels (X, Y, Z) as the plan wants it; `channels` names the C."""
    if plan.moves:
        image, labels = warp(image, labels, plan)
    parts = [_channel(one, name, plan) for one, name in zip(image, channels, strict=True)]
    image = torch.stack(parts)
    if plan.noise:
        generator = torch.Generator(image.device).manual_seed(plan.noise_seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
        image = (image + plan.noise * noise).clamp(0, 1)
    return image, labels


def _channel(image: Tensor, name: str, plan: Plan) -> Tensor:
    """One channel (X, Y, Z): where the CT lies, how bright and how sharp the PET is, how large the voxels are."""
    if name == "ct" and any(plan.shift):
        image = along_axes(image, [shift_matrix(n, by) for n, by in zip(image.shape, plan.shift, strict=True)])
    if name == "pet" and plan.suv_factor != 1:
        image = (image * plan.suv_factor).clamp(0, 1)
    if name == "pet" and plan.blur:
        image = along_axes(image, [blur_matrix(n, plan.blur) for n in image.shape])
    if plan.low_resolution != 1:
        image = along_axes(image, [coarse_matrix(n, plan.low_resolution) for n in image.shape])
    return image


# --- geometry


def warp(image: Tensor, labels: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Image (C, X, Y, Z) by linear and labels (X, Y, Z) by nearest-neighbour interpolation at `source_voxels`."""
    grid = _normalised(source_voxels(labels.shape, plan, image.device))[None]
    moved = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    found = F.grid_sample(
        labels[None, None].to(image.dtype), grid, mode="nearest", padding_mode="border", align_corners=True
    )
    return moved, found[0, 0].to(labels.dtype)


def source_voxels(shape: Sequence[int], plan: Plan, device: torch.device | str = "cpu") -> Tensor:
    """Where each voxel of the result is taken from, in voxels of the patch, (X, Y, Z, 3) float32.

    Turned about and enlarged from the patch's centre c: c + R' (i - c) / zoom, plus the elastic displacement.
    """
    axes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    angle = math.radians(plan.rotation_deg)
    cos, sin = math.cos(angle) / plan.zoom, math.sin(angle) / plan.zoom
    source = torch.stack([cos * x + sin * y, cos * y - sin * x, z / plan.zoom], -1)
    source += torch.tensor([(n - 1) / 2 for n in shape], device=device)
    if plan.control is not None:
        bases = [bspline_matrix(n, points) for n, points in zip(shape, plan.control.shape[1:], strict=True)]
        control = torch.from_numpy(plan.control.astype(np.float32)).to(device)
        source += torch.stack([along_axes(one, bases) for one in control], -1)
    return source


def _normalised(voxels: Tensor) -> Tensor:
    """Voxel indices as `grid_sample` counts: -1 and 1 are the outermost centres, the last axis comes first."""
    last = torch.tensor([max(n - 1, 1) for n in voxels.shape[:3]], device=voxels.device, dtype=voxels.dtype)
    return (2 * voxels / last - 1).flip(-1)


# --- one axis


def along_axes(volume: Tensor, matrices: Sequence[np.ndarray]) -> Tensor:
    """A volume (a, b, c) with a matrix (A, a), (B, b), (C, c) applied along each axis: (A, B, C)."""
    x, y, z = (torch.from_numpy(matrix.astype(np.float32)).to(volume.device) for matrix in matrices)
    volume = (x @ volume.flatten(1)).view(len(x), *volume.shape[1:])
    return torch.matmul(y, volume) @ z.T


def blur_matrix(n: int, fwhm: float) -> np.ndarray:
    """Gaussian of that width; rows sum to one, at the border as well."""
    distance = np.arange(n)[:, None] - np.arange(n)
    return _rows_to_one(np.exp(-0.5 * (distance * _FWHM_PER_SIGMA / fwhm) ** 2))


def shift_matrix(n: int, by: float) -> np.ndarray:
    """Linear interpolation: what was at i comes to i + by; the outermost value is repeated."""
    return _interpolation_matrix(np.arange(n) - by, n)


def coarse_matrix(n: int, side: float) -> np.ndarray:
    """The mean over each of the coarser voxels, interpolated between their centres."""
    coarse = max(round(n / side), 1)
    edges, voxels = np.linspace(0, n, coarse + 1), np.arange(n)
    overlap = np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels)
    mean = _rows_to_one(np.clip(overlap, 0, None))
    return _interpolation_matrix((voxels + 0.5) * coarse / n - 0.5, coarse) @ mean


def bspline_matrix(n: int, points: int) -> np.ndarray:
    """Cubic B-spline weights (n, points) of evenly spread control points, one beyond each end; rows sum to one."""
    position = 1 + np.linspace(0, points - 3, n) if n > 1 else np.array([1.0])
    distance = np.abs(position[:, None] - np.arange(points))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def _control_points(n: int, spacing_mm: float) -> int:
    return 3 + math.ceil((n - 1) * spacing_mm / CONTROL_MM)


def _interpolation_matrix(position: np.ndarray, n: int) -> np.ndarray:
    distance = np.abs(np.clip(position, 0, n - 1)[:, None] - np.arange(n))
    return np.clip(1 - distance, 0, None)


def _rows_to_one(matrix: np.ndarray) -> np.ndarray:
    return matrix / matrix.sum(1, keepdims=True)

"""A patient's planes as pictures: slices of CT, PET and both fused, contours as vectors, and the PET's turning MIP.

For the reading room, where each interaction draws anew: numpy and a JPEG, a few milliseconds a picture, also for a
whole body. Arrays are (x, y, z), x to the patient's left, y backwards, z to the head. PET, masks and places are on the
study's grid; what is only looked at may have finer pixels in plane.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from PIL import Image

from mtvlib.classes import LESION_CLASSES
from mtvlib.lesions import bounding_box
from mtvlib.palette import COLORS
from mtvlib.viewer import COLOURS, CT_WINDOW_HU, outline

# plane -> axes across and down the picture, and the one that it is a slice of
AXES: dict[str, tuple[int, int, int]] = {"transaxial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
LETTERS = {"transaxial": "RL", "coronal": "RL", "sagittal": "AP"}  # at the left and the right edge
LAYERS = ("PET on CT", "PET", "CT")
OWN = "own"  # the mask of a threshold that is being tried, or of a lesion that is proposed
OWN_COLOUR = COLORS["outlier"]
LEAST_PX = 400  # longest side of a picture: small grids are enlarged before JPEG's blocks are cut out of them
TURN = 15  # degrees between the directions of the MIP
MIP_PX = 128  # most voxels across of a MIP: it is turned at once, and hardly needs more


@dataclass
class View:
    """What is shown of a patient: PET (SUV), CT (HU) or None, and label maps by source (`man`, `cnn`, `own`).

    `fine` holds PET and CT with finer pixels, where these are read already: (k x, k y, z) for any whole k.
    """

    patient: str
    pet: np.ndarray
    ct: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    fine: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pet.shape  # type: ignore[return-value]

    def image(self, name: str) -> np.ndarray | None:
        """The `pet` or `ct` to look at."""
        return self.fine.get(name, self.pet if name == "pet" else self.ct)


# --- slices


def picture(view: View, plane: str, at: Sequence[int], *, layer: str = "PET on CT", suv: float = 10.0) -> bytes:
    """A slice as JPEG, without contours. Without a CT, every layer is the PET."""
    ct = view.image("ct")
    pet = view.image("pet")
    assert pet is not None
    if ct is None or layer == "PET":
        return _jpeg(_enlarged(_inverted(_cut(view, pet, plane, at), suv)))
    low, high = CT_WINDOW_HU
    grey = _enlarged(_bytes((_cut(view, ct, plane, at) - low) / (high - low)))
    if layer == "CT":
        return _jpeg(grey)
    heat = _bytes(_cut(view, pet, plane, at) / suv)
    heat = np.asarray(Image.fromarray(heat).resize(grey.shape[::-1], Image.Resampling.BICUBIC))
    return _jpeg((grey[..., None] * _KEPT[heat] + _ADDED[heat]).astype(np.uint8))


def contours(view: View, plane: str, at: Sequence[int], shown: Sequence[str]) -> list[dict[str, Any]]:
    """The outlines of the sources `shown` as SVG paths `{"d", "stroke", "dash"}`, in voxels from the upper left."""
    lines = []
    for source in (name for name in view.masks if name in shown):
        lines += _paths(cut(view.masks[source], plane, at), source)
    return lines


def _paths(mask: np.ndarray, source: str) -> list[dict[str, Any]]:
    """Of a slice (row, column) of a label map; a mask that is tried is one colour, whatever its classes."""
    if not mask.any():
        return []
    parts = {"": mask > 0} if source == OWN else {name: mask == value for name, value in LESION_CLASSES.items()}
    return [
        {"d": path(part), "stroke": COLOURS.get((source, name), OWN_COLOUR), "dash": source == "cnn"}
        for name, part in parts.items()
        if part.any()
    ]


def path(part: np.ndarray) -> str:
    """The outlines of a picture's mask (row, column) as SVG: `M4 3L8 3L8 7L4 7Z`."""
    return "".join("M" + "L".join(f"{x} {y}" for x, y in polygon) + "Z" for polygon in outline(part.T))


def size(view: View, plane: str) -> tuple[int, int]:
    """Voxels across and down a picture."""
    across, down, _ = AXES[plane]
    return view.shape[across], view.shape[down]


def ratio(view: View, plane: str) -> float:
    """Width of a picture by its height, in millimetres."""
    across, down, _ = AXES[plane]
    wide, high = (view.shape[axis] * view.spacing_mm[axis] for axis in (across, down))
    return wide / high


def cut(volume: np.ndarray, plane: str, at: Sequence[int]) -> np.ndarray:
    """A slice as it is seen (row, column): face up, or head up."""
    _, down, along = AXES[plane]
    seen = volume.take(int(at[along]), axis=along).T
    return seen[::-1] if down == 2 else seen


def _cut(view: View, image: np.ndarray, plane: str, at: Sequence[int]) -> np.ndarray:
    """The same of an image that may have finer pixels in plane."""
    k = image.shape[0] // view.shape[0]
    return cut(image, plane, [k * at[0] + k // 2, k * at[1] + k // 2, at[2]])


def place(view: View, plane: str, at: Sequence[int]) -> list[float]:
    """Where a voxel's middle lies in a picture, in shares of its width and height."""
    across, down, _ = AXES[plane]
    u, v = (at[across] + 0.5) / view.shape[across], (at[down] + 0.5) / view.shape[down]
    return [u, 1 - v if down == 2 else v]


def voxel_at(view: View, plane: str, at: Sequence[int], place: Sequence[float]) -> list[int]:
    """The voxel at a place of a picture, given in shares of its width and height; the third axis stays."""
    across, down, _ = AXES[plane]
    found = [int(one) for one in at]
    for axis, share in ((across, place[0]), (down, 1 - place[1] if down == 2 else place[1])):
        found[axis] = int(np.clip(np.floor(share * view.shape[axis]), 0, view.shape[axis] - 1))
    return found


# --- the projection


class Mip:
    """Maximum intensity projections of a PET along directions in the transaxial plane: 0 is from the front.

    The volume is thinned to `MIP_PX` voxels across by the maximum of its blocks, so that no small lesion is lost; each
    direction is computed once.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.step = math.ceil(max(view.shape[:2]) / MIP_PX)
        self.thin = _thinned(view.pet, self.step)
        self._made: dict[int, np.ndarray] = {}
        self._voxels: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of the maps' lesions

    def picture(self, degrees: int, suv: float) -> bytes:
        return _jpeg(_enlarged(_inverted(self.values(degrees), suv)))

    def values(self, degrees: int) -> np.ndarray:
        """Highest SUV along each ray (row, column), the head up."""
        if degrees not in self._made:
            if degrees % 180 == 0:
                seen = self.thin.max(axis=1)[:: -1 if degrees % 360 else 1]
            else:
                seen = _along(self.thin, degrees).max(axis=1)
            self._made[degrees] = np.ascontiguousarray(seen.T[::-1])
        return self._made[degrees]

    def contours(self, degrees: int, shown: Sequence[str]) -> list[dict[str, Any]]:
        """Outlines of the manual and the CNN's lesions as they are seen from there."""
        lines = []
        for source in (name for name in self.view.masks if name in shown and name != OWN):
            lines += _paths(self._seen(source, degrees), source)
        return lines

    def _seen(self, source: str, degrees: int) -> np.ndarray:
        """Classes of a source's map along the rays (row, column), of two the higher one; voxel by voxel, for speed."""
        labels = self.view.masks[source]
        if source not in self._voxels or self._voxels[source][0] is not labels:
            box = bounding_box(labels)
            corner = [side.start for side in box]
            self._voxels[source] = labels, np.argwhere(labels[box]) + corner
        voxels = self._voxels[source][1]
        columns, rows = self.size(degrees)
        seen = np.zeros((rows, columns), labels.dtype)
        for shift in product((-0.3, 0.3), repeat=2):  # a turned voxel covers more than one column
            u = self._across(degrees, voxels[:, 0] + shift[0], voxels[:, 1] + shift[1])
            column = np.clip((u * columns).astype(int), 0, columns - 1)
            np.maximum.at(seen, (rows - 1 - voxels[:, 2], column), labels[tuple(voxels.T)])
        return seen

    def size(self, degrees: int) -> tuple[int, int]:
        rows, columns = self.values(degrees).shape
        return columns, rows

    def ratio(self, degrees: int) -> float:
        """Width of the picture by its height, in millimetres."""
        (dx, _, dz), (wide, high) = self.view.spacing_mm, self.size(degrees)
        return self.step * wide * dx / (high * dz)

    def place(self, degrees: int, at: Sequence[int]) -> list[float]:
        """Where a voxel is seen, in shares of width and height."""
        return [float(self._across(degrees, at[0], at[1])), 1 - (at[2] + 0.5) / self.view.shape[2]]

    def _across(self, degrees: int, x: Any, y: Any) -> Any:
        """Where voxels are seen, in shares of the width."""
        (nx, ny, _), angle = self.view.shape, math.radians(degrees)
        along = (x + 0.5 - nx / 2) * math.cos(angle) + (y + 0.5 - ny / 2) * math.sin(angle)
        return along / self.step / self.size(degrees)[0] + 0.5

    def voxel_at(self, degrees: int, place: Sequence[float]) -> list[int]:
        """The hottest voxel along the ray under a place of the picture."""
        nx, ny, nz = self.thin.shape
        z = int(np.clip((1 - place[1]) * nz, 0, nz - 1))
        x_of, y_of = _rays(nx, ny, degrees)
        column = int(np.clip(place[0] * len(x_of), 0, len(x_of) - 1))
        x, y = x_of[column], y_of[column]
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
        if not inside.any():
            return [self.view.shape[0] // 2, self.view.shape[1] // 2, z]
        x, y = x[inside], y[inside]
        deep = int(self.thin[x, y, z].argmax())
        # A turned ray passes beside the middles of voxels: the hottest one may be its neighbour.
        left, front = (max(0, self.step * (int(one[deep]) - 1)) for one in (x, y))
        block = self.view.pet[left : left + 3 * self.step, front : front + 3 * self.step, z]
        first, second = np.unravel_index(int(block.argmax()), block.shape)
        return [left + int(first), front + int(second), z]


def _thinned(volume: np.ndarray, step: int) -> np.ndarray:
    """The maximum of each block of step x step voxels in plane."""
    if step == 1:
        return volume
    rows = volume[::step].copy()
    for shift in range(1, step):
        other = volume[shift::step]
        np.maximum(rows[: len(other)], other, out=rows[: len(other)])
    thin = rows[:, ::step].copy()
    for shift in range(1, step):
        columns = rows[:, shift::step]
        np.maximum(thin[:, : columns.shape[1]], columns, out=thin[:, : columns.shape[1]])
    return thin


def _along(volume: np.ndarray, degrees: int) -> np.ndarray:
    """The volume turned (column, depth, z) by nearest neighbours, 0 outside."""
    x, y = _rays(*volume.shape[:2], degrees)
    inside = (x >= 0) & (x < volume.shape[0]) & (y >= 0) & (y < volume.shape[1])
    turned = volume[np.where(inside, x, 0), np.where(inside, y, 0)]
    turned[~inside] = 0
    return turned


@lru_cache(maxsize=32)
def _rays(nx: int, ny: int, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxel indices (column, depth) along x and y of the rays of a projection; they may lie outside."""
    if degrees % 180 == 0:
        flip = -1 if degrees % 360 else 1
        x, y = np.meshgrid(np.arange(nx)[::flip], np.arange(ny), indexing="ij")
        return x, y
    n, angle = max(nx, ny), math.radians(degrees)
    across, deep = np.meshgrid(np.arange(n) + 0.5 - n / 2, np.arange(n) + 0.5 - n / 2, indexing="ij")
    x = across * math.cos(angle) - deep * math.sin(angle) + nx / 2
    y = across * math.sin(angle) + deep * math.cos(angle) + ny / 2
    return np.floor(x).astype(int), np.floor(y).astype(int)


# --- shades


def _bytes(values: np.ndarray) -> np.ndarray:
    return (255 * np.clip(values, 0, 1)).astype(np.uint8)


def _inverted(pet: np.ndarray, suv: float) -> np.ndarray:
    return 255 - _bytes(pet / suv)


def _enlarged(shades: np.ndarray) -> np.ndarray:
    """A picture (row, column) whose longest side has `LEAST_PX` pixels or more."""
    factor = math.ceil(LEAST_PX / max(shades.shape))
    image = Image.fromarray(np.ascontiguousarray(shades))
    high, wide = shades.shape
    return np.asarray(image.resize((wide * factor, high * factor), Image.Resampling.BICUBIC) if factor > 1 else image)


def _jpeg(shades: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


_SHARE = np.linspace(0, 1, 256)[:, None]
_HOT = 255 * np.clip(np.hstack([2.2 * _SHARE, 2 * _SHARE - 0.65, 4 * _SHARE - 3]), 0, 1)
_ALPHA = 0.65 * np.clip(1.6 * _SHARE, 0, 1)
_KEPT, _ADDED = (1 - _ALPHA).astype(np.float32), (_HOT * _ALPHA).astype(np.float32)  # of the CT's grey, of the heat

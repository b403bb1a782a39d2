"""A patient's planes as pictures: slices of CT, PET and both fused, with contours and crosshair, and the PET's MIP.

For the reading room, where each interaction draws anew: numpy and a JPEG, a few milliseconds a picture, also for a
whole body. Arrays are (x, y, z), x to the patient's left, y backwards, z to the head; all on one grid.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from mtvlib.classes import LESION_CLASSES
from mtvlib.palette import COLORS
from mtvlib.viewer import COLOURS, CT_WINDOW_HU

Plane = Literal["transaxial", "coronal", "sagittal"]
Layer = Literal["PET", "CT", "PET on CT"]

# plane -> axes across and down the picture, and the one that it is a slice of
AXES: dict[str, tuple[int, int, int]] = {"transaxial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
LETTERS = {"transaxial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
OWN = "own"  # the mask of a threshold that is being tried
OWN_COLOUR = COLORS["outlier"]
CROSS = (63, 127, 181)


@dataclass
class View:
    """What is shown of a patient: PET (SUV), CT (HU) or None, and label maps by source (`man`, `cnn`, `own`)."""

    patient: str
    pet: np.ndarray
    ct: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pet.shape  # type: ignore[return-value]


def picture(
    view: View,
    plane: str,
    at: Sequence[int],
    *,
    layer: str = "PET on CT",
    suv: float = 10.0,
    shown: Sequence[str] = ("man", "cnn", OWN),
    width_px: int = 400,
) -> bytes:
    """A slice as JPEG with the contours of the sources `shown` and the crosshair at the voxel `at`."""
    size = size_px(view, plane, width_px)
    shades = _shades(view, plane, at, layer, suv, size)
    for source in (name for name in shown if name in view.masks):
        _draw_mask(shades, cut(view.masks[source], plane, at), source)
    _draw_cross(shades, view.shape, plane, at)
    return jpeg(shades)


def mip(view: View, at: Sequence[int], *, suv: float = 10.0, width_px: int = 400) -> bytes:
    """The coronal maximum intensity projection of the PET as JPEG, with the level of the transaxial slice."""
    size = size_px(view, "coronal", width_px)
    projection = np.ascontiguousarray(view.pet.max(axis=1).T[::-1])
    shades = np.repeat(_resized(_inverted(projection, suv), size)[..., None], 3, axis=2)
    row = _place(view.shape[2] - 1 - at[2], view.shape[2], size[1])
    shades[row] = CROSS
    return jpeg(shades)


def size_px(view: View, plane: str, width_px: int) -> tuple[int, int]:
    """Width and height of a picture with square millimetres."""
    across, down, _ = AXES[plane]
    wide, high = (view.shape[axis] * view.spacing_mm[axis] for axis in (across, down))
    return width_px, max(1, round(width_px * high / wide))


def cut(volume: np.ndarray, plane: str, at: Sequence[int]) -> np.ndarray:
    """A slice as it is seen (row, column): face up, or head up."""
    _, down, along = AXES[plane]
    seen = volume.take(int(at[along]), axis=along).T
    return seen[::-1] if down == 2 else seen


def voxel_at(view: View, plane: str, at: Sequence[int], place: Sequence[float]) -> list[int]:
    """The voxel at a place of a picture, given in shares of its width and height; the third axis stays."""
    across, down, _ = AXES[plane]
    found = [int(one) for one in at]
    for axis, share in ((across, place[0]), (down, 1 - place[1] if down == 2 else place[1])):
        found[axis] = int(np.clip(np.floor(share * view.shape[axis]), 0, view.shape[axis] - 1))
    return found


def jpeg(shades: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _shades(view: View, plane: str, at: Sequence[int], layer: str, suv: float, size: tuple[int, int]) -> np.ndarray:
    """The slice without anything drawn on it, uint8 (row, column, 3)."""
    pet = cut(view.pet, plane, at)
    if view.ct is None or layer == "PET":
        return np.repeat(_resized(_inverted(pet, suv), size)[..., None], 3, axis=2)
    low, high = CT_WINDOW_HU
    grey = _resized(_bytes((cut(view.ct, plane, at) - low) / (high - low)), size)
    if layer == "CT":
        return np.repeat(grey[..., None], 3, axis=2)
    heat = _resized(_bytes(pet / suv), size)
    share = (_ALPHA[heat])[..., None]
    return (grey[..., None] * (1 - share) + _HOT[heat] * share).astype(np.uint8)


def _bytes(values: np.ndarray) -> np.ndarray:
    return (255 * np.clip(values, 0, 1)).astype(np.uint8)


def _inverted(pet: np.ndarray, suv: float) -> np.ndarray:
    return 255 - _bytes(pet / suv)


def _resized(shades: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(shades)).resize(size, Image.Resampling.BILINEAR)).copy()


_share = np.linspace(0, 1, 256)
_HOT = 255 * np.stack(
    [np.clip(2.2 * _share, 0, 1), np.clip(2 * _share - 0.65, 0, 1), np.clip(4 * _share - 3, 0, 1)], -1
)
_ALPHA = 0.6 * np.clip(1.6 * _share, 0, 1)


def _draw_mask(shades: np.ndarray, mask: np.ndarray, source: str) -> None:
    """The outline of each class along the voxels' edges, two pixels wide; the CNN's is dashed."""
    if not mask.any():
        return
    height, width = shades.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    for name, value in LESION_CLASSES.items():
        large = (mask == value)[rows][:, columns]
        edge = _edge(large)
        if source == "cnn":
            y, x = np.ogrid[:height, :width]
            edge &= (x + y) // 5 % 2 == 0
        shades[edge] = _rgb(OWN_COLOUR if source == OWN else COLOURS[source, name])


def _edge(large: np.ndarray) -> np.ndarray:
    """Pixels of a mask that lie within two of its border."""
    inside = np.pad(large, 2)
    core = inside[2:-2, 2:-2].copy()
    for shift in (1, 2):
        for axis in (0, 1):
            for sign in (1, -1):
                core &= np.roll(inside, sign * shift, axis)[2:-2, 2:-2]
    return large & ~core


def _draw_cross(shades: np.ndarray, shape: Sequence[int], plane: str, at: Sequence[int]) -> None:
    across, down, _ = AXES[plane]
    height, width = shades.shape[:2]
    x = _place(at[across], shape[across], width)
    y = _place(shape[down] - 1 - at[down] if down == 2 else at[down], shape[down], height)
    shades[: max(y - 8, 0), x], shades[y + 8 :, x] = CROSS, CROSS
    shades[y, : max(x - 8, 0)], shades[y, x + 8 :] = CROSS, CROSS


def _place(index: int, count: int, pixels: int) -> int:
    return min(pixels - 1, int((index + 0.5) * pixels / count))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)

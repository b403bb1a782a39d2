"""Axial windows over a volume: where they start, and the volumes of a fold as one tensor that windows are cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First slices of windows that cover `length` slices, `stride` apart, the last one flush with the end.

    A length up to `window` gives the single start 0 (the volume is then padded, see `pad_axially`).
    Paper, Methods: 128 x 128 x 32 patches with at least 75 % axial overlap, so a stride of 8.
    """
    if length <= window:
        return [0]
    starts = list(range(0, length - window + 1, stride))
    if starts[-1] != length - window:
        starts.append(length - window)
    return starts


def pad_axially(volume: np.ndarray, depth: int) -> np.ndarray:
    """A volume (..., x, y, z) with zeros added at the head end until it has at least `depth` slices.

    Zero is air on CT, no uptake on PET and background in labels.
    """
    missing = depth - volume.shape[-1]
    if missing <= 0:
        return volume
    return np.pad(volume, [(0, 0)] * (volume.ndim - 1) + [(0, missing)])


@dataclass(frozen=True)
class PatchPool:
    """All volumes of a fold's part, end to end along z, on the device where they are used.

    `inputs` (C, X, Y, sum of Z) float32, `labels` (X, Y, sum of Z) uint8. A patch is a view of both, so an epoch copies
    only what one batch needs.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    starts: tuple[int, ...]  # first slice of each patch
    with_lesion: tuple[bool, ...]  # whether a patch holds a lesion
    depth: int

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, patches: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (N, C, X, Y, Z) float32 and labels (N, X, Y, Z) int64 of the patches with these numbers."""
        windows = [slice(self.starts[i], self.starts[i] + self.depth) for i in patches]
        inputs = torch.stack([self.inputs[..., window] for window in windows])
        labels = torch.stack([self.labels[..., window] for window in windows])
        return inputs, labels.long()


def patch_pool(
    volumes: Sequence[tuple[np.ndarray, np.ndarray]], depth: int, stride: int, device: torch.device | str = "cpu"
) -> PatchPool:
    """Pool of volumes [(inputs (C, x, y, z), labels (x, y, z)), ...] with windows of `depth` slices, `stride` apart."""
    inputs, labels, starts, offset = [], [], [], 0
    for volume, reference in volumes:
        inputs.append(torch.from_numpy(np.ascontiguousarray(pad_axially(volume, depth), dtype=np.float32)))
        labels.append(torch.from_numpy(np.ascontiguousarray(pad_axially(reference, depth), dtype=np.uint8)))
        starts += [offset + start for start in window_starts(volume.shape[-1], depth, stride)]
        offset += inputs[-1].shape[-1]
    all_labels = torch.cat(labels, dim=-1)
    with_lesion = tuple(bool(all_labels[..., start : start + depth].any()) for start in starts)
    return PatchPool(torch.cat(inputs, dim=-1).to(device), all_labels.to(device), tuple(starts), with_lesion, depth)

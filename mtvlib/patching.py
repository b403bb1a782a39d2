"""Axial windows over a volume: where they start, and the volumes of a fold that windows are cut from."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from mtvlib import memory
from mtvlib.errors import WorkError
from mtvlib.params import Params

DEVICE_SHARE = 0.5  # of a graphics card's free memory for volumes; the network's step needs the rest (choice)
HOST_SHARE = 0.7  # of the computer's free memory (choice)


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


# --- the volumes of a fold


@dataclass(frozen=True)
class PatchPool:
    """All volumes of a fold's part; a patch is a view of one of them, so an epoch copies only what one batch needs.

    Slices come first in memory, `inputs` (z, C, x, y) float32 and `labels` (z, x, y) uint8: a patch is then one block,
    which a graphics card fetches in one go where its volume had to stay in the computer's memory.
    """

    inputs: tuple[torch.Tensor | OnDisk, ...]
    labels: tuple[torch.Tensor | OnDisk, ...]
    patients: tuple[str, ...]  # of each volume
    owners: tuple[int, ...]  # volume of each patch
    starts: tuple[int, ...]  # first slice of each patch
    with_lesion: tuple[bool, ...]  # whether a patch holds a lesion
    depth: int
    device: torch.device  # where batches are made

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, patches: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (N, C, X, Y, Z) float32 and labels (N, X, Y, Z) int64 of the patches with these numbers, also none."""
        if not patches:
            _, channels, x, y = self.inputs[0].shape
            inputs = torch.empty((0, channels, x, y, self.depth), device=self.device)
            return inputs, inputs[:, 0].long()
        inputs = torch.stack([self._window(self.inputs, i).permute(1, 2, 3, 0) for i in patches])
        labels = torch.stack([self._window(self.labels, i).permute(1, 2, 0) for i in patches])
        return inputs.contiguous(), labels.contiguous().long()

    def patients_of(self, patches: Iterable[int]) -> list[str]:
        """Whose patches these are, each once, in order."""
        return sorted({self.patients[self.owners[i]] for i in patches})

    def _window(self, volumes: tuple[torch.Tensor | OnDisk, ...], patch: int) -> torch.Tensor:
        start = self.starts[patch]
        return volumes[self.owners[patch]][start : start + self.depth].to(self.device, non_blocking=True)


def patch_pool(
    volumes: Iterable[tuple[str, np.ndarray, np.ndarray]],
    depth: int,
    stride: int,
    device: torch.device | str = "cpu",
    *,
    device_bytes: float | None = None,
    host_bytes: float | None = None,
    scratch: Path | None = None,
) -> PatchPool:
    """Pool of (patient, inputs (C, x, y, z), labels (x, y, z)) with windows of `depth` slices, `stride` apart.

    A volume stays on the device as long as half of its free memory lasts, then in the computer's (pinned, so that
    copies do not keep the device waiting), then in one file without a name in `scratch`. `device_bytes`, `host_bytes`:
    other limits. Batches are the same wherever the volumes lie. Raises `WorkError` if the disk is full.
    """
    store = Store(torch.device(device), device_bytes, host_bytes, scratch)
    inputs, labels, patients, owners, starts, with_lesion = [], [], [], [], [], []
    for number, (patient, volume, reference) in enumerate(volumes):
        first = window_starts(volume.shape[-1], depth, stride)
        reference = pad_axially(reference, depth)
        patients.append(patient)
        owners += [number] * len(first)
        starts += first
        with_lesion += [bool(reference[..., start : start + depth].any()) for start in first]
        inputs.append(store.keep(np.moveaxis(pad_axially(volume, depth), -1, 0), np.float32))
        labels.append(store.keep(np.moveaxis(reference, -1, 0), np.uint8))
    return PatchPool(
        tuple(inputs), tuple(labels), tuple(patients), tuple(owners), tuple(starts), tuple(with_lesion), depth,
        store.device,
    )  # fmt: skip


class Store:
    """Room for arrays: on the device first, then in the computer's memory, then on disk."""

    def __init__(
        self, device: torch.device, device_bytes: float | None, host_bytes: float | None, scratch: Path | None
    ) -> None:
        self.device, self.scratch = device, scratch
        self.device_bytes = DEVICE_SHARE * free_device_bytes(device) if device_bytes is None else device_bytes
        self.host_bytes = HOST_SHARE * memory.free_bytes() if host_bytes is None else host_bytes
        self._file: IO[bytes] | None = None

    def keep(self, array: np.ndarray, kind: type) -> torch.Tensor | OnDisk:
        array = np.array(array, dtype=kind, order="C")  # a copy: the caller's may be a mapped file
        if self.device.type != "cpu" and array.nbytes <= self.device_bytes:
            self.device_bytes -= array.nbytes
            return torch.from_numpy(array).to(self.device)
        if array.nbytes <= self.host_bytes:
            self.host_bytes -= array.nbytes
            tensor = torch.from_numpy(array)
            return tensor.pin_memory() if self.device.type == "cuda" else tensor
        return self._written(array)

    def _written(self, array: np.ndarray) -> OnDisk:
        """The array behind the others in one file, which vanishes with the last of them."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.scratch, buffering=0)  # noqa: SIM115
            start = self._file.seek(0, os.SEEK_END)
            array.tofile(self._file)
        except OSError as error:
            raise WorkError(
                f"the volumes that find no room in memory could not be written: {error.strerror or error}",
                file=self.scratch,
                remedy="free disk space, or train on a computer with more memory; finished epochs are kept.",
            ) from error
        return OnDisk(self._file, start, array.shape, array.dtype)


@dataclass(frozen=True)
class OnDisk:
    """An array in a part of a file. Its slices are read when they are asked for, and the system keeps what it can.

    A mapped file would count as this process' memory, and each mapping would take an open file of the few it may have.
    """

    file: IO[bytes]
    start: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, slices: slice) -> torch.Tensor:
        first, last, _ = slices.indices(self.shape[0])
        found = np.empty((last - first, *self.shape[1:]), self.dtype)
        one = math.prod(self.shape[1:]) * self.dtype.itemsize
        room, place = found.data.cast("B"), self.start + first * one
        while len(room):
            read = os.preadv(self.file.fileno(), [room], place)
            room, place = room[read:], place + read
        return torch.from_numpy(found)


def free_device_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


# --- the order of an epoch


def batches(with_lesion: Sequence[bool], params: Params, fold: int, epoch: int) -> list[list[int]]:
    """Patch numbers of each step of an epoch; `with_lesion`: for every patch whether it holds a lesion.

    Every patch comes once in a random order (paper), or `steps_per_epoch` batches are drawn; with `foreground_share`,
    that share of them from the patches with a lesion. Random numbers come from (seed, fold, epoch), which is what makes
    a resumed run repeat the one that was killed.
    """
    random = np.random.default_rng([params.seed, fold, epoch])
    steps, patches = params.steps_per_epoch, len(with_lesion)
    wanted = patches if steps is None else steps * params.batch_size
    if params.foreground_share is None:
        order = _draw(random, np.arange(patches), wanted)
    else:
        inside = np.flatnonzero(with_lesion)
        foreground = round(params.foreground_share * wanted) if len(inside) else 0
        outside = np.flatnonzero(~np.asarray(with_lesion))
        foreground = foreground if len(outside) else wanted
        drawn = [_draw(random, inside, foreground), _draw(random, outside, wanted - foreground)]
        order = random.permutation(np.concatenate(drawn))
    return [order[first : first + params.batch_size].tolist() for first in range(0, len(order), params.batch_size)]


def _draw(random: np.random.Generator, numbers: np.ndarray, wanted: int) -> np.ndarray:
    """`wanted` of the numbers in a random order, each as often as the others give or take one."""
    rounds = math.ceil(wanted / len(numbers)) if wanted else 0
    return np.concatenate([np.empty(0, int), *(random.permutation(numbers) for _ in range(rounds))])[:wanted]

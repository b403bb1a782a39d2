"""One probability map from overlapping windows: their mean, weighted by a 3D Gaussian (paper, "Network evaluation")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch


def gaussian_window(shape: Sequence[int]) -> np.ndarray:
    """Weights of a window: a 3D Gaussian with full width at half maximum = side of the window, peak 1; float64.

    w(x) = prod_i 2^(-(2 (x_i - c_i) / n_i)^2), c the window's centre: 0.5 on the middle of a face, 0.125 in a corner
    (of a large window; the outermost voxel centres lie half a voxel inside).
    """
    window = np.ones(())
    for side in shape:
        distance = (np.arange(side) - (side - 1) / 2) / side
        axis = np.exp2(-((2 * distance) ** 2))
        window = np.multiply.outer(window, axis / axis.max())
    return window


def stitched_slabs(
    predict: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    depth: int,
    starts: Sequence[int],
    *,
    windows_at_once: int = 1,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Weighted mean of the class probabilities that `predict` gives in axial windows, slab by slab from slice 0 up.

    `predict`: (N, C, X, Y, depth) -> probabilities (N, K, X, Y, depth). `inputs`: (C, X, Y, Z) with Z >= depth.
    `starts`: ascending; every slice must lie in a window. Yields (first slice, (K, X, Y, n)) float32 on the inputs'
    device as soon as no further window reaches these slices, so that only `depth` slices are held at once, whatever Z;
    over k they sum to one. A group of windows without structure, such as air, is predicted once (`_Remembering`).
    """
    weights = _by_slices(*inputs.shape[1:3], depth, device=inputs.device)
    weights.copy_(torch.from_numpy(gaussian_window(weights.shape)))
    remembering = _Remembering(predict, inputs, depth)
    ring: _Ring | None = None
    for first in range(0, len(starts), windows_at_once):
        group = starts[first : first + windows_at_once]
        probabilities = remembering(group)
        ring = ring or _Ring(probabilities.shape[1], weights)
        for z, window in zip(group, probabilities, strict=True):
            yield from ring.finish(z)
            ring.add(z, window)
    assert ring is not None, "no window was given"
    yield from ring.finish(inputs.shape[-1])


def _by_slices(*shape: int, device: torch.device | str) -> torch.Tensor:
    """A tensor (..., X, Y, Z) that lies in memory slice after slice, as windows and their probabilities do."""
    *more, x, y, z = shape
    return torch.zeros((*more, z, y, x), device=device).transpose(-1, -3)


class _Ring:
    """Sums over the windows that still reach beyond the slices handed out; slice z lies at z modulo depth."""

    def __init__(self, classes: int, weights: torch.Tensor) -> None:
        self.weights, self.depth, self.done = weights, weights.shape[-1], 0
        self.total = _by_slices(classes, *weights.shape, device=weights.device)
        self.weight_sum = _by_slices(*weights.shape, device=weights.device)

    def add(self, start: int, window: torch.Tensor) -> None:
        weighted = window.float() * self.weights
        for first, last in self._turns(start, start + self.depth):
            place, part = slice(first % self.depth, (last - 1) % self.depth + 1), slice(first - start, last - start)
            self.total[..., place] += weighted[..., part]
            self.weight_sum[..., place] += self.weights[..., part]

    def finish(self, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Hand out the slices below `stop`, which no later window reaches, and free their places."""
        for first, last in self._turns(self.done, stop):
            place = slice(first % self.depth, (last - 1) % self.depth + 1)
            weight_sum = self.weight_sum[..., place]
            assert bool((weight_sum > 0).all()), "the windows leave a slice uncovered"
            yield first, self.total[..., place] / weight_sum
            self.total[..., place] = 0
            weight_sum.zero_()
        self.done = max(self.done, stop)

    def _turns(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The slices in pieces that do not run over the ring's end."""
        while start < stop:
            end = min(stop, (start // self.depth + 1) * self.depth)
            yield start, end
            start = end


class _Remembering:
    """`predict`, once for all groups of windows whose channels have one value each everywhere, the same in each group.

    Such windows lie outside the patient or in slices added to a short volume. What is given is what `predict` gave for
    the same group, so nothing changes by it, not even the last bit.
    """

    def __init__(self, predict: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, depth: int) -> None:
        self.predict, self.inputs, self.depth = predict, inputs, depth
        # Looked at once for all windows: on a graphics card each look would make the host wait.
        low, high = (end.cpu().numpy() for end in (inputs.amin((1, 2)), inputs.amax((1, 2))))
        self.values, self.flat = low, (low == high).all(0)  # of each channel and slice; of each slice
        self.known: dict[tuple[float, ...], torch.Tensor] = {}

    def __call__(self, group: Sequence[int]) -> torch.Tensor:
        key = self._constants(group)
        if key is None:
            return self.predict(self._windows(group))
        if key not in self.known:
            self.known = {key: self.predict(self._windows(group))}  # the last one only: memory stays bounded
        return self.known[key]

    def _windows(self, group: Sequence[int]) -> torch.Tensor:
        windows = [self.inputs[..., z : z + self.depth] for z in group]
        return windows[0].unsqueeze(0) if len(windows) == 1 else torch.stack(windows)

    def _constants(self, group: Sequence[int]) -> tuple[float, ...] | None:
        """The value of each channel of each window; None if one of them varies."""
        found: list[float] = []
        for z in group:
            slices = slice(z, z + self.depth)
            values = self.values[:, slices]
            if not self.flat[slices].all() or (values != values[:, :1]).any():
                return None
            found += values[:, 0].tolist()
        return tuple(found)

"""One probability map from overlapping windows: their mean, weighted by a 3D Gaussian (paper, "Network evaluation")."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def stitch(
    predict: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    depth: int,
    starts: Sequence[int],
    *,
    windows_at_once: int = 1,
) -> torch.Tensor:
    """Weighted mean of the class probabilities that `predict` gives in axial windows.

    `predict`: (N, C, X, Y, depth) -> probabilities (N, K, X, Y, depth). `inputs`: (C, X, Y, Z) with Z >= depth.
    Returns (K, X, Y, Z) float32 on the inputs' device; over k they sum to one. Every slice must lie in a window.
    """
    weights = torch.from_numpy(gaussian_window((*inputs.shape[1:3], depth))).to(inputs.device, torch.float32)
    total: torch.Tensor | None = None
    weight_sum = torch.zeros(inputs.shape[1:], device=inputs.device)
    for first in range(0, len(starts), windows_at_once):
        group = starts[first : first + windows_at_once]
        probabilities = predict(torch.stack([inputs[..., z : z + depth] for z in group])).float()
        if total is None:
            total = torch.zeros((probabilities.shape[1], *inputs.shape[1:]), device=inputs.device)
        for z, window in zip(group, probabilities, strict=True):
            total[..., z : z + depth] += window * weights
            weight_sum[..., z : z + depth] += weights
    assert total is not None, "no window was given"
    assert bool((weight_sum > 0).all()), "the windows leave a slice uncovered"
    return total / weight_sum

import numpy as np
import pytest
import torch

from mtvlib.patching import window_starts
from mtvlib.stitching import gaussian_window, stitch


def test_half_maximum_lies_at_the_faces():
    """Full width at half maximum = side: 0.5 half a side from the centre, so sigma is side / 2.3548."""
    window = gaussian_window((129, 129, 33))
    assert window.max() == window[64, 64, 16] == 1
    beyond = np.exp(-0.5 * ((np.arange(129) - 64) / (129 / 2.354820045)) ** 2)
    np.testing.assert_allclose(window[:, 64, 16], beyond, rtol=1e-7)
    between = np.sqrt(window[0, 64, 16] * window[0, 64, 16])
    assert between == pytest.approx(0.5, abs=0.006)  # the outermost voxel's centre lies half a voxel inside the face


def test_agrees_with_monais_importance_map():
    """MONAI's `sigma_scale` is sigma / side, ours 1 / (2 sqrt(2 ln 2)) = 0.42466; its map has another peak."""
    data_utils = pytest.importorskip("monai.data.utils")
    for shape in ((128, 128, 32), (16, 24, 9)):
        theirs = data_utils.compute_importance_map(
            shape, mode="gaussian", sigma_scale=1 / (2 * np.sqrt(2 * np.log(2)))
        ).numpy()
        np.testing.assert_allclose(gaussian_window(shape), theirs / theirs.max(), rtol=1e-5)


def test_constant_predictions_stay_as_they_are():
    probabilities = torch.tensor([0.2, 0.7, 0.1]).view(1, 3, 1, 1, 1)
    stitched = stitch(
        lambda x: probabilities.expand(len(x), 3, 4, 4, 8), torch.zeros(1, 4, 4, 21), 8, [0, 4, 8, 12, 13]
    )
    torch.testing.assert_close(stitched, probabilities[0].expand(3, 4, 4, 21))


def test_two_windows_by_hand():
    """Windows of 2 slices at 0 and 1: both weights in a window are equal, so the shared slice is the plain mean."""
    values = iter([1.0, 3.0])
    stitched = stitch(lambda x: torch.full((len(x), 1, 1, 1, 2), next(values)), torch.zeros(1, 1, 1, 3), 2, [0, 1])
    assert stitched.flatten().tolist() == [1.0, 2.0, 3.0]


def test_the_middle_of_a_window_counts_more():
    """Windows of 3 slices at 0 and 1: weights 2^-(4/9), 1, 2^-(4/9); slice 1 is the first window's middle."""
    values = iter([0.0, 1.0])
    stitched = stitch(lambda x: torch.full((len(x), 1, 1, 1, 3), next(values)), torch.zeros(1, 1, 1, 4), 3, [0, 1])
    side = 2 ** (-4 / 9)
    np.testing.assert_allclose(stitched.flatten(), [0, side / (side + 1), 1 / (side + 1), 1], rtol=1e-6)


def test_batching_windows_changes_nothing():
    network = torch.nn.Conv3d(2, 3, 3, padding=1)
    inputs, starts = torch.rand(2, 6, 6, 30), window_starts(30, 8, 2)
    with torch.no_grad():
        one = stitch(network, inputs, 8, starts)
        four = stitch(network, inputs, 8, starts, windows_at_once=4)
    torch.testing.assert_close(one, four)


def test_an_uncovered_slice_is_refused():
    with pytest.raises(AssertionError, match="uncovered"):
        stitch(lambda x: torch.ones(len(x), 1, 2, 2, 4), torch.zeros(1, 2, 2, 10), 4, [0, 6])

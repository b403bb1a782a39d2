import math

import numpy as np
import pytest
import torch

from mtvlib import stitching
from mtvlib.patching import window_starts
from mtvlib.stitching import gaussian_window, stitched_slabs


def stitch(*window, **how):
    """The slabs as one map (K, X, Y, Z)."""
    return torch.cat([slab for _, slab in stitched_slabs(*window, **how)], -1)


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
    stitched = stitch(
        lambda x: torch.full((len(x), 1, 1, 1, 2), next(values)), torch.arange(3.0).view(1, 1, 1, 3), 2, [0, 1]
    )
    assert stitched.flatten().tolist() == [1.0, 2.0, 3.0]


def test_the_middle_of_a_window_counts_more():
    """Windows of 3 slices at 0 and 1: weights 2^-(4/9), 1, 2^-(4/9); slice 1 is the first window's middle."""
    values = iter([0.0, 1.0])
    stitched = stitch(
        lambda x: torch.full((len(x), 1, 1, 1, 3), next(values)), torch.arange(4.0).view(1, 1, 1, 4), 3, [0, 1]
    )
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


def plainly(predict, inputs, depth, starts):
    """The definition: two sums over the whole volume, then their quotient."""
    weights = torch.from_numpy(gaussian_window((*inputs.shape[1:3], depth))).float()
    total, weight_sum = torch.zeros(3, *inputs.shape[1:]), torch.zeros(inputs.shape[1:])
    for z in starts:
        total[..., z : z + depth] += predict(inputs[None, ..., z : z + depth])[0] * weights
        weight_sum[..., z : z + depth] += weights
    return total / weight_sum


@pytest.mark.parametrize(("length", "depth", "stride"), [(8, 8, 2), (21, 8, 4), (30, 8, 3), (33, 8, 8), (19, 8, 1)])
@torch.inference_mode()
def test_slab_by_slab_is_the_whole_bit_for_bit(length, depth, stride):
    network = torch.nn.Conv3d(2, 3, 3, padding=1)
    inputs, starts = torch.rand(2, 6, 5, length), window_starts(length, depth, stride)
    slabs = list(stitched_slabs(network, inputs, depth, starts))
    assert torch.equal(torch.cat([slab for _, slab in slabs], -1), plainly(network, inputs, depth, starts))
    assert [first for first, _ in slabs] == np.cumsum([0, *(slab.shape[-1] for _, slab in slabs)])[:-1].tolist()
    assert torch.equal(stitch(network, inputs, depth, starts), plainly(network, inputs, depth, starts))


def test_slices_are_handed_out_as_soon_as_no_window_reaches_them():
    seen = []

    def predict(windows):
        seen.append(len(windows))
        return torch.ones(len(windows), 3, 2, 2, 8)

    inputs = torch.rand(1, 2, 2, 800)
    first, slab = next(iter(stitched_slabs(predict, inputs, 8, window_starts(800, 8, 2))))
    assert (first, slab.shape[-1], len(seen)) == (0, 2, 2)  # the second window begins at slice 2


@pytest.mark.parametrize("at_once", [1, 2])
@torch.inference_mode()
def test_windows_of_air_are_predicted_once_and_nothing_changes(at_once):
    network, calls = torch.nn.Conv3d(2, 3, 3, padding=1), []

    def counting(windows):
        calls.append(windows)
        return network(windows)

    inputs = torch.rand(2, 6, 6, 64)
    inputs[..., 8:40] = torch.tensor([0.0, 0.25]).view(2, 1, 1, 1)
    starts = window_starts(64, 8, 4)  # 15, of which those at 8, 12, ... 32 are of air
    found = stitch(counting, inputs, 8, starts, windows_at_once=at_once)
    assert sum(map(len, calls)) == {1: 9, 2: 11}[at_once]  # 7 or, of whole pairs, 3 groups of air: one of them is seen
    expected = plainly(network, inputs, 8, starts)
    torch.testing.assert_close(found, expected)
    assert at_once > 1 or torch.equal(found, expected)


def test_accumulators_do_not_grow_with_the_volume(monkeypatch):
    """Counted, not timed: what is allocated for sums and weights, and how much is handed out at once."""

    def numbers(length):
        made = []

        def counting(*shape, device):
            made.append(math.prod(shape))
            return by_slices(*shape, device=device)

        monkeypatch.setattr(stitching, "_by_slices", counting)
        inputs = torch.rand(1, 6, 5, length)
        slabs = stitched_slabs(lambda x: torch.ones(len(x), 3, 6, 5, 8), inputs, 8, window_starts(length, 8, 2))
        assert max(slab.shape[-1] for _, slab in slabs) <= 8
        return sum(made)

    by_slices = stitching._by_slices
    assert numbers(16) == numbers(400) == (1 + 1 + 3) * 6 * 5 * 8  # a window's weights, their sum, three classes' sums


@torch.inference_mode()
def test_a_window_that_varies_in_one_voxel_or_one_channel_is_no_air():
    network = torch.nn.Conv3d(2, 3, 3, padding=1)
    for channel, z in ((0, 0), (1, 7), (1, 19)):
        inputs = torch.zeros(2, 6, 6, 20)
        inputs[channel, 3, 1, z] = 1
        expected = plainly(network, inputs, 8, [0, 4, 8, 12])
        assert torch.equal(stitch(network, inputs, 8, [0, 4, 8, 12]), expected)


@torch.inference_mode()
def test_flat_slices_of_different_values_are_no_air():
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    inputs = torch.arange(20.0).expand(1, 6, 6, 20)
    assert torch.equal(stitch(network, inputs, 8, [0, 4, 8, 12]), plainly(network, inputs, 8, [0, 4, 8, 12]))

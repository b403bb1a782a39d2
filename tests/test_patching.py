import numpy as np
import pytest
import torch

from mtvlib.patching import pad_axially, patch_pool, window_starts


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (133, [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 101]),  # the paper's mean field: 14 patches
        (48, [0, 8, 16]),
        (33, [0, 1]),
        (32, [0]),
        (20, [0]),
    ],
)
def test_windows_step_by_the_stride_and_end_flush(length, starts):
    assert window_starts(length, window=32, stride=8) == starts


def test_the_papers_number_of_patches():
    """9535 patches of 698 scans are 13.66 a scan: that of fields of about 133 slices (33 cm) with a stride of 8."""
    assert pytest.approx(len(window_starts(133, 32, 8)), abs=0.5) == 9535 / 698


def test_every_slice_is_covered_in_each_window_count():
    for length in range(1, 120):
        covered = np.zeros(max(length, 32), bool)
        for start in window_starts(length, 32, 8):
            covered[start : start + 32] = True
        assert covered.all()


def test_padding_adds_empty_slices_at_the_head_end_only():
    padded = pad_axially(np.ones((2, 3, 3, 5), np.float32), 8)
    assert padded.shape == (2, 3, 3, 8)
    assert padded[..., :5].min() == 1
    assert padded[..., 5:].max() == 0
    assert pad_axially(padded, 4) is padded


def test_a_batch_is_the_volumes_own_voxels():
    volumes = [
        (np.random.default_rng(i).random((2, 4, 4, depth), dtype=np.float32), np.full((4, 4, depth), i, np.uint8))
        for i, depth in enumerate((5, 11))
    ]
    pool = patch_pool(volumes, depth=8, stride=2)
    assert pool.starts == (0, 8, 10, 11)
    assert pool.with_lesion == (False, True, True, True)
    inputs, labels = pool.batch([0, 3])
    assert inputs.shape == (2, 2, 4, 4, 8)
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(inputs[0, ..., :5], volumes[0][0])
    np.testing.assert_array_equal(inputs[1], volumes[1][0][..., 3:])
    assert labels[1].unique().tolist() == [1]

import errno
import os
import resource

import numpy as np
import pytest
import torch

from mtvlib import patching
from mtvlib.errors import WorkError
from mtvlib.patching import batches, pad_axially, patch_pool, window_starts
from tests.tiny_fold import PARAMS


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


def two_volumes():
    return [
        (
            f"P{i}",
            np.random.default_rng(i).random((2, 4, 4, depth), dtype=np.float32),
            np.full((4, 4, depth), i, np.uint8),
        )
        for i, depth in enumerate((5, 11))
    ]


def test_a_batch_is_the_volumes_own_voxels():
    volumes = two_volumes()
    pool = patch_pool(volumes, depth=8, stride=2)
    assert (pool.owners, pool.starts) == ((0, 1, 1, 1), (0, 0, 2, 3))
    assert pool.with_lesion == (False, True, True, True)
    inputs, labels = pool.batch([0, 3])
    assert inputs.shape == (2, 2, 4, 4, 8)
    assert labels.dtype == torch.int64
    assert inputs.is_contiguous()
    np.testing.assert_array_equal(inputs[0, ..., :5], volumes[0][1])
    assert inputs[0, ..., 5:].abs().max() == 0
    np.testing.assert_array_equal(inputs[1], volumes[1][1][..., 3:])
    assert labels[1].unique().tolist() == [1]


def test_a_patch_knows_its_patient():
    pool = patch_pool(two_volumes(), depth=8, stride=2)
    assert pool.patients_of([3, 0, 2]) == ["P0", "P1"]
    assert pool.patients_of([1]) == ["P1"]


@pytest.mark.parametrize("host_bytes", [0, 600, None])
def test_batches_are_the_same_wherever_the_volumes_lie(tmp_path, host_bytes):
    """Inputs take 2 * 4 * 4 * 8 * 4 = 1024 and 1408 bytes, labels 128 and 176: all, inputs or none go to disk."""
    pool = patch_pool(two_volumes(), 8, 2, host_bytes=host_bytes, scratch=tmp_path)
    usual = patch_pool(two_volumes(), 8, 2)
    for one, other in zip(pool.batch(range(4)), usual.batch(range(4)), strict=True):
        assert torch.equal(one, other)
    assert list(tmp_path.iterdir()) == []  # the file has no name any more


def test_what_the_memory_does_not_hold_lies_in_one_file(tmp_path):
    """Inputs are (slices, 2, 4, 4) float32, labels (slices, 4, 4) uint8; 600 bytes hold both labels."""
    pool = patch_pool(two_volumes(), 8, 2, host_bytes=600, scratch=tmp_path)
    first, second = pool.inputs
    assert all(isinstance(labels, torch.Tensor) for labels in pool.labels)
    assert (first.start, second.start) == (0, 1024)
    assert first.file is second.file
    assert os.fstat(first.file.fileno()).st_size == 1024 + 1408
    usual = patch_pool(two_volumes(), 8, 2).inputs[1]
    assert torch.equal(second[2:5], usual[2:5])
    assert torch.equal(second[9:20], usual[9:20])


def test_thousands_of_volumes_on_disk_need_one_open_file(tmp_path):
    """A process may have 1024 open files on most computers."""
    most = len(os.listdir("/proc/self/fd")) + 10
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        volumes = [(f"P{i}", np.full((1, 2, 2, 8), i, np.float32), np.zeros((2, 2, 8))) for i in range(3000)]
        pool = patch_pool(volumes, 8, 8, host_bytes=0, scratch=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert pool.batch([0, 1234, 2999])[0].mean((1, 2, 3, 4)).tolist() == [0, 1234, 2999]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(patching.tempfile, "TemporaryFile", full)
    with pytest.raises(WorkError, match=r"no room in memory could not be written: No space left .*free disk space"):
        patch_pool(two_volumes(), 8, 2, host_bytes=0, scratch=tmp_path)


def test_a_device_is_filled_before_the_computer(tmp_path):
    """The device of this test is one that keeps no voxels; only what would have gone there counts."""
    store = patching.Store(torch.device("meta"), 1100, 10_000, tmp_path)
    kept = [store.keep(array, kind).device.type for _, x, y in two_volumes() for array, kind in ((x, "f4"), (y, "u1"))]
    assert kept == ["meta", "meta", "cpu", "meta"]  # 2 * 80 * 4 + 80 fit, 2 * 176 * 4 do not, 176 do


def test_an_epoch_takes_every_patch_once_and_depends_on_seed_fold_and_epoch():
    pool = [True] * 21
    order = [patch for batch in batches(pool, PARAMS, fold=1, epoch=3) for patch in batch]
    assert sorted(order) == list(range(21))
    assert batches(pool, PARAMS, 1, 3) == batches(pool, PARAMS, 1, 3)
    assert batches(pool, PARAMS, 1, 3) != batches(pool, PARAMS, 1, 4)
    assert batches(pool, PARAMS, 1, 3) != batches(pool, PARAMS, 2, 3)


def test_steps_per_epoch_is_kept_whatever_the_number_of_patches():
    params = PARAMS.model_copy(update={"steps_per_epoch": 7})
    assert [len(batch) for batch in batches([True] * 5, params, 0, 1)] == [2] * 7


@pytest.mark.parametrize(
    ("with_lesion", "expected"), [([True, False, False, False], 15), ([True] * 4, 20), ([False] * 4, 0)]
)
def test_a_share_of_the_patches_holds_a_lesion_if_there_are_such(with_lesion, expected):
    params = PARAMS.model_copy(update={"steps_per_epoch": 10, "foreground_share": 0.75})
    drawn = [patch for batch in batches(with_lesion, params, 0, 1) for patch in batch]
    assert len(drawn) == 20
    assert sum(with_lesion[patch] for patch in drawn) == expected

import pytest
import torch

from mtvlib import ranks
from mtvlib.ranks import ALONE, Ranks


@pytest.mark.parametrize(
    ("patches", "size", "parts"),
    [(16, 2, [8, 8]), (5, 2, [3, 2]), (7, 3, [3, 2, 2]), (1, 2, [1, 0]), (3, 1, [3])],
)
def test_every_patch_of_a_batch_is_one_ranks(patches, size, parts):
    taken = [list(range(patches))[Ranks(rank, size).part(patches)] for rank in range(size)]
    assert [len(one) for one in taken] == parts
    assert [patch for one in taken for patch in one] == list(range(patches))


def test_every_batch_of_validation_is_one_ranks():
    shares = [list(Ranks(rank, 3).share(range(0, 70, 10))) for rank in range(3)]
    assert shares == [[0, 30, 60], [10, 40], [20, 50]]
    assert list(ALONE.share(range(0, 70, 10))) == list(range(0, 70, 10))


def test_tensors_of_any_shape_and_layout_are_added_up_in_one_message(monkeypatch):
    """The other rank's numbers are 10 times this one's."""
    messages = []

    def all_reduce(flat):
        messages.append(len(flat))
        flat.mul_(11)

    monkeypatch.setattr(ranks.distributed, "all_reduce", all_reduce)
    one, other = torch.arange(6.0).view(2, 3).T, torch.tensor(2.0)
    Ranks(0, 2).add_up(one, other)
    assert messages == [7]
    assert (one.tolist(), float(other)) == ([[0, 33], [11, 44], [22, 55]], 22)


def test_alone_nothing_is_sent():
    """PyTorch would say that no group was made."""
    one = torch.ones(2)
    ALONE.add_up(one)
    assert one.tolist() == [1, 1]
    assert ALONE.from_first(7, torch.device("cpu")) == 7

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mtvlib.loss import PartsLoss, dice_cross_entropy, loss_of
from mtvlib.params import Params


def test_loss_by_hand():
    """Two voxels, three classes, probabilities (.5, .25, .25) everywhere; truth: primary, background.

    Dice with s = 1: primary (2 * .25 + 1) / (.5 + 1 + 1) = .6, nodes (0 + 1) / (.5 + 0 + 1) = 2/3.
    Cross-entropy: -(ln .25 + ln .5) / 2.
    """
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).view(1, 3, 1, 1, 1).expand(1, 3, 2, 1, 1)
    labels = torch.tensor([1, 0]).view(1, 2, 1, 1)
    expected = 1 - (0.6 + 2 / 3) / 2 - (np.log(0.25) + np.log(0.5)) / 2
    assert float(dice_cross_entropy(logits, labels, smooth=1.0, background=False)) == pytest.approx(expected, rel=1e-6)


def test_loss_agrees_with_monai():
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5, 6, 7), torch.randint(0, 3, (2, 5, 6, 7))
    theirs = losses.DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )(logits, labels[:, None])
    ours = dice_cross_entropy(logits, labels, smooth=1.0, background=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_perfect_prediction_has_no_loss():
    labels = torch.randint(0, 3, (1, 4, 4, 4))
    logits = 100.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    assert float(dice_cross_entropy(logits, labels, smooth=1.0, background=True)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", ["dice_cross_entropy", "dice", "cross_entropy"])
def test_the_parameter_chooses_the_terms(loss):
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    found = loss_of(logits, labels, Params(loss=loss))
    both = dice_cross_entropy(logits, labels, smooth=1e-5, background=False)
    cross_entropy = F.cross_entropy(logits, labels)
    torch.testing.assert_close(found.cross_entropy, cross_entropy)
    torch.testing.assert_close(found.dice, both - cross_entropy)
    expected = {"dice_cross_entropy": both, "dice": both - cross_entropy, "cross_entropy": cross_entropy}
    torch.testing.assert_close(found.total, expected[loss])


@pytest.mark.parametrize("loss", ["dice_cross_entropy", "dice", "cross_entropy"])
@pytest.mark.parametrize("sizes", [(5,), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(loss, sizes):
    """The first patch is full of lesion, the others hold none: a mean of the parts' Dice would be far off."""
    torch.manual_seed(0)
    params, labels = Params(loss=loss), torch.zeros(5, 4, 4, 4, dtype=torch.int64)
    labels[0] = torch.randint(0, 3, (4, 4, 4))
    whole = torch.randn(5, 3, 4, 4, 4, dtype=torch.float32, requires_grad=True)
    expected = loss_of(whole, labels, params)
    expected.total.backward()
    cut = whole.detach().clone().requires_grad_()
    parts = PartsLoss(params, 5)
    for one, reference in zip(cut.split(sizes), labels.split(sizes), strict=True):
        parts.look(one, reference)
    parts.settle()
    for one, reference in zip(cut.split(sizes), labels.split(sizes), strict=True):
        parts.share(one, reference).backward()
    torch.testing.assert_close(cut.grad, whole.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(parts.loss, expected, rtol=1e-6, atol=1e-6)
    if loss != "cross_entropy" and len(sizes) > 1:
        alone = whole.detach().clone().requires_grad_()
        for one, reference in zip(alone.split(sizes), labels.split(sizes), strict=True):
            (loss_of(one, reference, params).total * len(one) / 5).backward()
        assert float((alone.grad - whole.grad).norm()) > 0.02 * float(whole.grad.norm())

"""What training lowers and what validation watches: Dice and cross-entropy, pooled over a batch or a whole set."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtvlib.params import Params
from mtvlib.ranks import ALONE, Ranks


class Loss(NamedTuple):
    """Both terms of a step, each a scalar; `total` is what the parameter `loss` makes of them."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor


def dice_terms(probabilities: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Per class, over batch and voxels: twice the soft intersection and the sum of both volumes; each (K,)."""
    over = (0, *range(2, probabilities.ndim))
    return 2 * (probabilities * one_hot).sum(over), probabilities.sum(over) + one_hot.sum(over)


def terms_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`dice_terms` of the softmax of `logits` (N, K, X, Y, Z) float32 with `labels` (N, X, Y, Z) int64."""
    one_hot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    return dice_terms(torch.softmax(logits, 1), one_hot)


def dice_loss(twice_intersection: Tensor, volumes: Tensor, *, smooth: float, background: bool) -> Tensor:
    """1 - mean_k (2 sum p_k g_k + s) / (sum p_k + sum g_k + s), k over the lesion classes unless `background`."""
    dice = (twice_intersection + smooth) / (volumes + smooth)
    return 1 - dice[0 if background else 1 :].mean()


def dice_cross_entropy(logits: Tensor, labels: Tensor, *, smooth: float, background: bool) -> Tensor:
    """Dice + cross-entropy with equal weights (paper, "Training procedure"; the exact form is its supplement's).

    Choice: L = 1 - mean_k (2 sum p_k g_k + s) / (sum p_k + sum g_k + s) - mean_voxels log p_true, the sums over the
    whole batch (a patch without a lesion then cannot dominate), k over the lesion classes unless `background`.
    `logits` (N, K, X, Y, Z), `labels` (N, X, Y, Z) int64.
    """
    logits = logits.float()
    dice = dice_loss(*terms_of(logits, labels), smooth=smooth, background=background)
    return dice + F.cross_entropy(logits, labels)


def loss_of(logits: Tensor, labels: Tensor, params: Params) -> Loss:
    """The loss of one batch as the parameters `loss`, `dice_smooth` and `dice_background` want it."""
    logits = logits.float()
    dice = dice_loss(*terms_of(logits, labels), smooth=params.dice_smooth, background=params.dice_background)
    return _together(dice, F.cross_entropy(logits, labels), params)


def _together(dice: Tensor, cross_entropy: Tensor, params: Params) -> Loss:
    total = {"dice_cross_entropy": dice + cross_entropy, "dice": dice, "cross_entropy": cross_entropy}[params.loss]
    return Loss(total, dice, cross_entropy)


class PartsLoss:
    """The loss of a batch that is seen in parts: one after the other to save memory, or each by another rank.

    Dice divides sums over the whole batch, so it is no sum of the parts' losses. A first look at all parts, without
    gradients, finds the sums; then each part's share of the gradient is exact: dL = sum_k dL/dI_k dI_k + dL/dV_k dV_k,
    with the two derivatives taken at the batch's sums.
    """

    def __init__(self, params: Params, patches: int) -> None:
        self.params, self.patches = params, patches
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._slopes: tuple[Tensor, ...] = ()
        self._dice = self.cross_entropy = torch.zeros(())

    @torch.no_grad()
    def look(self, logits: Tensor, labels: Tensor) -> None:
        """First round: add a part's sums."""
        self._sums.append(terms_of(logits.float(), labels))

    def settle(self, ranks: Ranks = ALONE) -> None:
        """Between the rounds: Dice of the batch, and its derivative by each sum."""
        sums = [torch.stack(one).sum(0) for one in zip(*self._sums, strict=True)]
        ranks.add_up(*sums)
        sums = [one.requires_grad_() for one in sums]
        dice = dice_loss(sums[0], sums[1], smooth=self.params.dice_smooth, background=self.params.dice_background)
        self._slopes, self._dice = torch.autograd.grad(dice, sums), dice.detach()
        self.cross_entropy = torch.zeros_like(self._dice)

    def share(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Second round: a scalar whose gradients, added over the parts, are the batch's."""
        logits = logits.float()
        cross_entropy = F.cross_entropy(logits, labels) * (len(labels) / self.patches)
        self.cross_entropy = self.cross_entropy + cross_entropy.detach()
        dice = sum((slope * term).sum() for slope, term in zip(self._slopes, terms_of(logits, labels), strict=True))
        return _together(torch.as_tensor(dice), cross_entropy, self.params).total

    @property
    def loss(self) -> Loss:
        """Of the whole batch, after both rounds; among several ranks once they have added up `cross_entropy`."""
        return _together(self._dice, self.cross_entropy, self.params)

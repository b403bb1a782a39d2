"""The processes that train one fold together: which part of a batch each one takes, and what they add up.

All of them hold the same weights, draw the same batches and do the same step, since random numbers come from (seed,
fold, epoch, step). Each computes its part of the batch; the sums of the Dice loss, then the gradient and the
cross-entropy are added up, so that a step is that of one process but for the order of additions. PyTorch's
DistributedDataParallel would average gradients of each part's own loss, which is another loss: Dice divides sums over
the whole batch. Alone, nothing of this happens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """This process among those of a fold: number `rank` of `size`, `local` of `here` on this computer."""

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes files."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    def part(self, patches: int) -> slice:
        """The patches of a batch that this process takes: neighbours, as many as the others give or take one."""
        each, more = divmod(patches, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def share(self, items: range) -> range:
        """Every `size`th item."""
        return items[self.rank :: self.size]

    @torch.no_grad()
    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, in one message."""
        if not self.several:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def from_first(self, number: int, device: torch.device) -> int:
        """What the first process holds; the others wait for it."""
        if not self.several:
            return number
        shared = torch.tensor([number], device=device)
        distributed.broadcast(shared, 0)
        return int(shared)


ALONE = Ranks()

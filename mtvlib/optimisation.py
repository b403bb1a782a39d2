"""From gradients to weights: optimiser, learning rate, clipping and the running mean of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtvlib.params import Params

STATE = {  # what PyTorch keeps for each parameter
    "adadelta": ("step", "square_avg", "acc_delta"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
}


def make_optimizer(network: nn.Module, params: Params) -> torch.optim.Optimizer:
    if params.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    return torch.optim.Adadelta(
        network.parameters(),
        lr=params.learning_rate,
        rho=params.adadelta_rho,
        eps=params.adadelta_eps,
        weight_decay=params.weight_decay,
    )


def learning_rate(params: Params, epochs_done: float) -> float:
    """Learning rate after so many epochs: constant, or falling towards the last one ("poly", as in nnU-Net; choice).

    With `warmup_epochs` it also rises in proportion to the epochs done, which a step counts in fractions.
    """
    whole = int(epochs_done)
    rate = params.learning_rate
    if params.learning_rate_power is not None:
        rate *= (1 - whole / params.epochs) ** params.learning_rate_power
    return rate * min(1.0, epochs_done / params.warmup_epochs) if params.warmup_epochs else rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def limit_gradient(network: nn.Module, longest: float | None) -> Tensor:
    """Norm of the gradient over all parameters, a scalar on the device; one longer than `longest` is cut to it."""
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if longest is not None:
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return norm.detach()


@torch.no_grad()
def update_mean(mean: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """mean <- d mean + (1 - d) network; d rises to `decay` so that the first steps are forgotten soon."""
    decay = min(decay, (1 + step) / (10 + step))
    averages: list[Tensor] = list(mean.parameters())
    values: list[Tensor] = list(network.parameters())
    torch._foreach_lerp_(averages, values, 1 - decay)

import math

import pytest
import torch

from mtvlib import optimisation, training
from mtvlib.params import Params
from tests.tiny_fold import PARAMS


def test_adadelta_is_mxnets():
    """MXNet's update by hand: g2 = .9 g2 + .1 g^2; d = sqrt(d2 + e) / sqrt(g2 + e) g; d2 = .9 d2 + .1 d^2; w -= d."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    network = torch.nn.Module()
    network.weight = weight
    optimizer = optimisation.make_optimizer(network, Params())
    w, g2, d2, e = 2.0, 0.0, 0.0, 1e-5
    for _ in range(3):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
        g = 2 * w
        g2 = 0.9 * g2 + 0.1 * g * g
        d = (d2 + e) ** 0.5 / (g2 + e) ** 0.5 * g
        d2 = 0.9 * d2 + 0.1 * d * d
        w -= d
    assert weight.item() == pytest.approx(w, rel=1e-6)


def test_the_mean_of_the_weights_by_hand():
    """Decay 0.5 from step 8 on ((1 + 8) / (10 + 8)); at step 0 it is 0.1."""
    network, mean = (
        training.build(training.network_config(PARAMS), 1),
        training.build(training.network_config(PARAMS), 2),
    )
    before = mean.head.weight.clone()
    optimisation.update_mean(mean, network, 0.5, step=0)
    torch.testing.assert_close(mean.head.weight, 0.1 * before + 0.9 * network.head.weight)
    before = mean.head.weight.clone()
    optimisation.update_mean(mean, network, 0.5, step=99)
    torch.testing.assert_close(mean.head.weight, 0.5 * before + 0.5 * network.head.weight)


def test_the_learning_rate_is_constant_or_falls_towards_the_last_epoch():
    falling = PARAMS.model_copy(update={"learning_rate": 0.5, "learning_rate_power": 2.0})
    assert [optimisation.learning_rate(PARAMS, done) for done in range(4)] == [1.0] * 4
    assert [optimisation.learning_rate(falling, done) for done in range(4)] == [0.5, 0.5 * 9 / 16, 0.125, 0.5 / 16]


def test_the_learning_rate_rises_step_by_step_and_then_falls():
    """Two epochs of warm-up of four: half of the way is done after the first; then (1 - 2/4) and (1 - 3/4)."""
    params = PARAMS.model_copy(update={"learning_rate": 0.8, "warmup_epochs": 2, "learning_rate_power": 1.0})
    rates = [optimisation.learning_rate(params, done) for done in (0.25, 0.75, 1.0, 1.5, 2.5, 3.5)]
    expected = [0.8 / 8, 0.8 * 3 / 8, 0.8 * 0.75 / 2, 0.8 * 0.75 * 0.75, 0.4, 0.2]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("longest", "kept"), [(None, 1.0), (20.0, 1.0), (6.5, 0.5)])
def test_a_long_gradient_is_shortened_by_hand(longest, kept):
    """Gradients (3, 4) and (12): norm 13."""
    network = torch.nn.ParameterList([torch.zeros(2), torch.zeros(1), torch.zeros(1)])
    network[0].grad, network[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])  # the third one took no part
    assert float(optimisation.limit_gradient(network, longest)) == 13
    assert network[0].grad.tolist() == pytest.approx([3 * kept, 4 * kept], rel=1e-5)
    assert network[1].grad.tolist() == pytest.approx([12 * kept], rel=1e-5)


def test_a_gradient_that_is_no_number_is_told():
    network = torch.nn.ParameterList([torch.zeros(2)])
    network[0].grad = torch.tensor([1.0, math.nan])
    assert math.isnan(optimisation.limit_gradient(network, None))

"""The fast way through the network against `Network.forward` in double precision, which is slow but right."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtvlib import execution
from mtvlib.network import BothSides, NetworkConfig, build
from mtvlib.params import read
from mtvlib.training import network_config

STUDIES = Path(__file__).resolve().parents[1] / "params"
SMALL = NetworkConfig(patch_shape=(16, 24, 8), filters=(4, 8, 16), units_per_level=(1, 2, 3), attention_heads=2)


def decided(config, seed=1):
    """Random weights, but logits far enough apart that all classes win somewhere."""
    network = build(config, seed).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        network.head.weight.mul_(40)
    return network


def windows(config, number=2):
    random = torch.Generator().manual_seed(7)
    return torch.rand(number, config.in_channels, *config.patch_shape, generator=random)


def exact(network, inputs):
    with torch.no_grad():
        return torch.softmax(copy.deepcopy(network).double()(inputs.double()), 1)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        NetworkConfig(in_channels=1, patch_shape=(16, 16, 16), filters=(4, 8), attention=False),
        NetworkConfig(patch_shape=(8, 8, 8), filters=(3, 6), classes=4, attention_heads=3),
    ],
)
def test_probabilities_are_those_of_the_network(config):
    network, inputs = decided(config), windows(config)
    with torch.no_grad():
        found = execution.probabilities_of(network, inputs)
    assert found.shape == (2, config.classes, *config.patch_shape)
    assert (found.std(), found.max()) > (0.1, 0.9)  # it matters
    torch.testing.assert_close(found.double(), exact(network, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("study", ["paper", "demo", "modern"])
def test_the_networks_of_the_studies_are_as_exact_as_by_themselves(study):
    """In shorter windows: these logits are far apart, so that rounding shows, here as in `Network.forward`."""
    config = replace(network_config(read(STUDIES / f"{study}.yml")), patch_shape=(32, 32, 32))
    network, inputs = decided(config), windows(config, 1)
    with torch.no_grad():
        found, own = execution.probabilities_of(network, inputs), torch.softmax(network(inputs), 1)
    right = exact(network, inputs)
    assert (found.std(), found.max()) > (0.1, 0.9)
    assert (found - own).abs().max() < 1e-4
    assert (found - right).abs().max() < max(1e-5, 3 * (own - right).abs().max())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 6, 1), (5, 3, 1), (3, 5, 7)])
def test_odd_shapes_and_any_order_in_memory(shape, threads):
    """The bottom has this shape; one channel and one slice have no order of their own in memory."""
    side = tuple(2 * voxels for voxels in shape)
    config = NetworkConfig(in_channels=1, patch_shape=side, filters=(1, 4), units_per_level=1, attention_heads=2)
    network, inputs = decided(config), windows(config)
    orders = [inputs, inputs.permute(4, 3, 2, 0, 1).contiguous().permute(3, 4, 2, 1, 0)]
    orders.append(inputs.contiguous(memory_format=torch.channels_last_3d))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            found = [execution.probabilities_of(network, one) for one in orders]
    finally:
        torch.set_num_threads(before)
    for one in found:
        torch.testing.assert_close(one.double(), exact(network, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("slab", [2**9, 2**21])
def test_slabs_and_the_way_to_convolve_change_nothing(monkeypatch, slab, direct):
    """What is made slab by slab, or without oneDNN's own operators, is what is made whole."""
    network, inputs = decided(SMALL), windows(SMALL)
    monkeypatch.setattr(execution, "_SLAB", slab)
    monkeypatch.setattr(execution, "_PIECE", slab)
    if not direct:
        monkeypatch.setattr(execution, "_direct", lambda: False)
    with torch.no_grad():
        found = execution.probabilities_of(network, inputs)
    torch.testing.assert_close(found.double(), exact(network, inputs), atol=1e-5, rtol=0)


def test_a_piece_of_a_volume_that_lies_slice_after_slice_is_read_in_place():
    network = decided(SMALL)
    volume = torch.rand(20, 24, 16, 2).permute(3, 2, 1, 0)  # (z, y, x, channel) in memory
    before = volume.clone()
    with torch.no_grad():
        found = execution.probabilities_of(network, volume[..., 5:13].unsqueeze(0))
    assert torch.equal(volume, before)
    torch.testing.assert_close(found.double(), exact(network, volume[None, ..., 5:13]), atol=1e-5, rtol=0)


def test_both_sides_are_averaged():
    network, inputs = decided(SMALL), windows(SMALL)
    with torch.no_grad():
        found = execution.probabilities_of(BothSides(network), inputs)
    expected = (exact(network, inputs) + exact(network, inputs.flip(2)).flip(2)) / 2
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_twice_is_the_same_bit_for_bit():
    network, inputs = decided(SMALL), windows(SMALL)
    with torch.no_grad():
        once, again = (execution.probabilities_of(network, inputs) for _ in range(2))
    assert torch.equal(once, again)


def test_changed_weights_count_at_once():
    network, inputs = decided(SMALL), windows(SMALL)
    with torch.no_grad():
        execution.probabilities_of(network, inputs)
        network.head.bias[2] += 100
        assert (execution.probabilities_of(network, inputs).argmax(1) == 2).all()


@pytest.mark.parametrize("why", ["gradients", "double precision", "another network"])
def test_where_it_does_not_fit_the_network_computes_itself(monkeypatch, why):
    monkeypatch.setattr(execution, "_probabilities", None)  # whoever calls it fails
    network, inputs = decided(SMALL), windows(SMALL)
    if why == "double precision":
        network, inputs = network.double(), inputs.double()
    if why == "another network":
        network = torch.nn.Conv3d(2, 3, 1)
    with torch.set_grad_enabled(why == "gradients"):
        found = execution.probabilities_of(network, inputs)
        torch.testing.assert_close(found, torch.softmax(network(inputs).float(), 1))


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.0])
def test_a_constant_window_is_as_exact_as_any(value):
    """Air: a channel's voxels are equal but at the edges, where a mean of squares less a squared mean rounds badly."""
    network, inputs = decided(SMALL), torch.full((1, 2, *SMALL.patch_shape), value)
    with torch.no_grad():
        found = execution.probabilities_of(network, inputs)
    torch.testing.assert_close(found.double(), exact(network, inputs), atol=2e-5, rtol=0)

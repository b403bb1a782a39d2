"""The fast way through the network against `Network.forward` in double precision, which is slow but right."""

import copy

import pytest
import torch

from mtvlib import execution
from mtvlib.network import BothSides, NetworkConfig, build

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


def test_a_constant_window_gives_no_nan():
    """Air: all of a channel's voxels are equal but at the edges, and its variance may round to less than nothing."""
    network = decided(SMALL)
    with torch.no_grad():
        for value in (0.0, 1.0, 1000.0):
            found = execution.probabilities_of(network, torch.full((1, 2, *SMALL.patch_shape), value))
            torch.testing.assert_close(found.sum(1), torch.ones(1, *SMALL.patch_shape))

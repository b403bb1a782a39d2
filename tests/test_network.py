import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mtvlib.network import (
    BothSides,
    Conv,
    InstanceNorm,
    Network,
    NetworkConfig,
    ResidualUnit,
    SelfAttention,
    along_x,
    build,
    count_parameters,
)

SMALL = NetworkConfig(patch_shape=(32, 32, 16), filters=(4, 8, 8, 16, 16), units_per_level=1, attention_heads=4)


def on_paper(config):
    with torch.device("meta"):  # shapes alone, no memory
        return Network(config)


@pytest.mark.parametrize(
    ("filters", "tokens"), [((16, 32, 64, 128), 1024), ((16, 32, 64, 128, 256), 128), ((16,) * 6, 16)]
)
def test_tokens_follow_from_poolings(filters, tokens):
    """16 x 16 x 4, 8 x 8 x 2 and 4 x 4 x 1 voxels are left of 128 x 128 x 32 after three, four and five halvings."""
    assert NetworkConfig(filters=filters).tokens == tokens


@pytest.mark.parametrize(("attention", "parameters"), [(True, 10_122_979), (False, 9_826_531)])
def test_parameters_are_as_documented(attention, parameters):
    assert count_parameters(on_paper(NetworkConfig(attention=attention))) == parameters


def test_attention_adds_its_own_parameters_only():
    """Positions 128 x 256, layer norm 2 x 256, query/key/value 256 x 768 + 768, projection 256 x 256 + 256."""
    assert 10_122_979 - 9_826_531 == 128 * 256 + 2 * 256 + (256 * 768 + 768) + (256 * 256 + 256)


def test_operations_are_as_documented():
    with FlopCounterMode(display=False) as counter:
        on_paper(NetworkConfig())(torch.zeros(1, 2, 128, 128, 32, device="meta"))
    assert counter.get_total_flops() == pytest.approx(8.21e10, rel=1e-3)


def test_output_has_a_logit_for_each_class_and_voxel():
    assert build(SMALL, seed=1)(torch.rand(2, 2, 32, 32, 16)).shape == (2, 3, 32, 32, 16)


def test_each_token_attends_to_all_tokens():
    attention = SelfAttention(width=16, heads=4, tokens=2 * 2 * 1)
    weights = attention.weights(torch.randn(3, 16, 2, 2, 1))
    assert weights.shape == (3, 4, 4, 4)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 4))


def test_attention_is_its_equation():
    """x + W softmax(q k' / sqrt(d)) v, written out head by head and token by token."""
    torch.manual_seed(0)
    attention = SelfAttention(width=6, heads=2, tokens=4)
    x = torch.randn(1, 6, 2, 2, 1)
    tokens = x.flatten(2).transpose(1, 2)[0]
    q, k, v = attention.query_key_value(attention.norm(tokens) + attention.positions).chunk(3, dim=-1)
    mixed = torch.zeros(4, 6)
    for head in (slice(0, 3), slice(3, 6)):
        for token in range(4):
            score = torch.stack([q[token, head] @ k[other, head] for other in range(4)]) / 3**0.5
            mixed[token, head] = torch.softmax(score, 0) @ v[:, head]
    expected = x + attention.projection(mixed).T.reshape(1, 6, 2, 2, 1)
    torch.testing.assert_close(attention(x), expected)


def test_a_far_voxel_matters_only_with_attention():
    """Beyond the reach of the convolutions, one corner of the patch can change the other only through attention.

    Instance normalisation spreads statistics over the patch, so it is replaced by the identity here.
    """
    reach = {}
    for attention in (True, False):
        config = NetworkConfig(
            patch_shape=(128, 16, 16), filters=(2, 2, 4), units_per_level=1, attention=attention, attention_heads=2
        )
        network = build(config, seed=3)
        network.norm = torch.nn.Identity()
        for unit in network.modules():
            for name in ("norm1", "norm2"):
                if hasattr(unit, name):
                    setattr(unit, name, torch.nn.Identity())
        x = torch.rand(1, 2, 128, 16, 16, requires_grad=True)
        network(x)[0, :, 0, 0, 0].sum().backward()
        reach[attention] = float(x.grad[0, :, -8:].abs().max())
    assert reach[False] == 0
    assert reach[True] > 0


def without_skip(network, level, x):
    """The output if the features of a level go down, but nothing of them goes across."""
    down = {}

    def blank(module, inputs, features):
        down["features"] = F.max_pool3d(features, 2)
        return torch.zeros_like(features)

    hooks = [
        network.encoder[level].register_forward_hook(blank),
        network.encoder[level + 1].register_forward_pre_hook(lambda module, inputs: (down["features"],)),
    ]
    try:
        return network(x)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("level", range(len(SMALL.filters) - 1))
@torch.no_grad()
def test_every_skip_changes_the_output(level):
    network, x = build(SMALL, seed=1), torch.rand(1, 2, 32, 32, 16)
    whole = network(x)
    assert float((without_skip(network, level, x) - whole).abs().max()) > 0.01 * float(whole.std())


@torch.no_grad()
def test_a_decoder_level_takes_the_sum_of_what_comes_up_and_across():
    network, seen = build(SMALL, seed=1), {}
    for name in ("up", "encoder"):
        getattr(network, name)[1].register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
    network.decoder[1].register_forward_pre_hook(lambda _, inputs: seen.update(sum=inputs[0].clone()))
    network(torch.rand(1, 2, 32, 32, 16))
    torch.testing.assert_close(seen["sum"], seen["up"] + seen["encoder"])


@pytest.mark.parametrize("attention", [True, False])
def test_every_parameter_gets_a_finite_gradient(attention):
    network = build(NetworkConfig(**{**SMALL.to_dict(), "attention": attention}), seed=1)
    network(torch.rand(2, 2, 32, 32, 16)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_same_seed_same_output_and_untouched_global_state():
    x = torch.rand(1, 2, 32, 32, 16)
    state = torch.get_rng_state()
    first, again, other = build(SMALL, seed=7), build(SMALL, seed=7), build(SMALL, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_config_survives_json():
    assert (
        NetworkConfig.from_dict({k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.to_dict().items()})
        == SMALL
    )


def test_units_may_be_given_level_by_level():
    """Two units more at the bottom: 2 x (27 x 16 x 16 weights twice, one bias, two norms) parameters more."""
    deeper = NetworkConfig(**{**SMALL.to_dict(), "units_per_level": (1, 1, 1, 1, 3)})
    more = count_parameters(on_paper(deeper)) - count_parameters(on_paper(SMALL))
    assert more == 2 * (2 * 27 * 16 * 16 + 16 + 2 * 2 * 16)
    assert build(deeper, seed=1)(torch.rand(1, 2, 32, 32, 16)).shape == (1, 3, 32, 32, 16)
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in deeper.to_dict().items()}
    assert NetworkConfig.from_dict(as_json) == deeper


def test_activations_computed_twice_give_the_same_gradients_to_the_bit():
    network, x = build(SMALL, seed=1), torch.rand(2, 2, 32, 32, 16)
    gradients = []
    for again in (False, True):
        network.checkpoint_activations = again
        network.zero_grad()
        network(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@torch.no_grad()
def test_both_sides_are_the_mean_of_two_looks():
    network, x = build(SMALL, seed=1), torch.rand(2, 2, 32, 32, 16)
    network.head.weight.mul_(100)  # far from undecided
    found = torch.softmax(BothSides(network)(x), 1)
    straight, mirrored = (torch.softmax(network(one), 1) for one in (x, x.flip(2)))
    torch.testing.assert_close(found, (straight + mirrored.flip(2)) / 2, atol=1e-6, rtol=1e-5)
    assert float((straight - found).abs().max()) > 0.01
    torch.testing.assert_close(torch.softmax(BothSides(network)(x.flip(2)), 1), found.flip(2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_normalisation_is_that_of_pytorch_with_its_gradients(patches, order):
    norm, given = InstanceNorm(6), torch.randn(patches, 6, 5, 4, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    upstream = torch.rand(given.shape)
    expected, found = [], []
    for results, normalise in (
        (expected, lambda x: F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)),
        (found, norm),
    ):
        norm.zero_grad()
        x = given.clone(memory_format=order).requires_grad_()
        y = normalise(x)
        y.backward(upstream)
        results += [y.detach(), x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 2, 2), (3, 8, 8), (8, 2, 8), (1, 4, 4)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
def test_gradients_in_bfloat16_are_those_in_float32_but_for_rounding(shape, order):
    """oneDNN leaves a part of the weights' gradient unwritten where the first axis has two voxels."""
    conv, found = Conv(16, 16), []
    given = torch.randn(2, 16, *shape, generator=torch.Generator().manual_seed(1))
    for bfloat16 in (False, True):
        conv.zero_grad()
        x = given.clone(memory_format=order).requires_grad_()
        rubbish = torch.full((4_000_000,), torch.nan)  # what memory that is used again may hold
        del rubbish
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = conv(x)
        (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        found.append((y.detach().float(), x.grad, conv.weight.grad.clone(), conv.bias.grad.clone()))
    for exact, rounded in zip(*found, strict=True):
        assert float((rounded - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("attention", [True, False])
def test_axes_in_another_order_give_the_same_logits_and_gradients(attention):
    network = build(dataclasses.replace(SMALL, attention=attention), seed=2).double()
    x = torch.randn(2, 2, *SMALL.patch_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for compute in (network, lambda x: along_x(network, x)):
        network.zero_grad()
        logits = compute(x)
        logits.square().sum().backward()
        found.append({"logits": logits.detach()} | {name: one.grad.clone() for name, one in network.named_parameters()})
    assert len(set(SMALL.patch_shape)) > 1
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("filters", "shape"), [((4, 6), (2, 4, 8, 8, 4)), ((4, 4), (4, 4, 3, 3, 3))])
def test_what_is_computed_again_for_the_gradient_changes_no_bit(filters, shape, order, bfloat16):
    """Also where the input has the shape of the weights."""
    unit = ResidualUnit(*filters).to(memory_format=order)
    results = []
    for keep in (True, False):
        unit.zero_grad()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(memory_format=order)
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = unit(x, keep)
        y.float().square().sum().backward()
        results.append([y, x.grad, *(parameter.grad.clone() for parameter in unit.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))

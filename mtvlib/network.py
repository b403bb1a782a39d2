"""The network: a residual 3D U-Net with multi-head self-attention at the bottom (paper, "Network architecture").

The paper gives the kind of network, its input (PET and CT patches of 128 x 128 x 32 voxels) and its output (background,
primary tumour, lymph node metastases). Levels, filters, units, normalisation, activation, heads and positions stand in
its supplement, which is not at hand; what is chosen here is marked "choice" and explained where it is made.

    input  2 x 128 x 128 x 32                                            3 x 128 x 128 x 32  logits
    level 0    16 x 128 x 128 x 32  --------------- skip ---------------  16 x 128 x 128 x 32
    level 1    32 x  64 x  64 x 16  --------------- skip ---------------  32 x  64 x  64 x 16
    level 2    64 x  32 x  32 x  8  --------------- skip ---------------  64 x  32 x  32 x  8
    level 3   128 x  16 x  16 x  4  --------------- skip --------------- 128 x  16 x  16 x  4
    bottom    256 x   8 x   8 x  2  ->  128 tokens of width 256, self-attention, back to 256 x 8 x 8 x 2

Skips are added, not concatenated (choice): residual like the rest, and the dearest convolutions of the network, those
at full resolution, see half the channels. 16 filters at full resolution (choice): a batch of 16 such patches must have
fitted the graphics card of its time, and a new patient should be delineated on an office computer within a minute.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class NetworkConfig:
    in_channels: int = 2  # PET and CT
    classes: int = 3  # background, primary tumour, lymph node metastases
    patch_shape: tuple[int, int, int] = (128, 128, 32)  # fixes the number of tokens at the bottom
    filters: tuple[int, ...] = (16, 32, 64, 128, 256)  # one a level: four poolings bring 128 x 128 x 32 to 8 x 8 x 2
    units_per_level: int | tuple[int, ...] = 2  # residual units on the way down, or one number a level; one on the way
    # up, where skips help
    attention: bool = True  # off: the plain residual U-Net, for the ablation
    attention_heads: int = 8

    @property
    def bottom_shape(self) -> tuple[int, int, int]:
        factor = 2 ** (len(self.filters) - 1)
        x, y, z = self.patch_shape
        return x // factor, y // factor, z // factor

    @property
    def tokens(self) -> int:
        return math.prod(self.bottom_shape)

    @property
    def units(self) -> tuple[int, ...]:
        """Residual units of each level of the encoder."""
        units = self.units_per_level
        return units if isinstance(units, tuple) else (units,) * len(self.filters)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)


class InstanceNorm(nn.GroupNorm):
    """Instance normalisation, as groups of one channel: PyTorch computes these in less than half the time.

    Not so the gradient on a processor with channels last, which took 30 times as long as that of batch normalisation;
    of a single patch both are the same. So there a patch at a time goes through that one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if not _slow_gradient(x):
            return super().forward(x)
        return _PatchByPatch.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-any-return]


class _PatchByPatch(torch.autograd.Function):
    """Batch normalisation of each patch (N, C, X, Y, Z) alone, straight into its place among the others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        found = torch.empty_like(x)
        means, deviations = (x.new_empty(len(x), x.shape[1], dtype=weight.dtype) for _ in range(2))
        for patch, *into in zip(x.split(1), found.split(1), means, deviations, strict=True):
            places = dict(zip(("out", "save_mean", "save_invstd"), into, strict=True))
            torch.ops.aten.native_batch_norm.out(patch, weight, bias, None, None, True, 0.0, eps, **places)
        ctx.save_for_backward(x, weight, means, deviations)
        ctx.eps = eps
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, means, deviations = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        patches = zip(x.split(1), upstream.split(1), of_x.split(1), means, deviations, strict=True)
        for patch, above, into, mean, deviation in patches:
            found = torch.ops.aten.native_batch_norm_backward(
                above, patch, weight, None, None, mean, deviation, True, ctx.eps, (True, True, True)
            )
            into.copy_(found[0])
            of_weight += found[1]
            of_bias += found[2]
        return of_x, of_weight, of_bias, None


def _slow_gradient(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01, inplace=True)  # in the norm's own output, which nothing else needs


def _normalised_conv(norm: nn.Module, conv: nn.Conv3d, x: Tensor, keep: bool = False) -> Tensor:
    """conv(activation(norm(x))). Unless told to, what lies between is not kept for the gradient, but computed again.

    It is half of what a training keeps, and takes some per cent of its time; the numbers are the same.
    """
    chosen_elsewhere = keep or torch.compiler.is_compiling()  # the compiler chooses what it keeps
    alike = x.shape == conv.weight.shape  # then the hooks could not tell one from the other
    if chosen_elsewhere or alike or not torch.is_grad_enabled():
        return conv(_activate(norm(x)))
    between = norm(x)
    again = _Again(norm, x, between.shape)
    with torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack):
        return conv(_activate(between))


class _Again:
    """Hooks that keep the type of a normalised tensor in its stead; other tensors (weights) are kept."""

    def __init__(self, norm: nn.Module, x: Tensor, shape: torch.Size) -> None:
        self.norm, self.x, self.shape = norm, x.detach(), shape
        kind = x.device.type
        known = torch.amp.is_autocast_available(kind)
        self.autocast = torch.is_autocast_enabled(kind) if known else False
        self.precision = torch.get_autocast_dtype(kind) if known else None
        self.found: Tensor | None = None  # between the gradients of the convolution and of the activation

    def pack(self, tensor: Tensor) -> Tensor | torch.dtype:
        return tensor.dtype if tensor.shape == self.shape else tensor

    def unpack(self, packed: Tensor | torch.dtype) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if self.found is not None:
            found, self.found = self.found, None
            return found.to(packed)
        with (
            torch.enable_grad(),
            torch.autocast(self.x.device.type, self.precision, self.autocast),
        ):  # norms as before, see there
            self.found = _activate(self.norm(self.x).detach())
        return self.found.to(packed)


class Conv(nn.Conv3d):
    """A convolution of 3 x 3 x 3 voxels, with zeros around the patch.

    The weights' gradient in bfloat16 on a processor is wrong, up to infinite, where the first axis has two voxels and
    oneDNN is to add the zeros (PyTorch 2.13). There they are added before.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        low = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if x.shape[2] == 2 and x.device.type == "cpu" and low:
            return F.conv3d(F.pad(x, (0, 0, 0, 0, 1, 1)), self.weight, self.bias, padding=(0, 1, 1))
        return super().forward(x)


class ResidualUnit(nn.Module):
    """x + F(x) with F = (norm, activation, convolution) twice, "pre-activation" (He et al. 2016).

    Instance normalisation, since it does not depend on what else is in the batch; LeakyReLU, since a dead filter in a
    network this narrow is dear (both choice). The shortcut is a 1 x 1 x 1 convolution where the number of channels
    changes, else the identity.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = InstanceNorm(inputs)
        self.conv1 = Conv(inputs, outputs, bias=False)
        self.norm2 = InstanceNorm(outputs)
        self.conv2 = Conv(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, keep: bool = False) -> Tensor:
        y = _normalised_conv(self.norm1, self.conv1, x, keep)
        y = _normalised_conv(self.norm2, self.conv2, y, keep)
        return y.add_(self.shortcut(x))


class SelfAttention(nn.Module):
    """x + MHSA(LayerNorm(x) + positions) over all voxels of the bottom level, each one a token (Vaswani et al. 2017).

    A token sees the whole patch, so that "is there a larger lesion on the mucosa?" can decide whether this one is a
    node. Positions are learned, one a token: the patch is always as wide as the body (choice).
    """

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def _query_key_value(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, c = tokens.shape
        qkv = self.query_key_value(self.norm(tokens) + self.positions)  # (n, t, 3c)
        q, k, v = qkv.view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)  # each (n, heads, t, c / heads)
        return q, k, v

    def weights(self, x: Tensor) -> Tensor:
        """Attention of each token (row) to all tokens (column), (N, heads, tokens, tokens); each row sums to one."""
        q, k, _ = self._query_key_value(x.flatten(2).transpose(1, 2))
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)

    def forward(self, x: Tensor) -> Tensor:  # (n, c, x, y, z)
        tokens = x.flatten(2).transpose(1, 2)  # (n, t, c), t = x * y * z
        q, k, v = self._query_key_value(tokens)
        mixed = F.scaled_dot_product_attention(q, k, v)  # softmax(q k' / sqrt(c / heads)) v
        mixed = mixed.transpose(1, 2).flatten(2)  # (n, t, c)
        return x + self.projection(mixed).transpose(1, 2).reshape(x.shape)


class Network(nn.Module):
    """Logits (N, classes, X, Y, Z) from inputs (N, in_channels, X, Y, Z); X, Y, Z = `config.patch_shape`.

    With the paper's patches and the default filters: 128 tokens, 10 122 979 parameters with attention (9 826 531
    without), and 8.21e10 floating-point operations a patch forward (a multiply and an add count as two).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # recompute what lies inside a residual unit instead of keeping it
        filters = config.filters
        self.stem = Conv(config.in_channels, filters[0])
        self.encoder = nn.ModuleList(
            self._level(filters[max(level - 1, 0)], width, config.units[level]) for level, width in enumerate(filters)
        )
        self.attention = (
            SelfAttention(filters[-1], config.attention_heads, config.tokens) if config.attention else nn.Identity()
        )
        pairs = list(itertools.pairwise(filters))
        self.up = nn.ModuleList(nn.ConvTranspose3d(deep, width, 2, stride=2) for width, deep in pairs)
        self.decoder = nn.ModuleList(ResidualUnit(width, width) for width, _ in pairs)
        self.norm = InstanceNorm(filters[0])  # the last unit's sum is not yet normalised
        self.head = nn.Conv3d(filters[0], config.classes, 1)
        self.apply(_initialise)
        nn.init.normal_(
            self.head.weight, std=0.01
        )  # start undecided: large first logits cost epochs to unlearn (choice)

    @staticmethod
    def _level(inputs: int, outputs: int, units: int) -> nn.Sequential:
        return nn.Sequential(*(ResidualUnit(inputs if unit == 0 else outputs, outputs) for unit in range(units)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for level, units in enumerate(self.encoder):
            x = self._through(units, x if level == 0 else F.max_pool3d(x, 2))
            skips.append(x)
        x = self.attention(x)
        for level in reversed(range(len(self.up))):
            x = self._through(self.decoder[level], self.up[level](x).add_(skips[level]))
        return _normalised_conv(self.norm, self.head, x)

    def _through(self, units: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpoint_activations and torch.is_grad_enabled()):
            return units(x)
        for unit in units if isinstance(units, nn.Sequential) else [units]:
            x = checkpoint(unit, x, True, use_reentrant=False, preserve_rng_state=False)
        return x


def along_x(network: Network, x: Tensor) -> Tensor:
    """`network(x)`, but for rounding, with the axes of patches and weights in the order Y, Z, X.

    In memory the last axis comes first but for the channels, and on a processor a convolution's inner loop runs along
    it: over 128 voxels then instead of 32. Not for a network that computes activations again by `checkpoint`, which
    would take the weights as they are.
    """
    own = {name: _x_last(one) for name, one in network.named_parameters() if one.dim() == 5}
    if isinstance(network.attention, SelfAttention):
        tokens = network.attention.positions.unflatten(0, network.config.bottom_shape)
        own["attention.positions"] = tokens.permute(1, 2, 0, 3).flatten(0, 2)
    turned = _x_last(x).contiguous(memory_format=torch.channels_last_3d)
    return torch.func.functional_call(network, own, turned).permute(0, 1, 4, 2, 3)


def _x_last(x: Tensor) -> Tensor:
    """(a, b, X, Y, Z) as (a, b, Y, Z, X)."""
    return x.permute(0, 1, 3, 4, 2)


class BothSides(nn.Module):
    """What a network says of a patch and, mirrored back, of its mirror image: logits of the mean probability.

    The softmax of the logarithm of probabilities is these probabilities, so whoever takes the softmax gets their mean.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, x: Tensor) -> Tensor:
        straight = torch.log_softmax(self.network(x).float(), 1)
        mirrored = torch.log_softmax(self.network(x.flip(2)).float(), 1).flip(2)
        return torch.logaddexp(straight, mirrored) - math.log(2)


def _initialise(module: nn.Module) -> None:
    """He's initialisation for layers followed by a (leaky) ReLU (choice)."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=0.01, nonlinearity="leaky_relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build(config: NetworkConfig, seed: int) -> Network:
    """The network with weights that depend on `config` and `seed` alone (the global random state is left as it was)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(config)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())

"""The network as a PyTorch module: what ONNX files are made of, and what benchmarks compare with.

Written from the papers ("Learning A Sparse Transformer Network for Effective Image Deraining", CVPR
2023, and "Restormer", CVPR 2022), step for step as they describe it: nothing is fused or rewritten.
The names are those of the official checkpoints, so that `load_state_dict(strict=True)` takes one.
Arrays are b c h w. It computes in the type of its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.experts import DILATED_SIZES, EXPERTS, SEPARABLE_SIZES, STEPS


def conv(
    inputs: int,
    outputs: int,
    size: int,
    groups: int = 1,
    dilation: int = 1,
    *,
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution that keeps the size."""
    padding = dilation * (size // 2)
    return nn.Conv2d(
        inputs, outputs, size, padding=padding, dilation=dilation, groups=groups, bias=bias
    )


class LayerNorm(nn.Module):
    """Over channels; without a bias it only divides by the deviation."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(channels))
        self.with_bias = config.norm == "with_bias"
        if self.with_bias:
            self.body.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        variance = x.var(1, keepdim=True, unbiased=False)
        weight = self.body.weight[:, None, None]
        if not self.with_bias:
            return x / torch.sqrt(variance + 1e-5) * weight
        mean, bias = x.mean(1, keepdim=True), self.body.bias[:, None, None]
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


class Attention(nn.Module):
    """Attention across channels: one softmax for each top-k fraction, or one over all scores."""

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv(channels, 3 * channels, 1, bias=config.bias)
        groups = 3 * channels
        self.qkv_dwconv = conv(groups, groups, 3, groups=groups, bias=config.bias)
        self.project_out = conv(channels, channels, 1, bias=config.bias)
        sparse = config.attention == "topk"
        self.kept = config.kept_scores(channels // heads) if sparse else ()
        for index in range(len(self.kept)):
            setattr(self, f"attn{index + 1}", nn.Parameter(torch.tensor([0.2])))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        b, c, h, w = x.shape
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (each.reshape(b, self.heads, c // self.heads, h * w) for each in (q, k, v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * self.temperature
        if self.kept:
            branches = [self._sparse_softmax(scores, kept) @ v for kept in self.kept]
            weights = [getattr(self, f"attn{index + 1}") for index in range(len(self.kept))]
            out = sum(branch * weight for branch, weight in zip(branches, weights, strict=True))
        else:
            out = scores.softmax(dim=-1) @ v
        return self.project_out(out.reshape(b, c, h, w))

    @staticmethod
    def _sparse_softmax(scores: Tensor, kept: int) -> Tensor:
        """Softmax over the largest scores of each row alone."""
        mask = torch.zeros_like(scores)
        mask.scatter_(-1, torch.topk(scores, kept, dim=-1).indices, 1.0)
        return torch.where(mask > 0, scores, float("-inf")).softmax(dim=-1)


class MixedScale(nn.Module):
    """Mixed-scale feed-forward network (MSFN)."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        hidden, bias = config.hidden(channels), config.bias
        both = 2 * hidden
        self.project_in = conv(channels, both, 1, bias=bias)
        self.dwconv3x3 = conv(both, both, 3, groups=both, bias=bias)
        self.dwconv5x5 = conv(both, both, 5, groups=both, bias=bias)
        self.dwconv3x3_1 = conv(both, hidden, 3, groups=hidden, bias=bias)
        self.dwconv5x5_1 = conv(both, hidden, 5, groups=hidden, bias=bias)
        self.project_out = conv(both, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        x = self.project_in(x)
        a1, a2 = F.relu(self.dwconv3x3(x)).chunk(2, dim=1)
        b1, b2 = F.relu(self.dwconv5x5(x)).chunk(2, dim=1)
        x1 = F.relu(self.dwconv3x3_1(torch.cat([a1, b1], dim=1)))
        x2 = F.relu(self.dwconv5x5_1(torch.cat([a2, b2], dim=1)))
        return self.project_out(torch.cat([x1, x2], dim=1))


class Gated(nn.Module):
    """Feed-forward network in which one half gates the other (GDFN)."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        hidden, bias = config.hidden(channels), config.bias
        both = 2 * hidden
        self.project_in = conv(channels, both, 1, bias=bias)
        self.dwconv = conv(both, both, 3, groups=both, bias=bias)
        self.project_out = conv(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Plain(nn.Module):
    """Feed-forward network with a depthwise convolution (DFN) or without one (FN)."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        hidden, bias = config.hidden(channels), config.bias
        self.project_in = conv(channels, hidden, 1, bias=bias)
        self.dwconv = (
            conv(hidden, hidden, 3, groups=hidden, bias=bias)
            if config.feed_forward == "dfn"
            else nn.Identity()
        )
        self.project_out = conv(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        return self.project_out(F.gelu(self.dwconv(self.project_in(x))))


FEED_FORWARD: dict[str, type[nn.Module]] = {
    "msfn": MixedScale,
    "gdfn": Gated,
    "dfn": Plain,
    "fn": Plain,
}


class Block(nn.Module):
    """Attention and feed-forward network, each after a norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels, config)
        self.attn = Attention(channels, heads, config)
        self.norm2 = LayerNorm(channels, config)
        self.ffn = FEED_FORWARD[config.feed_forward](channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Gate(nn.Module):
    """Weights of the experts in each step, from the mean of the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        gates = STEPS * EXPERTS
        self.ca_fc = nn.Sequential(
            nn.Linear(channels, 2 * gates), nn.ReLU(), nn.Linear(2 * gates, gates)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, step, expert)."""
        gates = self.ca_fc(x.mean(dim=(2, 3)))
        return gates.reshape(-1, STEPS, EXPERTS).softmax(dim=-1)


class Layers(nn.Module):
    """Layers one after another, under the name `op`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """What the layers make of it."""
        return self.op(x)


class Step(nn.Module):
    """Eight experts that look at the same, scaled by the gate and joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        experts = [
            Layers(
                conv(c, c, size, groups=c),
                conv(c, c, 1),
                nn.ReLU(),
                conv(c, c, size, groups=c),
                conv(c, c, 1),
            )
            for size in SEPARABLE_SIZES
        ]
        experts += [
            Layers(conv(c, c, size, groups=c, dilation=2), conv(c, c, 1)) for size in DILATED_SIZES
        ]
        experts.append(Layers(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)))
        self._ops = nn.ModuleList(experts)
        self._out = nn.Sequential(conv(EXPERTS * c, c, 1), nn.ReLU())

    def forward(self, s: Tensor, gates: Tensor) -> Tensor:
        """Keeps the shape; `gates` is (b, expert)."""
        scaled = [op(s) * gates[:, n, None, None, None] for n, op in enumerate(self._ops)]
        return F.relu(self._out(torch.cat(scaled, dim=1)) + s)


class Experts(nn.Module):
    """The steps of the mixture of experts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.preprocess = Layers(conv(channels, channels, 1), nn.ReLU())
        self._ops = nn.ModuleList(Step(channels) for _ in range(STEPS))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Keeps the shape; `gates` is (b, step, expert)."""
        s = self.preprocess(x)
        for n, step in enumerate(self._ops):
            s = step(s, gates[:, n])
        return s


class Compensator(nn.Module):
    """Mixture of experts feature compensator (MEFC)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Gate(channels), Experts(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        gate, experts = self.layers
        return experts(x, gate(x))


class Resample(nn.Module):
    """A 3x3 convolution, and pixels that become channels or channels that become pixels."""

    def __init__(self, channels: int, outputs: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, outputs, 3), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Half or twice the height and width, twice or half the channels."""
        return self.body(x)


def down(channels: int) -> Resample:
    """To half the height and width and twice the channels."""
    return Resample(channels, channels // 2, nn.PixelUnshuffle(2))


def up(channels: int) -> Resample:
    """To twice the height and width and half the channels."""
    return Resample(channels, 2 * channels, nn.PixelShuffle(2))


class DRSformer(nn.Module):
    """The network, of any architecture that a configuration can describe."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, bias = config.dim, config.bias
        self.patch_embed = nn.Module()
        self.patch_embed.proj = conv(3, dim, 3)

        def level(number: int, channels: int) -> nn.Sequential:
            count, heads = config.blocks[number], config.heads[number]
            return nn.Sequential(*(Block(channels, heads, config) for _ in range(count)))

        before = config.encoder_level0 == "mefc"
        self.encoder_level0 = Compensator(dim) if before else nn.Identity()
        self.encoder_level1 = level(0, dim)
        self.down1_2 = down(dim)
        self.encoder_level2 = level(1, 2 * dim)
        self.down2_3 = down(2 * dim)
        self.encoder_level3 = level(2, 4 * dim)
        self.down3_4 = down(4 * dim)
        self.latent = level(3, 8 * dim)
        self.up4_3 = up(8 * dim)
        self.reduce_chan_level3 = conv(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level(2, 4 * dim)
        self.up3_2 = up(4 * dim)
        self.reduce_chan_level2 = conv(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(1, 2 * dim)
        self.up2_1 = up(2 * dim)
        self.decoder_level1 = level(0, 2 * dim)
        self.refinement = self._refinement(config)
        self.output = conv(2 * dim, 3, 3, bias=bias)

    @staticmethod
    def _refinement(config: ModelConfig) -> nn.Module:
        channels, heads = 2 * config.dim, config.heads[0]
        if config.refinement == "mefc":
            return Compensator(channels)
        count = config.refinement_blocks if config.refinement == "blocks" else 0
        return nn.Sequential(*(Block(channels, heads, config) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """Removes rain from images in [0, 1], whose sides are multiples of 8."""
        level1 = self.encoder_level1(self.encoder_level0(self.patch_embed.proj(x)))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        y = self.latent(self.down3_4(level3))
        y = self.reduce_chan_level3(torch.cat([self.up4_3(y), level3], dim=1))
        y = self.reduce_chan_level2(torch.cat([self.up3_2(self.decoder_level3(y)), level2], dim=1))
        y = self.decoder_level1(torch.cat([self.up2_1(self.decoder_level2(y)), level1], dim=1))
        return self.output(self.refinement(y)) + x


def with_weights(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> DRSformer:
    """The network with an official state dict."""
    network = DRSformer(config)
    network.load_state_dict({key: torch.tensor(weight) for key, weight in weights.items()})
    return network

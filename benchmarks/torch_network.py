"""DRSformer as a PyTorch module: what users run today, for comparison.

Written from the papers ("Learning A Sparse Transformer Network for Effective Image Deraining", CVPR
2023, and "Restormer", CVPR 2022), step for step as they describe it: nothing is fused or rewritten.
The names are those of the official checkpoints, so that `load_state_dict(strict=True)` takes one.
Arrays are b c h w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

FRACTIONS = ((1, 2), (2, 3), (3, 4), (4, 5))
"""Shares of the scores of a row that each branch of the sparse attention keeps."""
SEPARABLE_SIZES = (1, 3, 5, 7)
DILATED_SIZES = (3, 5, 7)
EXPERTS = 8
STEPS = 4


def conv(inputs: int, outputs: int, size: int, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size and has no bias."""
    padding = dilation * (size // 2)
    return nn.Conv2d(
        inputs, outputs, size, padding=padding, dilation=dilation, groups=groups, bias=False
    )


class LayerNorm(nn.Module):
    """Over channels, with weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(channels))
        self.body.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        mean = x.mean(1, keepdim=True)
        variance = x.var(1, keepdim=True, unbiased=False)
        weight, bias = self.body.weight[:, None, None], self.body.bias[:, None, None]
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


class Attention(nn.Module):
    """Top-k sparse attention across channels: four branches, each with a softmax of its own."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv(channels, 3 * channels, 1)
        self.qkv_dwconv = conv(3 * channels, 3 * channels, 3, groups=3 * channels)
        self.project_out = conv(channels, channels, 1)
        for name in ("attn1", "attn2", "attn3", "attn4"):
            setattr(self, name, nn.Parameter(torch.tensor([0.2])))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        b, c, h, w = x.shape
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (each.reshape(b, self.heads, c // self.heads, h * w) for each in (q, k, v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * self.temperature
        branches = [self._kept(scores, *fraction) @ v for fraction in FRACTIONS]
        weights = (self.attn1, self.attn2, self.attn3, self.attn4)
        out = sum(branch * weight for branch, weight in zip(branches, weights, strict=True))
        return self.project_out(out.reshape(b, c, h, w))

    @staticmethod
    def _kept(scores: Tensor, part: int, whole: int) -> Tensor:
        """Softmax over the largest scores of each row alone."""
        kept = scores.shape[-1] * part // whole
        mask = torch.zeros_like(scores)
        mask.scatter_(-1, torch.topk(scores, kept, dim=-1).indices, 1.0)
        return torch.where(mask > 0, scores, float("-inf")).softmax(dim=-1)


class FeedForward(nn.Module):
    """Mixed-scale feed-forward network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(channels * 2.66)
        self.project_in = conv(channels, 2 * hidden, 1)
        self.dwconv3x3 = conv(2 * hidden, 2 * hidden, 3, groups=2 * hidden)
        self.dwconv5x5 = conv(2 * hidden, 2 * hidden, 5, groups=2 * hidden)
        self.dwconv3x3_1 = conv(2 * hidden, hidden, 3, groups=hidden)
        self.dwconv5x5_1 = conv(2 * hidden, hidden, 5, groups=hidden)
        self.project_out = conv(2 * hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        x = self.project_in(x)
        a1, a2 = F.relu(self.dwconv3x3(x)).chunk(2, dim=1)
        b1, b2 = F.relu(self.dwconv5x5(x)).chunk(2, dim=1)
        x1 = F.relu(self.dwconv3x3_1(torch.cat([a1, b1], dim=1)))
        x2 = F.relu(self.dwconv5x5_1(torch.cat([a2, b2], dim=1)))
        return self.project_out(torch.cat([x1, x2], dim=1))


class Block(nn.Module):
    """Attention and feed-forward network, each after a norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attn = Attention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.ffn = FeedForward(channels)

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
    """The network.

    Args:
        dim: channels of the first level.
        blocks: of each level.
        heads: likewise.
        mefc: whether it has the mixtures of experts at both ends.
    """

    def __init__(
        self, dim: int, blocks: Sequence[int], heads: Sequence[int], *, mefc: bool
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = conv(3, dim, 3)

        def level(number: int, channels: int) -> nn.Sequential:
            return nn.Sequential(*(Block(channels, heads[number]) for _ in range(blocks[number])))

        self.encoder_level0 = Compensator(dim) if mefc else nn.Identity()
        self.encoder_level1 = level(0, dim)
        self.down1_2 = down(dim)
        self.encoder_level2 = level(1, 2 * dim)
        self.down2_3 = down(2 * dim)
        self.encoder_level3 = level(2, 4 * dim)
        self.down3_4 = down(4 * dim)
        self.latent = level(3, 8 * dim)
        self.up4_3 = up(8 * dim)
        self.reduce_chan_level3 = conv(8 * dim, 4 * dim, 1)
        self.decoder_level3 = level(2, 4 * dim)
        self.up3_2 = up(4 * dim)
        self.reduce_chan_level2 = conv(4 * dim, 2 * dim, 1)
        self.decoder_level2 = level(1, 2 * dim)
        self.up2_1 = up(2 * dim)
        self.decoder_level1 = level(0, 2 * dim)
        self.refinement = Compensator(2 * dim) if mefc else nn.Identity()
        self.output = conv(2 * dim, 3, 3)

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

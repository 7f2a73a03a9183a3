"""The feed-forward networks: MSFN (DRSformer, CVPR 2023) and those it was compared with.

Each has a `halo`: rows above and below that a row of its output depends on. f is
`config.hidden(channels)`.
"""

from __future__ import annotations

import jax
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import Conv1x1, DepthwiseConv, GroupedConv
from drsformer_jax.ops.gated import GatedWeights, gated
from drsformer_jax.ops.mixed_scale import mixed_scale
from drsformer_jax.ops.mixed_scale_channels import MixedScaleWeights
from drsformer_jax.ops.mixed_scale_channels import hidden_order as hidden_order
from drsformer_jax.ops.mixed_scale_strips import HALO
from drsformer_jax.types import Array, Bool, Float


class MixedScale(nnx.Module):
    """MSFN: a 3x3 and a 5x5 path that exchange half of their channels, and then again.

    `ops.mixed_scale` has a drawing, and `ops.mixed_scale_channels` the order in which the hidden
    channels are stored.
    """

    halo = HALO

    def __init__(self, channels: int, config: ModelConfig) -> None:
        hidden, bias = config.hidden(channels), config.bias
        self.implementation = config.implementation
        self.project_in = Conv1x1(channels, 2 * hidden, config, bias=bias)
        self.dwconv3x3 = DepthwiseConv(2 * hidden, 3, config, bias=bias)
        self.dwconv5x5 = DepthwiseConv(2 * hidden, 5, config, bias=bias)
        self.dwconv3x3_1 = GroupedConv(hidden, 3, config, bias=bias)
        self.dwconv5x5_1 = GroupedConv(hidden, 5, config, bias=bias)
        self.project_out = Conv1x1(2 * hidden, channels, config, bias=bias)

    def __call__(
        self, x: Float[Array, "b h w c"], valid_mask: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the network."""
        layers = (
            *(self.project_in, self.dwconv3x3, self.dwconv5x5),
            *(self.dwconv3x3_1, self.dwconv5x5_1, self.project_out),
        )
        weights = MixedScaleWeights(*(layer.weights() for layer in layers))
        return mixed_scale(x, weights, valid_mask, self.implementation)


class Gated(nnx.Module):
    """GDFN: one half of the hidden channels gates the other; see `ops.gated`."""

    halo = 1

    def __init__(self, channels: int, config: ModelConfig) -> None:
        hidden, bias = config.hidden(channels), config.bias
        self.implementation = config.implementation
        self.project_in = Conv1x1(channels, 2 * hidden, config, bias=bias)
        self.dwconv = DepthwiseConv(2 * hidden, 3, config, bias=bias)
        self.project_out = Conv1x1(hidden, channels, config, bias=bias)

    def __call__(
        self, x: Float[Array, "b h w c"], valid_mask: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the network."""
        layers = self.project_in, self.dwconv, self.project_out
        weights = GatedWeights(*(layer.weights() for layer in layers))
        return gated(x, weights, valid_mask, self.implementation)


class Plain(nnx.Module):
    """FN or DFN, of DRSformer's ablation (CVPR 2023).

    FN is a 1x1 convolution to f hidden channels, a GELU (the exact one), and a 1x1 convolution. DFN
    has a 3x3 depthwise convolution before the GELU.
    """

    halo = 1

    def __init__(self, channels: int, config: ModelConfig) -> None:
        hidden, bias = config.hidden(channels), config.bias
        self.project_in = Conv1x1(channels, hidden, config, bias=bias)
        depthwise = config.feed_forward == "dfn"
        self.dwconv = DepthwiseConv(hidden, 3, config, bias=bias) if depthwise else None
        self.project_out = Conv1x1(hidden, channels, config, bias=bias)

    def __call__(
        self, x: Float[Array, "b h w c"], valid_mask: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the network."""
        x = self.project_in(x)
        if self.dwconv is not None:
            x = self.dwconv(x, valid_mask)
        return self.project_out(jax.nn.gelu(x, approximate=False))


FEED_FORWARD: dict[str, type[MixedScale | Gated | Plain]] = {
    "msfn": MixedScale,
    "gdfn": Gated,
    "dfn": Plain,
    "fn": Plain,
}

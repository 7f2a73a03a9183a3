"""The feed-forward networks: mixed-scale (paper, Sec. 3.3) and those of its ablation.

Each names its `reach`: the rows around that one row of its result depends on at most.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import DepthwiseConv, PairedConv, Pointwise
from drsformer_jax.ops.mixed_scale import REACH, MixedScaleWeights, mixed_scale
from drsformer_jax.types import Array, Bool, Float


class MixedScale(nnx.Module):
    """MSFN: a 3x3 and a 5x5 path that exchange half of their channels, then again (Eq. 8).

    The second convolutions read pairs of neighboring channels. All before them is per channel, so
    each half of the hidden channels is stored as its even channels, then its odd ones; the pairs
    are then two contiguous arrays. `hidden_order` is that order, for the conversion of weights.
    """

    reach = REACH

    def __init__(self, channels: int, config: ModelConfig) -> None:
        hidden, bias = config.hidden(channels), config.bias
        self.project_in = Pointwise(channels, 2 * hidden, config, bias=bias)
        self.dwconv3x3 = DepthwiseConv(2 * hidden, 3, config, bias=bias)
        self.dwconv5x5 = DepthwiseConv(2 * hidden, 5, config, bias=bias)
        self.dwconv3x3_1 = PairedConv(hidden, 3, config, bias=bias)
        self.dwconv5x5_1 = PairedConv(hidden, 5, config, bias=bias)
        self.project_out = Pointwise(2 * hidden, channels, config, bias=bias)

    def __call__(
        self, x: Float[Array, "b h w c"], inside: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the network to every pixel and its neighbors."""
        layers = (
            *(self.project_in, self.dwconv3x3, self.dwconv5x5),
            *(self.dwconv3x3_1, self.dwconv5x5_1, self.project_out),
        )
        weights = MixedScaleWeights(*(layer.weights() for layer in layers))
        return mixed_scale(x, weights, inside)


def hidden_order(hidden: int) -> list[int]:
    """For each stored channel of `MixedScale`, its place in the official order.

    Args:
        hidden: hidden channels of one half.

    Returns:
        A permutation of range(2 * hidden).
    """
    half = [*range(0, hidden, 2), *range(1, hidden, 2)]
    return half + [hidden + channel for channel in half]


class Gated(nnx.Module):
    """GDFN: one half of the hidden channels gates the other (Restormer, CVPR 2022, Eq. 3)."""

    reach = 1

    def __init__(self, channels: int, config: ModelConfig) -> None:
        hidden, bias = config.hidden(channels), config.bias
        self.project_in = Pointwise(channels, 2 * hidden, config, bias=bias)
        self.dwconv = DepthwiseConv(2 * hidden, 3, config, bias=bias)
        self.project_out = Pointwise(hidden, channels, config, bias=bias)

    def __call__(
        self, x: Float[Array, "b h w c"], inside: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the network to every pixel and its neighbors."""
        gate, value = jnp.split(self.dwconv(self.project_in(x), inside), 2, axis=-1)
        return self.project_out(jax.nn.gelu(gate, approximate=False) * value)


class Plain(nnx.Module):
    """FN, two 1x1 convolutions with a GELU between, or DFN, with a 3x3 depthwise before it."""

    reach = 1

    def __init__(self, channels: int, config: ModelConfig) -> None:
        hidden, bias = config.hidden(channels), config.bias
        self.project_in = Pointwise(channels, hidden, config, bias=bias)
        depthwise = config.feed_forward == "dfn"
        self.dwconv = DepthwiseConv(hidden, 3, config, bias=bias) if depthwise else None
        self.project_out = Pointwise(hidden, channels, config, bias=bias)

    def __call__(
        self, x: Float[Array, "b h w c"], inside: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the network to every pixel (and its neighbors)."""
        x = self.project_in(x)
        if self.dwconv is not None:
            x = self.dwconv(x, inside)
        return self.project_out(jax.nn.gelu(x, approximate=False))


FEED_FORWARD: dict[str, type[MixedScale | Gated | Plain]] = {
    "msfn": MixedScale,
    "gdfn": Gated,
    "dfn": Plain,
    "fn": Plain,
}

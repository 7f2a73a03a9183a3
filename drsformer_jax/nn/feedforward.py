"""The feed-forward networks: mixed-scale (paper, Sec. 3.3) and those of its ablation.

Each names its `reach`: the rows around that one row of its result depends on at most.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import relu

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import DepthwiseConv, PairedConv, Pointwise
from drsformer_jax.types import Array, Bool, Float


class MixedScale(nnx.Module):
    """MSFN: a 3x3 and a 5x5 path that exchange half of their channels, then again (Eq. 8).

    The second convolutions read pairs of neighbouring channels. All before them is per channel, so
    each half of the hidden channels is stored as its even channels, then its odd ones; the pairs
    are then two contiguous arrays. `hidden_order` is that order, for the conversion of weights.
    """

    reach = 4

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
        """Applies the network to every pixel and its neighbours."""
        x = self.project_in(x)
        small1, small2 = jnp.split(relu(self.dwconv3x3(x, inside)), 2, axis=-1)
        large1, large2 = jnp.split(relu(self.dwconv5x5(x, inside)), 2, axis=-1)
        mixed1 = relu(self.dwconv3x3_1(*_pairs(small1, large1), inside))
        mixed2 = relu(self.dwconv5x5_1(*_pairs(small2, large2), inside))
        return self.project_out(jnp.concatenate([mixed1, mixed2], axis=-1))


def hidden_order(hidden: int) -> list[int]:
    """For each stored channel of `MixedScale`, its place in the official order.

    Args:
        hidden: hidden channels of one half.

    Returns:
        A permutation of range(2 * hidden).
    """
    half = [*range(0, hidden, 2), *range(1, hidden, 2)]
    return half + [hidden + channel for channel in half]


def _pairs(
    small: Float[Array, "b h w f"], large: Float[Array, "b h w f"]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Even and odd channels of concat[small, large], from halves stored even channels first."""
    evens = (small.shape[-1] + 1) // 2
    small_even, small_odd = small[..., :evens], small[..., evens:]
    large_even, large_odd = large[..., :evens], large[..., evens:]
    if small.shape[-1] % 2:  # An odd half shifts the parity of the one behind it.
        large_even, large_odd = large_odd, large_even
    return (small_even, large_even), (small_odd, large_odd)


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
        """Applies the network to every pixel and its neighbours."""
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
        """Applies the network to every pixel (and its neighbours)."""
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

"""The U-Net of sparse transformer blocks (paper, Fig. 2)."""

from __future__ import annotations

import jax
from flax import nnx

from drsformer_jax.config import SIZE_MULTIPLE, ModelConfig
from drsformer_jax.nn.attention import Attention
from drsformer_jax.nn.experts import ExpertCompensator
from drsformer_jax.nn.feedforward import FEED_FORWARD
from drsformer_jax.nn.linear import Conv3x3, Pointwise, draw
from drsformer_jax.nn.norm import LayerNorm
from drsformer_jax.nn.rows import AT_ONCE, Mask, Rows
from drsformer_jax.nn.stack import Stack
from drsformer_jax.ops.attention import ChannelSums
from drsformer_jax.ops.pixels import pixel_shuffle, pixel_unshuffle
from drsformer_jax.types import Array, Float, Int


class Block(nnx.Module):
    """Attention and feed-forward network, each on normalized input and added to it (Eq. 1, 2)."""

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        self.norm1 = LayerNorm(channels, config)
        self.attn = Attention(channels, heads, config)
        self.norm2 = LayerNorm(channels, config)
        self.ffn = FEED_FORWARD[config.feed_forward](channels, config)

    def __call__(self, x: Float[Array, "b h w c"], rows: Rows) -> Float[Array, "b h w c"]:
        """Applies the block."""

        def sums(window: Array, inside: Mask, counted: Mask) -> ChannelSums:
            return self.attn.sums(self.norm1(window), inside, counted)

        mixing = self.attn.mixing(rows.sum(sums, x, reach=1))

        def added(window: Array, inside: Mask) -> Array:
            window = window + self.attn(self.norm1(window), mixing, inside)
            return window + self.ffn(self.norm2(window), inside)

        return rows.map(added, x, reach=1 + self.ffn.reach)


def _stage(channels: int, heads: int, count: int, config: ModelConfig) -> Stack:
    return Stack(Block(channels, heads, config), count, remat=config.remat, unroll=config.unroll)


class DRSformer(nnx.Module):
    """Restores rainy images; the submodules carry the names of the official checkpoints.

    Args:
        config: the architecture; `drsformer_jax.config.PRESETS` has the published ones.
        rngs: random keys of the initial parameters.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        c1, c2, c3, c4 = (config.channels(level) for level in range(4))
        h1, h2, h3, h4 = config.heads
        n1, n2, n3, n4 = config.blocks
        bias = config.bias
        self.patch_embed = Conv3x3(3, c1, config)
        if config.encoder_level0 == "mefc":
            self.encoder_level0 = ExpertCompensator(c1, config)
        self.encoder_level1 = _stage(c1, h1, n1, config)
        self.down1_2 = Conv3x3(c1, c1 // 2, config)
        self.encoder_level2 = _stage(c2, h2, n2, config)
        self.down2_3 = Conv3x3(c2, c2 // 2, config)
        self.encoder_level3 = _stage(c3, h3, n3, config)
        self.down3_4 = Conv3x3(c3, c3 // 2, config)
        self.latent = _stage(c4, h4, n4, config)
        self.up4_3 = Conv3x3(c4, 2 * c4, config)
        self.reduce_chan_level3 = Pointwise(2 * c3, c3, config, bias=bias)
        self.decoder_level3 = _stage(c3, h3, n3, config)
        self.up3_2 = Conv3x3(c3, 2 * c3, config)
        self.reduce_chan_level2 = Pointwise(2 * c2, c2, config, bias=bias)
        self.decoder_level2 = _stage(c2, h2, n2, config)
        self.up2_1 = Conv3x3(c2, 2 * c2, config)
        # The last level joins decoder and skip without reducing them: twice the channels.
        self.decoder_level1 = _stage(2 * c1, h1, n1, config)
        if config.refinement == "mefc":
            self.refinement: nnx.Module = ExpertCompensator(2 * c1, config)
        elif config.refinement == "blocks":
            self.refinement = _stage(2 * c1, h1, config.refinement_blocks, config)
        self.output = Conv3x3(2 * c1, 3, config, bias=bias)
        draw(self, rngs.params())

    def __call__(
        self,
        x: Float[Array, "b h w 3"],
        size: Int[Array, "b 2"] | None = None,
        rows: Rows = AT_ONCE,
    ) -> Float[Array, "b h w 3"]:
        """Removes rain.

        Args:
            x: rainy images in [0, 1], height and width multiples of 8.
            size: height and width of each image where the arrays are larger, multiples of 8
                that lie in their upper left corners; the result there is that of the images
                alone, whatever stands outside, and means nothing elsewhere.
            rows: how they are computed: all at once where it is not given.

        Returns:
            The images without rain, in the type of `x`, not clamped to [0, 1].

        Raises:
            ValueError: if height or width is no multiple of 8.
        """
        return x + self.stages(x, size, rows)["output"].astype(x.dtype)

    def stages(
        self,
        x: Float[Array, "b h w 3"],
        size: Int[Array, "b 2"] | None = None,
        rows: Rows = AT_ONCE,
    ) -> dict[str, Float[Array, "b _ _ _"]]:
        """What each submodule makes of `x`, by its name; "output" lacks the addition of `x`."""
        height, width = x.shape[1:3]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ValueError(f"x is {height}x{width}; height and width must be multiples of 8")
        x = x.astype(self.config.dtype)
        done: dict[str, Array] = {}

        def at_level(x: Array) -> Rows:
            return rows.at(None if size is None else size // (height // x.shape[1]))

        def run(name: str, x: Array) -> Array:
            with jax.named_scope(name):
                done[name] = getattr(self, name)(x, rows=at_level(x))
            return done[name]

        def convolved(name: str, x: Array) -> Array:
            return at_level(x).map(getattr(self, name), x, reach=1)

        def down(name: str, x: Array) -> Array:
            done[name] = pixel_unshuffle(convolved(name, x))
            return done[name]

        def up(name: str, x: Array, skip: Array) -> Array:
            done[name] = pixel_shuffle(convolved(name, x))
            return jax.numpy.concatenate([done[name], skip], axis=-1)

        def reduce(name: str, x: Array) -> Array:
            done[name] = getattr(self, name)(x)
            return done[name]

        x = done["patch_embed"] = convolved("patch_embed", x)
        if self.config.encoder_level0 != "none":
            x = run("encoder_level0", x)
        skip1 = run("encoder_level1", x)
        skip2 = run("encoder_level2", down("down1_2", skip1))
        skip3 = run("encoder_level3", down("down2_3", skip2))
        x = run("latent", down("down3_4", skip3))
        x = run("decoder_level3", reduce("reduce_chan_level3", up("up4_3", x, skip3)))
        x = run("decoder_level2", reduce("reduce_chan_level2", up("up3_2", x, skip2)))
        x = run("decoder_level1", up("up2_1", x, skip1))
        if self.config.refinement != "none":
            x = run("refinement", x)
        done["output"] = convolved("output", x)
        return done

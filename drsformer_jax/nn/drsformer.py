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
from drsformer_jax.nn.stack import Stack
from drsformer_jax.ops.masking import inside
from drsformer_jax.ops.pixels import pixel_shuffle, pixel_unshuffle
from drsformer_jax.types import Array, Bool, Float, Int


class Block(nnx.Module):
    """Attention and feed-forward network, each on normalised input and added to it (Eq. 1, 2)."""

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        self.norm1 = LayerNorm(channels, config)
        self.attn = Attention(channels, heads, config)
        self.norm2 = LayerNorm(channels, config)
        self.ffn = FEED_FORWARD[config.feed_forward](channels, config)

    def __call__(
        self, x: Float[Array, "b h w c"], inside: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the block."""
        x = x + self.attn(self.norm1(x), inside)
        return x + self.ffn(self.norm2(x), inside)


def _stage(channels: int, heads: int, count: int, config: ModelConfig) -> Stack:
    return Stack(Block(channels, heads, config), count, remat=config.remat)


class DRSformer(nnx.Module):
    """Restores rainy pictures; the submodules carry the names of the official checkpoints.

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
        self, x: Float[Array, "b h w 3"], size: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h w 3"]:
        """Removes rain.

        Args:
            x: rainy pictures in [0, 1], height and width multiples of 8.
            size: height and width of each picture where the arrays are larger, multiples of 8
                that lie in their upper left corners; the result there is that of the pictures
                alone, whatever stands outside, and means nothing elsewhere.

        Returns:
            The pictures without rain, in the type of `x`, not clamped to [0, 1].

        Raises:
            ValueError: if height or width is no multiple of 8.
        """
        return x + self.stages(x, size)["output"].astype(x.dtype)

    def stages(
        self, x: Float[Array, "b h w 3"], size: Int[Array, "b 2"] | None = None
    ) -> dict[str, Float[Array, "b _ _ _"]]:
        """What each submodule makes of `x`, by its name; "output" lacks the addition of `x`."""
        height, width = x.shape[1:3]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ValueError(f"x is {height}x{width}; height and width must be multiples of 8")
        x = x.astype(self.config.dtype)
        done: dict[str, Array] = {}

        def spatial(name: str, x: Array) -> Array:
            rows, columns = x.shape[1:3]
            mask = None if size is None else inside(size // (height // rows), rows, columns)
            with jax.named_scope(name):
                return getattr(self, name)(x, inside=mask)

        def run(name: str, x: Array) -> Array:
            done[name] = spatial(name, x)
            return done[name]

        def down(name: str, x: Array) -> Array:
            done[name] = pixel_unshuffle(spatial(name, x))
            return done[name]

        def up(name: str, x: Array, skip: Array) -> Array:
            done[name] = pixel_shuffle(spatial(name, x))
            return jax.numpy.concatenate([done[name], skip], axis=-1)

        def reduce(name: str, x: Array) -> Array:
            done[name] = getattr(self, name)(x)
            return done[name]

        x = run("patch_embed", x)
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
        run("output", x)
        return done

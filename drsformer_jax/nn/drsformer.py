"""The U-Net of sparse transformer blocks (DRSformer, CVPR 2023, Fig. 2)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from drsformer_jax.config import SIZE_MULTIPLE, ModelConfig
from drsformer_jax.nn.attention import Attention
from drsformer_jax.nn.experts import ExpertCompensator
from drsformer_jax.nn.feedforward import FEED_FORWARD
from drsformer_jax.nn.linear import Conv1x1, Conv3x3, initialize
from drsformer_jax.nn.norm import LayerNorm
from drsformer_jax.nn.rows import AT_ONCE, Mask, Rows
from drsformer_jax.nn.stack import Stack
from drsformer_jax.ops.attention import ChannelSums
from drsformer_jax.ops.pixels import pixel_shuffle, pixel_unshuffle
from drsformer_jax.types import Array, Float, Int


class Block(nnx.Module):
    """Attention and feed-forward network, each with layer norm before and a residual around.

        x = x + attention(norm1(x))
        x = x + feed_forward(norm2(x))

    The sparse transformer block of DRSformer (CVPR 2023), or the transformer block of Restormer
    (CVPR 2022), as the configuration says.
    """

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        self.norm1 = LayerNorm(channels, config)
        self.attn = Attention(channels, heads, config)
        self.norm2 = LayerNorm(channels, config)
        self.ffn = FEED_FORWARD[config.feed_forward](channels, config)

    def __call__(self, x: Float[Array, "b h w c"], rows: Rows) -> Float[Array, "b h w c"]:
        """Applies the block."""
        # Once, and so its gradient, where the windows of both are the image.
        whole = self.norm1(x)

        def norm1(window: Array) -> Array:
            return whole if window is x else self.norm1(window)

        def sums(window: Array, valid_mask: Mask, counted: Mask) -> ChannelSums:
            return self.attn.sums(norm1(window), valid_mask, counted)

        mixing = self.attn.mixing(rows.sum(sums, x, halo=1))

        def residuals(window: Array, valid_mask: Mask) -> Array:
            window = window + self.attn(norm1(window), mixing, valid_mask)
            return window + self.ffn(self.norm2(window), valid_mask)

        return rows.map(residuals, x, halo=1 + self.ffn.halo)


class Downsample(Conv3x3):
    """Halves height and width: a 3x3 convolution to c / 2 channels, then pixel-unshuffle to 2c."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__(channels, channels // 2, config)

    def __call__(self, x: Float[Array, "b h w c"], rows: Rows = AT_ONCE) -> Float[Array, "b _ _ _"]:
        """To b h/2 w/2 2c."""
        return pixel_unshuffle(super().__call__(x, rows))


class Upsample(Conv3x3):
    """Doubles height and width: a 3x3 convolution to 2c channels, then pixel-shuffle to c / 2."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__(channels, 2 * channels, config)

    def __call__(self, x: Float[Array, "b h w c"], rows: Rows = AT_ONCE) -> Float[Array, "b _ _ _"]:
        """To b 2h 2w c/2."""
        return pixel_shuffle(super().__call__(x, rows))


def _stage(channels: int, heads: int, count: int, config: ModelConfig) -> Stack:
    return Stack(Block(channels, heads, config), count, config)


class DRSformer(nnx.Module):
    """Removes rain from images (DRSformer, CVPR 2023; with another configuration, Restormer).

    Submodules have the names of the official checkpoints.

    Args:
        config: the architecture; `drsformer_jax.config.PRESETS` has the published ones.
        rngs: its stream `params` initializes the parameters.
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
        self.down1_2 = Downsample(c1, config)
        self.encoder_level2 = _stage(c2, h2, n2, config)
        self.down2_3 = Downsample(c2, config)
        self.encoder_level3 = _stage(c3, h3, n3, config)
        self.down3_4 = Downsample(c3, config)
        self.latent = _stage(c4, h4, n4, config)
        self.up4_3 = Upsample(c4, config)
        self.reduce_chan_level3 = Conv1x1(2 * c3, c3, config, bias=bias)
        self.decoder_level3 = _stage(c3, h3, n3, config)
        self.up3_2 = Upsample(c3, config)
        self.reduce_chan_level2 = Conv1x1(2 * c2, c2, config, bias=bias)
        self.decoder_level2 = _stage(c2, h2, n2, config)
        self.up2_1 = Upsample(c2, config)
        # The first level concatenates decoder and skip without a projection: twice the channels.
        self.decoder_level1 = _stage(2 * c1, h1, n1, config)
        if config.refinement == "mefc":
            self.refinement: nnx.Module = ExpertCompensator(2 * c1, config)
        elif config.refinement == "blocks":
            self.refinement = _stage(2 * c1, h1, config.refinement_blocks, config)
        self.output = Conv3x3(2 * c1, 3, config, bias=bias)
        initialize(self, rngs.params())

    def __call__(
        self,
        x: Float[Array, "b h w 3"],
        size: Int[Array, "b 2"] | None = None,
        rows: Rows = AT_ONCE,
    ) -> Float[Array, "b h w 3"]:
        """Removes rain.

        Args:
            x: rainy images in [0, 1], height and width multiples of 8.
            size: height and width of each image, multiples of 8, where the arrays are larger and
                hold it in their upper left corner; default: that of the arrays. The image is
                restored as if it were alone, whatever else the array has; the result at other
                pixels means nothing.
            rows: how the rows of images are computed; default: all at once.

        Returns:
            The images without rain, in the dtype of `x`, not clamped to [0, 1].

        Raises:
            ValueError: if height or width is not a multiple of 8.
        """
        return x + self.stages(x, size, rows)["output"].astype(x.dtype)

    def stages(
        self,
        x: Float[Array, "b h w 3"],
        size: Int[Array, "b 2"] | None = None,
        rows: Rows = AT_ONCE,
    ) -> dict[str, Float[Array, "b _ _ _"]]:
        """The outputs of all submodules, by name; "output" is the residual, to which x is added.

        Arguments and errors are those of `__call__`.
        """
        height, width = x.shape[1:3]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ValueError(f"x is {height}x{width}; height and width must be multiples of 8")
        rows1, rows2, rows3, rows4 = (
            rows.with_size(None if size is None else size // 2**level) for level in range(4)
        )
        network = _Recorder(self)

        x = network.patch_embed(x.astype(self.config.dtype), rows=rows1)
        if self.config.encoder_level0 != "none":
            x = network.encoder_level0(x, rows=rows1)
        skip1 = network.encoder_level1(x, rows=rows1)
        x = network.down1_2(skip1, rows=rows1)
        skip2 = network.encoder_level2(x, rows=rows2)
        x = network.down2_3(skip2, rows=rows2)
        skip3 = network.encoder_level3(x, rows=rows3)
        x = network.down3_4(skip3, rows=rows3)

        x = network.latent(x, rows=rows4)

        x = network.up4_3(x, rows=rows4)
        x = network.reduce_chan_level3(_concat(x, skip3))
        x = network.decoder_level3(x, rows=rows3)
        x = network.up3_2(x, rows=rows3)
        x = network.reduce_chan_level2(_concat(x, skip2))
        x = network.decoder_level2(x, rows=rows2)
        x = network.up2_1(x, rows=rows2)
        x = network.decoder_level1(_concat(x, skip1), rows=rows1)
        if self.config.refinement != "none":
            x = network.refinement(x, rows=rows1)
        network.output(x, rows=rows1)
        return network.outputs


def _concat(x: Float[Array, "b h w _"], skip: Float[Array, "b h w _"]) -> Float[Array, "b h w _"]:
    return jnp.concatenate([x, skip], axis=-1)


class _Recorder:
    """Calls the submodules of a module, and keeps what each returns in `outputs`.

    Profiles show each call by the submodule's name.
    """

    def __init__(self, module: nnx.Module) -> None:
        self.outputs: dict[str, Array] = {}
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Array]:
        def call(x: Array, **options: Rows) -> Array:
            with jax.named_scope(name):
                self.outputs[name] = getattr(self._module, name)(x, **options)
            return self.outputs[name]

        return call

"""Pixel-shuffle and its inverse, in PyTorch's channel order."""

from __future__ import annotations

from drsformer_jax.types import Array, Float


def pixel_unshuffle(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c4"]:
    """Moves factor x factor neighbors into channels; (c, dy, dx) is the order of the new channels.

    Args:
        x: images whose height and width `factor` divides.
        factor: side of the square that becomes one pixel.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, height // factor, width // factor, channels * factor**2)


def pixel_shuffle(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c4"]:
    """Undoes `pixel_unshuffle`: channels become factor x factor neighbors (ESPCN, CVPR 2016)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * factor, width * factor, channels // factor**2)

"""Images that are smaller than the arrays that hold them."""

from __future__ import annotations

import jax.numpy as jnp

from drsformer_jax.types import Array, Bool, Float, Int


def inside(
    size: Int[Array, "b 2"], height: int, width: int, top: Int[Array, ""] | int = 0
) -> Bool[Array, "b h w 1"]:
    """Tells the pixels of each image from those beyond its right, lower and upper border.

    Args:
        size: true height and width of each image, in pixels.
        height: rows of the array.
        width: columns of the array.
        top: row of the image that the array begins with; those before the first are negative.
    """
    row = top + jnp.arange(height)[:, None]
    columns = jnp.arange(width) < size[:, 1, None, None]
    return ((row >= 0) & (row < size[:, 0, None, None]) & columns)[..., None]


def rows_between(
    first: Int[Array, ""] | int,
    end: Int[Array, ""] | int,
    like: Float[Array, "b h w c"],
    top: Int[Array, ""] | int,
) -> Bool[Array, "b h w 1"]:
    """Tells rows from `first` to before `end` from others, in an array that begins with `top`."""
    row = top + jnp.arange(like.shape[1])
    chosen = (row >= first) & (row < end)
    return jnp.broadcast_to(chosen[:, None, None], (*like.shape[:3], 1))


def zero_outside(
    x: Float[Array, "*b h w c"], inside: Bool[Array, "*b h w 1"] | None
) -> Float[Array, "*b h w c"]:
    """Makes everything beyond the image what a convolution sees beyond a border: zero.

    Without `inside` the array is the image, and returned as it is.
    """
    # A product would let an infinity or a NaN from out there through.
    return x if inside is None else jnp.where(inside, x, 0)

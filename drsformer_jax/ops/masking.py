"""Pictures that are smaller than the arrays that hold them."""

from __future__ import annotations

import jax.numpy as jnp

from drsformer_jax.types import Array, Bool, Float, Int


def inside(size: Int[Array, "b 2"], height: int, width: int) -> Bool[Array, "b h w 1"]:
    """Tells the pixels of each picture from those beyond its right and lower border.

    Args:
        size: true height and width of each picture, in pixels.
        height: rows of the array.
        width: columns of the array.
    """
    rows = jnp.arange(height)[:, None] < size[:, 0, None, None]
    columns = jnp.arange(width) < size[:, 1, None, None]
    return (rows & columns)[..., None]


def zero_outside(
    x: Float[Array, "*b h w c"], inside: Bool[Array, "*b h w 1"] | None
) -> Float[Array, "*b h w c"]:
    """Makes everything beyond the picture what a convolution sees beyond a border: zero.

    Without `inside` the array is the picture, and returned as it is.
    """
    # A product would let an infinity or a NaN from out there through.
    return x if inside is None else jnp.where(inside, x, 0)

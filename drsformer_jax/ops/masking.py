"""Images that are smaller than the arrays that hold them.

An array of a fixed shape (a bucket) holds an image in its upper left corner. `valid_mask` is True
at the image's pixels. What is elsewhere must not influence the image, so every operation that reads
neighbors reads zeros there (`zero_outside`), as it does beyond the array's border.
"""

from __future__ import annotations

import jax.numpy as jnp

from drsformer_jax.types import Array, Bool, Float, Int


def size_mask(
    size: Int[Array, "b 2"], height: int, width: int, top: Int[Array, ""] | int = 0
) -> Bool[Array, "b h w 1"]:
    """The `valid_mask` of images of these sizes: True at their pixels.

    Args:
        size: height and width of each image, in pixels.
        height: rows of the array.
        width: columns of the array.
        top: row of the image that the array begins with; negative above the image.
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
    """A mask that is True in the rows `first` up to but not including `end`.

    Args:
        first: row of the image.
        end: row of the image.
        like: an array of the mask's batch, height and width.
        top: row of the image that `like` begins with.
    """
    row = top + jnp.arange(like.shape[1])
    chosen = (row >= first) & (row < end)
    return jnp.broadcast_to(chosen[:, None, None], (*like.shape[:3], 1))


def zero_outside(
    x: Float[Array, "*b c"], valid_mask: Bool[Array, "*b 1"] | None
) -> Float[Array, "*b c"]:
    """`x` where `valid_mask` is True, zero elsewhere; `x` itself where there is no mask."""
    # A product would let an infinity or a NaN from out there through.
    return x if valid_mask is None else jnp.where(valid_mask, x, 0)

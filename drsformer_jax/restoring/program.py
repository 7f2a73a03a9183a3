"""The program that restores the images of a bucket, compiled once a shape."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.functional import Params, apply
from drsformer_jax.nn.rows import Rows, Shards, Spread
from drsformer_jax.ops.implementations import jit_for
from drsformer_jax.sharding import over_images, over_rows
from drsformer_jax.types import Array


def restore_batch(
    config: ModelConfig,
    rows: Rows,
    params: Params,
    rainy: np.ndarray,
    white: np.ndarray,
    size: np.ndarray,
) -> Array:
    """Removes rain from the images in a bucket.

    Args:
        config: the network.
        rows: how the rows of the images are computed.
        params: its parameters; their devices compute.
        rainy: uint16 (b, h, w, 3), each image in its upper left corner.
        white: float32 (b, 1, 1, 1), the largest value of each image, 255 or 65535.
        size: int32 (b, 2), true height and width of each image.

    Returns:
        uint16 (b, h, w, 3), of 16 bits whatever `white` is; anything beyond an image's size.
    """
    leaf = jax.tree.leaves(params)[0]
    held = isinstance(leaf, jax.Array)
    platform = next(iter(leaf.devices())).platform if held else jax.default_backend()
    return compiled_for(platform)(config, rows, params, rainy, white, size)


@functools.cache
def compiled_for(platform: str) -> jax.stages.Wrapped:
    """`restore_batch` as a jitted function for devices of a platform."""

    # Its name is that of its files in the compile cache.
    def restore_batch(
        config: ModelConfig, rows: Rows, params: Params, rainy: Array, white: Array, size: Array
    ) -> Array:
        def network(params: Params, rainy: Array, white: Array, size: Array) -> Array:
            values = rainy.astype(jnp.promote_types(config.dtype, jnp.float32)) / white
            restored = apply(config, params, values, size, rows)
            return jnp.round(jnp.clip(restored, 0, 1) * 65535).astype(jnp.uint16)

        if isinstance(rows, Shards):
            network = over_rows(network, rows.count)
        elif isinstance(rows, Spread):
            network = over_images(network, rows.count)
        return network(params, rainy, white, size)

    return jit_for(platform, restore_batch, static_argnums=(0, 1))

"""The network as StableHLO, serialized by `jax.export`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from drsformer_jax.config import SIZE_MULTIPLE, ModelConfig
from drsformer_jax.nn.functional import Params, apply
from drsformer_jax.types import Array, Dimension, Float

PLATFORMS = ("cpu", "cuda", "tpu")
Shape = tuple[int | None, int | None, int | None]
"""Images, height and width; None where there may be any number, at least 1."""


def stablehlo(config: ModelConfig, params: Params, shape: Shape) -> bytes:
    """A serialized `jax.export.Exported` for all of `PLATFORMS`, with the parameters inside.

    Args:
        config: the network, without float64.
        params: its parameters.
        shape: of what the program takes.
    """
    # The cut at the end keeps no more pixels than there are.
    scope = [f"{SIZE_MULTIPLE}*floordiv({side} + 7, {SIZE_MULTIPLE}) >= {side}" for side in "hw"]
    symbols = export.symbolic_shape("b, h, w", constraints=scope)
    dims = [symbol if size is None else size for symbol, size in zip(symbols, shape, strict=True)]
    program = jax.jit(program_of(config, params))
    rainy = jax.ShapeDtypeStruct((*dims, 3), jnp.float32)
    return bytes(export.export(program, platforms=PLATFORMS)(rainy).serialize())


def program_of(config: ModelConfig, params: Params) -> Callable[[Array], Array]:
    """What the file computes, as a function: see the package."""
    # On the host, they become constants of the program.
    constants = jax.tree.map(np.asarray, params)

    def program(rainy: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        _, height, width, _ = rainy.shape
        padded = jnp.take(rainy, _reflected(height), axis=1, mode="clip")
        padded = jnp.take(padded, _reflected(width), axis=2, mode="clip")
        clean = apply(config, constants, padded)[:, :height, :width]
        return jnp.clip(clean, 0, 1)

    return program


def _reflected(length: Dimension) -> Array:
    """Indices of pixels along an axis that reflection makes as long as a multiple of 8.

    `jnp.pad` takes no number of pixels that depends on a symbolic length.
    """
    index = jnp.arange(SIZE_MULTIPLE * ((length + SIZE_MULTIPLE - 1) // SIZE_MULTIPLE))
    period = jnp.maximum(2 * length - 2, 1)  # A single pixel is repeated.
    index = index % period
    return jnp.minimum(index, period - index)

"""Equal layers one after another, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from drsformer_jax.types import Array, Float


class Stack(nnx.Module):
    """`count` layers of one shape whose parameters are stacked along a first axis and scanned.

    The program has one layer's size whatever the count: compiling takes a fraction of the time.
    """

    def __init__(
        self,
        layer: Callable[[nnx.Rngs], nnx.Module],
        count: int,
        *,
        remat: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.remat = remat
        self.layers = nnx.vmap(layer)(rngs.split(count))

    def __call__(self, x: Float[Array, "b h w c"], *per_layer: Any) -> Float[Array, "b h w c"]:
        """Applies the layers in turn.

        Args:
            x: input of the first layer.
            *per_layer: further arguments, stacked along a first axis like the parameters.
        """
        definition, params = nnx.split(self.layers)

        def apply(x: Array, layer: tuple[Any, tuple[Any, ...]]) -> tuple[Array, None]:
            params, arguments = layer
            return nnx.merge(definition, params)(x, *arguments), None

        if self.remat:
            apply = jax.checkpoint(apply, prevent_cse=False)  # A scan cannot be merged with CSE.
        return jax.lax.scan(apply, x, (params, per_layer))[0]

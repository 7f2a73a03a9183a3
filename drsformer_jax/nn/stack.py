"""Equal layers one after another, compiled once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from drsformer_jax.nn.rows import AT_ONCE, Rows
from drsformer_jax.types import Array, Float


class Stack(nnx.Module):
    """`count` layers of one shape whose parameters are stacked along a first axis and scanned.

    The program has one layer's size whatever the count: compiling takes a fraction of the time.

    Args:
        layer: one layer; its parameters are repeated.
        count: number of layers.
        remat: keep only each layer's input for the backward pass and recompute the rest.
        unroll: compile every layer by itself instead.
    """

    def __init__(self, layer: nnx.Module, count: int, *, remat: bool, unroll: bool) -> None:
        self.remat = remat
        self.unroll = count if unroll else 1
        self.layers = layer
        repeated = jax.tree.map(
            lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape)), nnx.state(layer)
        )
        nnx.update(layer, repeated)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *per_layer: Any,
        rows: Rows = AT_ONCE,
    ) -> Float[Array, "b h w c"]:
        """Applies the layers in turn.

        Args:
            x: input of the first layer.
            *per_layer: further arguments, stacked along a first axis like the parameters.
            rows: how the rows of images are computed, by every layer.
        """

        def apply(layer: nnx.Module, x: Array, *arguments: Any) -> Array:
            return layer(x, *arguments, rows=rows)

        if self.remat:
            apply = nnx.remat(apply, prevent_cse=False)  # A scan cannot be merged with CSE.
        axes = (0, nnx.Carry, *(0 for _ in per_layer))
        scan = nnx.scan(apply, in_axes=axes, out_axes=nnx.Carry, unroll=self.unroll)
        return scan(self.layers, x, *per_layer)

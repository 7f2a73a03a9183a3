"""Equal layers one after another, compiled once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.rows import AT_ONCE, Rows
from drsformer_jax.ops.depthwise import CONVOLVED
from drsformer_jax.ops.implementations import chosen
from drsformer_jax.types import Array, Float


class Stack(nnx.Module):
    """`count` layers of one shape whose parameters are stacked along a first axis and scanned.

    A single one is applied without a loop, which would only copy what its backward pass needs.

    The program has one layer's size whatever the count: compiling takes a fraction of the time.

    It is scanned by `jax.lax.scan`. `nnx.scan` compiles to the same program in as many lines, but
    raises an error ("different trace level") on a network that a surrounding transformation closes
    over, as in `jax.eval_shape(network, x)`.

    Args:
        layer: one layer; its parameters are repeated.
        count: number of layers.
        config: `remat` keeps only each layer's input for the backward pass, and with
            `save_convolutions` the results of its depthwise convolutions, and recomputes the rest;
            `unroll` compiles every layer by itself instead.
    """

    def __init__(self, layer: nnx.Module, count: int, config: ModelConfig) -> None:
        self.saved: tuple[str, ...] | None = None  # Everything.
        if config.remat:
            self.saved = (CONVOLVED,) if config.save_convolutions else ()
        self.unroll = config.unroll
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
        definition, params = nnx.split(self.layers)
        return _scan(definition, self.saved, self.unroll, params, x, per_layer, rows)


# Stages of equal layers and shapes, as a level has in encoder and decoder, are traced once.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scan(
    definition: Any,
    saved: tuple[str, ...] | None,
    unroll: bool,
    params: Any,
    x: Array,
    per_layer: tuple[Any, ...],
    rows: Rows,
) -> Array:
    count = jax.tree.leaves(params)[0].shape[0]
    # A GPU would copy each array of a layer by a kernel of its own, and its gradient by another:
    # in the forward pass, and with `remat` in the backward pass too.
    packed = count > 1 and not unroll and chosen("layer_weights") == "packed"
    if packed:
        _, unpack = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], params))
        params = jax.vmap(lambda layer: ravel_pytree(layer)[0])(params)

    def apply(x: Array, layer: tuple[Any, tuple[Any, ...]]) -> tuple[Array, None]:
        params, arguments = layer
        if packed:
            params = unpack(params)
        return nnx.merge(definition, params)(x, *arguments, rows=rows), None

    if saved is not None:
        apply = jax.checkpoint(
            apply,
            prevent_cse=count == 1,  # A scan cannot be merged with CSE.
            policy=jax.checkpoint_policies.save_only_these_names(*saved),
        )
    if count == 1:
        return apply(x, jax.tree.map(lambda leaf: leaf[0], (params, per_layer)))[0]
    return jax.lax.scan(apply, x, (params, per_layer), unroll=unroll)[0]

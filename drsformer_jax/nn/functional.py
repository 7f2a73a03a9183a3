"""The network as functions of a plain dict of parameters: from Flax NNX to plain JAX."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.drsformer import DRSformer
from drsformer_jax.nn.rows import AT_ONCE, Rows
from drsformer_jax.types import Array, Float, Int

Params = dict[str, Any]
"""Nested dict of arrays, keyed by the names of the modules."""


@functools.cache
def _abstract(config: ModelConfig) -> tuple[Any, Params]:
    with wide_types(config):  # Else the cache would hold float32 in place of float64.
        definition, state = nnx.split(
            nnx.eval_shape(lambda: DRSformer(config, rngs=nnx.Rngs(params=0)))
        )
    return definition, nnx.to_pure_dict(state)


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: leaf, _abstract(config)[1])


def is_wide(config: ModelConfig) -> bool:
    """Whether a network has parameters or activations in float64."""
    return "float64" in (config.dtype, config.param_dtype)


def wide_types(config: ModelConfig) -> contextlib.AbstractContextManager[object]:
    """Lets JAX have float64 inside the block, in this thread, where the network has.

    Without it JAX makes float32 of what is made in float64. Arrays that leave the block stay in
    float64; what is computed with them belongs into such a block again.
    """
    return jax.enable_x64(True) if is_wide(config) else contextlib.nullcontext()


def init_params(config: ModelConfig, key: Array) -> Params:
    """Initializes the parameters, as PyTorch does by default (see `nn.linear.initialize`)."""
    return nnx.to_pure_dict(nnx.state(DRSformer(config, rngs=nnx.Rngs(params=key))))


def build(config: ModelConfig, params: Params) -> DRSformer:
    """The network with these parameters, as a module."""
    return nnx.merge(_abstract(config)[0], params)


def apply(
    config: ModelConfig,
    params: Params,
    x: Float[Array, "b h w 3"],
    size: Int[Array, "b 2"] | None = None,
    rows: Rows = AT_ONCE,
) -> Float[Array, "b h w 3"]:
    """Removes rain: `DRSformer.__call__` with these parameters."""
    return build(config, params)(x, size, rows)

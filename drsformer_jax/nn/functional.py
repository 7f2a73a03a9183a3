"""The network as functions of a plain dict of parameters: from Flax NNX to plain JAX."""

from __future__ import annotations

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
    definition, state = nnx.split(
        nnx.eval_shape(lambda: DRSformer(config, rngs=nnx.Rngs(params=0)))
    )
    return definition, nnx.to_pure_dict(state)


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda leaf: leaf, _abstract(config)[1])


def use_wide_types(config: ModelConfig) -> None:
    """Enables float64 in JAX, for the whole process, if the network computes in it."""
    if "float64" in (config.dtype, config.param_dtype):
        jax.config.update("jax_enable_x64", True)


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

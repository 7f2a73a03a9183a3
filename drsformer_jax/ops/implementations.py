"""Which implementation of an operation runs on which backend: the one place that decides it.

All implementations of an operation have the same result but for rounding. The choices were
measured with `benchmarks/ops.py` on CPUs, and follow what XLA makes of each implementation for
TPUs and GPUs: see docs/performance.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from drsformer_jax.types import Array, Float

CHOICES: Mapping[str, Mapping[str, str]] = {
    "depthwise_conv": {"cpu": "by_pixel", "default": "by_tap"},
    "many_taps": {"tpu": "written", "default": "fused"},
    "mixed_scale": {"cpu": "strips", "tpu": "aligned", "default": "whole"},
    "gated": {"cpu": "strips", "default": "whole"},
    "query_key_sums": {"cpu": "strips", "default": "whole"},
    "joined_linear": {"cpu": "sums", "default": "joined"},
    "depthwise_kernels": {"tpu": "mosaic", "cuda": "triton", "default": "plain"},
    "query_key_input": {"cuda": "apart", "default": "shared"},
    "fused_kernels": {"cuda": "triton", "default": "plain"},
    "layer_weights": {"gpu": "packed", "default": "apart"},
}
"""For each operation its implementation on each platform; `default` is for all not named."""

PALLAS = "pallas"
"""The implementation with the Pallas kernels that the platform has, and its own for the rest."""

NARROW = 48
"""Width of an image, in pixels, below which the halos of strips cost more than strips save."""

_COMPILER_OPTIONS: Mapping[str, Mapping[str, int]] = {
    # XLA prefers 256 bits, though a sum of taps is bound by loads, of which one takes 512 bits too.
    "cpu": {"xla_cpu_prefer_vector_width": 512},
}

_TRACED_FOR = jax.make_user_context(None)
"""The platform that operations are traced for, or None for all of them; a part of the keys of JAX's
caches."""

Implementations = Mapping[str, Callable[..., Any]]
"""Functions of the same arrays, by the names that `CHOICES` gives them."""


def traced_for(platform: str | None) -> AbstractContextManager[None]:
    """Operations that are traced within are for one platform alone, in two thirds of the time.

    Otherwise each is traced for every platform, and lowering chooses: a program may be traced on
    one machine and run on another. GPUs of several makers have one name here: lowering chooses
    among theirs.

    Args:
        platform: that of the devices that will run the program, as `jax.default_backend` and
            `jax.Device.platform` call it: cpu, gpu or tpu. None for all, as outside.
    """
    return _TRACED_FOR(platform)


def jit_for(platform: str, function: Callable[..., Any], **options: Any) -> jax.stages.Wrapped:
    """`jax.jit` for devices of one platform: traced for it alone, with its compiler options.

    Args:
        platform: as in `traced_for`. Lowered for another one, the program would be slow.
        function: a program of the network, called by position.
        **options: of `jax.jit`.
    """

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with traced_for(platform):
            return function(*arguments)

    told = dict(_COMPILER_OPTIONS.get(platform, {}))
    return jax.jit(traced, compiler_options=told, **options)


def kernels_of(implementation: str | None) -> str | None:
    """The implementation of the convolutions in an operation with this one."""
    return PALLAS if implementation == PALLAS else None


def kernels_take(dtype: jnp.dtype) -> bool:
    """Whether Pallas kernels compute images of this type: no 64 bits, not in indices either."""
    narrow = jax.dtypes.canonicalize_dtype(float) == jnp.float32
    return narrow and dtype in (jnp.float32, jnp.bfloat16)


def run(
    operation: str, implementations: Implementations, implementation: str | None, *arrays: Any
) -> Any:
    """Computes an operation in one implementation, default: that of the platform that runs it.

    The platform is that of `traced_for`. Outside of it, it is known when a program is lowered.

    Args:
        operation: a key of `CHOICES`.
        implementations: each a function of `arrays`.
        implementation: a key of `implementations`, or None or `PALLAS` for the platform's.
        *arrays: arrays, or trees of them.
    """
    if implementation not in (None, PALLAS):
        return implementations[implementation](*arrays)
    platform = _TRACED_FOR.value
    if platform not in (None, "gpu"):
        return implementations[chosen(operation)](*arrays)
    platforms = {
        name: implementations[choice]
        for name, choice in CHOICES[operation].items()
        if platform is None or name not in ("cpu", "tpu")
    }
    if platforms.keys() == {"default"}:
        return platforms["default"](*arrays)
    return lax.platform_dependent(*arrays, **platforms)


def run_fused(
    plain: Callable[..., Any],
    triton: Callable[..., Any],
    kernels: str | None,
    dtype: jnp.dtype,
    *arrays: Any,
) -> Any:
    """An operation that GPUs have one kernel for, beside those of single convolutions.

    Args:
        plain: computes it without that kernel.
        triton: by it.
        kernels: as `implementation` in `run`, but None is `plain`.
        dtype: of the images; it is `plain` if kernels do not take it.
        *arrays: as in `run`.
    """
    name = kernels if kernels and kernels_take(dtype) else "plain"
    return run("fused_kernels", {"plain": plain, "triton": triton}, name, *arrays)


def chosen(operation: str) -> str:
    """The implementation of an operation on the platform of `traced_for`, `default` for all.

    For what lowering cannot choose, because all of a program follows from it.
    """
    choices = CHOICES[operation]
    return choices.get(_TRACED_FOR.value, choices["default"])


def run_by_width(
    operation: str,
    implementations: Implementations,
    implementation: str | None,
    x: Float[Array, "b h w c"],
    weights: Any,
    *masks: Array | None,
) -> Any:
    """`run` of an operation that has `strips`.

    Without an implementation's name, images narrower than `NARROW` are computed `whole`. An image
    of a program for any width (`jax.export`) is not taken for narrow.

    Strips save their arguments alone for the backward pass, also within a layer that is computed
    again.

    Args:
        operation: a key of `CHOICES`.
        implementations: each a function of `x`, `weights` and `masks`; one is named `whole`, and
            one `strips`.
        implementation: as in `run`.
        x: images.
        weights: tree of arrays.
        *masks: what has no derivative.
    """
    narrow = not export.is_symbolic_dim(x.shape[2]) and x.shape[2] < NARROW
    if implementation in (None, PALLAS) and narrow:
        return implementations["whole"](x, weights, *masks)
    # Within a layer that is computed again JAX would save what all of the strips compute.
    strips = jax.checkpoint(implementations["strips"], prevent_cse=False)
    every = {**implementations, "strips": strips}
    return run(operation, every, implementation, x, weights, *masks)

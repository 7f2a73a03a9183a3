"""Which form of an operation runs on which backend: the one place that decides it.

A form is a way to compute an operation; all forms of one have equal results but for rounding.
The choices were measured with `benchmarks/ops.py` on CPUs, and follow what XLA makes of each form
for TPUs: see docs/performance.md. There are no Pallas kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax

from drsformer_jax.types import Array, Float

CHOICES: Mapping[str, Mapping[str, str]] = {
    "depthwise_conv": {"cpu": "by_pixel", "tpu": "by_conv", "default": "by_tap"},
    "mixed_scale": {"cpu": "strips", "default": "whole"},
    "query_key_sums": {"cpu": "strips", "default": "whole"},
}
"""For each operation its form on each platform; `default` is for all that are not named."""

NARROW = 48
"""Columns of an image below which the borders of strips cost more than they save."""


def run(
    operation: str, forms: Mapping[str, Callable[..., Any]], form: str | None, *arrays: Any
) -> Any:
    """Computes an operation in `form`, or in the one of the platform that runs it.

    The platform is known when a program is lowered, which may be on another machine.

    Args:
        operation: a key of `CHOICES`.
        forms: a function of `arrays` for each form.
        form: one of `forms`, or None.
        *arrays: arrays, or trees of them.
    """
    if form is not None:
        return forms[form](*arrays)
    platforms = {platform: forms[name] for platform, name in CHOICES[operation].items()}
    return lax.platform_dependent(*arrays, **platforms)


def recomputed(
    operation: str,
    forms: Mapping[str, Callable[..., Any]],
    form: str | None,
    x: Float[Array, "b h w c"],
    weights: Any,
    *masks: Array | None,
) -> Any:
    """`run` of an operation whose derivative saves its arguments alone, and computes it again.

    Narrow images are computed `whole` and differentiated as usual: strips gain nothing there, and
    what would be saved is small.

    Args:
        operation: a key of `CHOICES`.
        forms: a function of `x`, `weights` and `masks` for each form, one of them `whole`.
        form: one of `forms`, or None.
        x: images.
        weights: tree of arrays.
        *masks: what has no derivative.
    """
    if form is None and x.shape[2] < NARROW:
        return forms["whole"](x, weights, *masks)
    compute = functools.partial(run, operation, forms, form)
    # In the scans of layers nothing merges the two computations.
    return jax.checkpoint(compute, prevent_cse=False)(x, weights, *masks)

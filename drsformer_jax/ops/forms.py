"""Which form of an operation runs on which backend: the one place that decides it.

A form is a way to compute an operation; all forms of one have equal results but for rounding.
The choices were measured with `benchmarks/ops.py` on CPUs, and follow what XLA makes of each form
for TPUs: see docs/performance.md. There are no Pallas kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import lax

CHOICES: Mapping[str, Mapping[str, str]] = {
    "depthwise_conv": {"cpu": "by_pixel", "tpu": "by_conv", "default": "by_tap"},
    "mixed_scale": {"cpu": "strips", "default": "whole"},
}
"""For each operation its form on each platform; `default` is for all that are not named."""


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

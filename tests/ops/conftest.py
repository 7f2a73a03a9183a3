"""Fixtures of several operations' tests."""

import functools
import types

import pytest
from jax.experimental import pallas as pl

from drsformer_jax.ops import (
    attention_triton,
    linear_triton,
    mixed_scale_triton,
    norm_triton,
    strips,
    triton,
)

TRITON = (triton, mixed_scale_triton, attention_triton, norm_triton, linear_triton)


@pytest.fixture
def small_strips(monkeypatch):
    """Strips of 8 rows, so that small images have several, the last of them not full."""
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", 1)


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels for GPUs run without one."""
    interpreted = {**vars(pl), "pallas_call": functools.partial(pl.pallas_call, interpret=True)}
    for module in TRITON:
        monkeypatch.setattr(module, "pl", types.SimpleNamespace(**interpreted))
    yield
    # They were traced with those kernels. All of JAX's caches would cost the files after this one.
    for module in TRITON:
        for function in vars(module).values():
            if hasattr(function, "clear_cache"):
                function.clear_cache()

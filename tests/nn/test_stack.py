"""Equal stacks of layers are traced once: half of the stages of the U-Net have a twin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.rows import AT_ONCE, Rows, Shards, Strips
from drsformer_jax.nn.stack import Stack

TRACED = []


class Scale(nnx.Module):
    """Multiplies, and notes that it was called."""

    def __init__(self, by, power=1):
        self.by = nnx.Param(np.full((2,), by, np.float32))
        self.power = power

    def __call__(self, x, rows):
        TRACED.append(type(rows))
        return x * self.by[...] ** self.power


@pytest.mark.parametrize("kind", [Rows, Strips, Shards])
def test_twins_are_traced_once_and_others_apart(kind):
    first, twin = (Stack(Scale(by), 3, ModelConfig()) for by in (2, 3))
    other = Stack(Scale(2, power=2), 3, ModelConfig())
    x, rows = jnp.ones((1, 4, 4, 2)), kind(size=jnp.array([[4, 4]]))

    def network(x):
        return first(x, rows=rows), twin(x, rows=rows), other(x, rows=rows)

    TRACED.clear()
    found = jax.jit(network)(x)
    assert TRACED.count(kind) == len(TRACED) == 2
    for value, expected in zip(found, (2**3, 3**3, 4**3), strict=True):
        np.testing.assert_array_equal(value, np.full(x.shape, expected))


def test_how_rows_are_computed_is_a_part_of_what_is_traced():
    stack, x = Stack(Scale(2), 1, ModelConfig()), jnp.ones((1, 4, 4, 2))
    TRACED.clear()
    for rows in (AT_ONCE, Strips(height=2), Strips(height=3), Strips(height=2)):
        stack(x, rows=rows)
    assert [Rows, Strips, Strips] == TRACED

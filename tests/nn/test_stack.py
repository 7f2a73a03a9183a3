"""Equal stacks of layers are traced once: half of the stages of the U-Net have a twin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain import assert_close, equations, normal

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.drsformer import Block
from drsformer_jax.nn.linear import initialize
from drsformer_jax.nn.rows import AT_ONCE, Rows, Shards, Strips
from drsformer_jax.nn.stack import Stack
from drsformer_jax.ops.implementations import traced_for

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


@pytest.mark.parametrize("saving", [False, True])
def test_gpus_read_the_weights_of_a_layer_from_one_array(saving):
    config, layers = ModelConfig(remat=True, save_convolutions=saving), 7
    stack = Stack(Block(4, 2, config), layers, config)
    initialize(stack, jax.random.key(0))
    definition, params = nnx.split(stack)
    x = normal(1, 1, 6, 5, 4, dtype="float32")

    def loss(params, x):
        return jnp.sum(nnx.merge(definition, params)(x) ** 2)

    def of(platform):
        with traced_for(platform):
            program = jax.make_jaxpr(jax.grad(loss))(params, x)
            return program, jax.jit(jax.value_and_grad(loss))(params, x)

    (apart, expected), (packed, found) = of("cpu"), of("gpu")

    def of_a_layer(program):
        """Arrays that each turn of the two loops reads and writes."""
        scans = [each for each in equations(program.jaxpr) if each.primitive.name == "scan"]
        for loop in (each for each in scans if each.params["length"] == layers):
            carried = loop.params["num_carry"]
            yield (
                len(loop.invars) - loop.params["num_consts"] - carried,
                len(loop.outvars) - carried,
            )

    arrays = len(jax.tree.leaves(params))
    kept = 1 + 6 * saving  # The layer's input, and its convolutions.
    assert list(of_a_layer(apart)) == [(arrays, kept), (arrays + kept, arrays)]
    assert list(of_a_layer(packed)) == [(1, kept), (1 + kept, 1)]
    jax.tree.map(lambda f, e: assert_close(f, e, 1e-5), found, expected)


@pytest.mark.parametrize(("count", "unroll"), [(1, False), (2, True)])
def test_layers_without_a_loop_keep_their_arrays(count, unroll):
    stack, x = Stack(Scale(2), count, ModelConfig(unroll=unroll)), jnp.ones((1, 4, 4, 2))
    programs = []
    for platform in ("cpu", "gpu"):
        with traced_for(platform):
            programs.append(str(jax.make_jaxpr(lambda x: stack(x, rows=AT_ONCE))(x)))
    assert programs[0] == programs[1]


def test_arguments_of_each_layer_stand_beside_the_packed_weights():
    class Shift(Scale):
        def __call__(self, x, by, rows):
            return super().__call__(x, rows) + by

    stack, x = Stack(Shift(2), 3, ModelConfig()), jnp.ones((1, 4, 4, 2))
    with traced_for("gpu"):
        found = jax.jit(lambda x, by: stack(x, by, rows=AT_ONCE))(x, jnp.arange(3.0))
    np.testing.assert_array_equal(found, np.full(x.shape, ((1 * 2 + 0) * 2 + 1) * 2 + 2))

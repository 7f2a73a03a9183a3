"""Which platforms operations are traced for."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from plain import equations, normal
from recipe import SMALL

from drsformer_jax.config import MeshConfig, TrainConfig
from drsformer_jax.nn.functional import abstract_params
from drsformer_jax.nn.rows import AT_ONCE
from drsformer_jax.ops.depthwise import depthwise_conv
from drsformer_jax.ops.implementations import PALLAS, traced_for
from drsformer_jax.restoring import program
from drsformer_jax.sharding import make_mesh
from drsformer_jax.training import abstract_state, compiled_step
from drsformer_jax.training.step import train_step


def primitives(jaxpr) -> Counter[str]:
    return Counter(equation.primitive.name for equation in equations(jaxpr))


def traced(platform: str | None, implementation: str | None = None) -> Counter[str]:
    x, kernel = (normal(1, *shape, dtype="float32") for shape in ((1, 5, 6, 3), (7, 7, 3)))
    convolve = functools.partial(depthwise_conv, implementation=implementation)
    with traced_for(platform):
        return primitives(jax.make_jaxpr(convolve)(x, kernel).jaxpr)


def test_platform_is_chosen_by_lowering_unless_it_is_said():
    assert traced(None)["platform_index"]
    assert traced("gpu", PALLAS)["platform_index"]  # NVIDIA's and AMD's have different kernels.
    assert traced("gpu", PALLAS)["pallas_call"] == 1  # No kernel for TPUs.
    # What was traced for one platform is not taken for another. All but CPUs write the padded image
    # to memory, and TPUs the sum of the first 28 of the 49 taps as well.
    for platform, barriers in (("cpu", 0), ("tpu", 2), ("another", 1), ("cpu", 0)):
        found = traced(platform)
        assert not found["platform_index"]
        assert found["optimization_barrier"] == barriers


@pytest.mark.parametrize(("platform", "kernels"), [("cpu", 0), ("tpu", 1), ("another", 0)])
def test_kernels_that_are_asked_for_are_those_of_the_platform(platform, kernels):
    assert traced(platform, PALLAS)["pallas_call"] == kernels


def test_trace_is_for_all_platforms_again_afterwards():
    with pytest.raises(ValueError, match="of the user"), traced_for("cpu"):
        raise ValueError("of the user")
    assert traced(None) == primitives(
        jax.make_jaxpr(depthwise_conv)(jnp.ones((1, 5, 6, 3)), jnp.ones((7, 7, 3))).jaxpr
    )


def test_training_is_traced_for_the_devices_of_its_mesh_alone():
    config, mesh = TrainConfig(model=SMALL), make_mesh(MeshConfig(data=1))
    images = jax.ShapeDtypeStruct((1, 16, 48, 3), jnp.uint8)
    arguments = abstract_state(config, mesh), {"rainy": images, "clean": images}
    found = primitives(compiled_step(config, mesh).trace(*arguments).jaxpr.jaxpr)
    step = functools.partial(train_step, config, mesh)
    assert primitives(jax.make_jaxpr(step)(*arguments).jaxpr)["platform_index"]
    with traced_for("cpu"):
        expected = primitives(jax.make_jaxpr(step)(*arguments).jaxpr)
    del found["jit"]  # Around the whole step.
    del expected["jit"]
    assert found == expected


def test_restoring_is_traced_for_the_devices_that_hold_the_parameters_alone():
    config = dataclasses.replace(SMALL, feed_forward="msfn")
    arguments = (
        jax.ShapeDtypeStruct((1, 16, 48, 3), jnp.uint16),
        jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    barriers = []
    for platform in ("cpu", "tpu"):
        restore = program.compiled_for(platform)
        restore = restore.trace(config, AT_ONCE, abstract_params(config), *arguments)
        found = primitives(restore.jaxpr.jaxpr)
        assert not found["platform_index"]
        barriers.append(found["optimization_barrier"])
    assert barriers[0] < barriers[1]

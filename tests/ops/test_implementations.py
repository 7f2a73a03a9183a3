"""Which platforms operations are traced for."""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from plain import normal
from recipe import SMALL

from drsformer_jax.config import MeshConfig, TrainConfig
from drsformer_jax.nn.functional import abstract_params
from drsformer_jax.nn.rows import AT_ONCE
from drsformer_jax.ops.depthwise import depthwise_conv
from drsformer_jax.ops.implementations import traced_for
from drsformer_jax.restoring import program
from drsformer_jax.sharding import make_mesh
from drsformer_jax.training import abstract_state, compiled_step

X, KERNEL = normal(1, 1, 5, 6, 3, dtype="float32"), normal(2, 7, 7, 3, dtype="float32")


def primitives(jaxpr) -> set[str]:
    inner = [
        primitives(each)
        for equation in jaxpr.eqns
        for each in jax.extend.core.jaxprs_in_params(equation.params)
    ]
    return {equation.primitive.name for equation in jaxpr.eqns}.union(*inner)


def traced(platform: str | None) -> set[str]:
    with traced_for(platform):
        return primitives(jax.make_jaxpr(depthwise_conv)(X, KERNEL).jaxpr)


def test_platform_is_chosen_by_lowering_unless_it_is_said():
    assert "platform_index" in traced(None)
    assert "platform_index" in traced("gpu")  # NVIDIA's and AMD's have different kernels.
    # What was traced for one platform is not taken for another: TPUs have barriers, CPUs have none.
    for platform, barrier in (("cpu", False), ("tpu", True), ("cpu", False)):
        found = traced(platform)
        assert "platform_index" not in found
        assert ("optimization_barrier" in found) == barrier


def test_result_is_that_of_the_platform_chosen_by_lowering():
    expected = depthwise_conv(X, KERNEL)
    with traced_for("cpu"):
        np.testing.assert_array_equal(depthwise_conv(X, KERNEL), expected)


def test_training_and_restoring_trace_for_their_devices_alone():
    config, mesh = TrainConfig(model=SMALL), make_mesh(MeshConfig(data=1))
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint8)
    batch = {"rainy": images, "clean": images}
    step = compiled_step(config, mesh).trace(abstract_state(config, mesh), batch)
    arguments = (
        jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint16),
        jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    restore = program.compiled_for("cpu").trace(SMALL, AT_ONCE, abstract_params(SMALL), *arguments)
    for each in (step, restore):
        assert "platform_index" not in primitives(each.jaxpr.jaxpr)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_trace_is_for_all_platforms_again_afterwards(platform):
    with pytest.raises(ValueError, match="of the user"), traced_for(platform):
        raise ValueError("of the user")
    assert "platform_index" in primitives(jax.make_jaxpr(depthwise_conv)(X, KERNEL).jaxpr)

"""Wrong shapes fail in every test."""

from __future__ import annotations

import jax.numpy as jnp
import jaxtyping
import pytest
from typechecker import check

from drsformer_jax.ops.depthwise import depthwise_conv
from drsformer_jax.types import Array, Float


def test_wrong_shape_is_rejected():
    with pytest.raises(jaxtyping.TypeCheckError, match="depthwise_conv"):
        depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 5)))


def test_function_in_a_function_is_checked_where_it_names_shapes():
    @jaxtyping.jaxtyped(typechecker=check)
    def shaped(x: Float[Array, "n n"]) -> Array:
        return x

    @jaxtyping.jaxtyped(typechecker=check)
    def plain(x: tuple[Array, Array]) -> Array:
        return x

    with pytest.raises(jaxtyping.TypeCheckError, match="shaped"):
        shaped(jnp.ones((2, 3)))
    assert plain("anything") == "anything"

"""Linear layers against a matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import (
    STEPS,
    assert_close,
    assert_for_gpus_alone,
    difference,
    masks,
    normal,
    vjp,
    wide,
    with_gradients,
)

from drsformer_jax.ops.implementations import traced_for
from drsformer_jax.ops.linear import Affine, joined, joined_linear, linear, projected

BF16_STEP = STEPS["bfloat16"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 5, 3, 4)])
@pytest.mark.parametrize("out", [3, 6])
def test_linear_and_its_gradients_equal_a_matrix_product(shape, out):
    arguments, cotangent = (normal(1, *shape), normal(2, 4, out)), normal(3, *shape[:-1], out)
    found = vjp(linear, arguments, cotangent)
    expected = vjp(lambda x, kernel: x @ kernel, arguments, cotangent)
    jax.tree.map(lambda f, e: assert_close(f, e, 1e-14), found, expected)


@pytest.mark.parametrize("out", [3, 6])
def test_linear_keeps_types_and_sums_the_kernel_gradient_in_float32(out):
    x, cotangent = normal(1, 9, 999, 4, dtype="bfloat16"), normal(2, 9, 999, out, dtype="bfloat16")
    kernel = normal(3, 4, out, dtype="float32")
    y, (x_grad, kernel_grad) = vjp(linear, (x, kernel), cotangent)
    assert (y.dtype, x_grad.dtype, kernel_grad.dtype) == ("bfloat16", "bfloat16", "float32")
    assert_close(y, wide(x) @ wide(kernel), 2 * BF16_STEP)
    assert_close(x_grad, wide(cotangent) @ wide(kernel).T, 2 * BF16_STEP)
    # Sums of n float32 terms in whatever order are off by sqrt(n) roundings; bfloat16 by far more.
    rounding = np.sqrt(9 * 999) * 2**-24
    expected = np.einsum("bpc,bpo->co", wide(x), wide(cotangent))
    assert_close(kernel_grad, expected, rounding)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", ["joined", "sums", None])
def test_joined_linear_and_its_gradients_equal_a_product_for_each_image(implementation):
    parts, kernel = [normal(n, 2, 3, 5, 4) for n in range(3)], normal(3, 2, 12, 6)
    cotangent = normal(4, 2, 3, 5, 6)
    found = vjp(
        lambda *all: joined_linear(list(all[:3]), all[3], implementation),
        (*parts, kernel),
        cotangent,
    )
    expected = vjp(
        lambda *all: jax.vmap(jax.numpy.matmul)(
            jax.numpy.concatenate(all[:3], -1).reshape(2, 15, 12), all[3]
        ).reshape(2, 3, 5, 6),
        (*parts, kernel),
        cotangent,
    )
    jax.tree.map(lambda f, e: assert_close(f, e, 1e-14), found, expected)


@pytest.mark.parametrize("implementation", ["joined", "sums"])
def test_joined_linear_sums_bfloat16_in_float32(implementation):
    parts = [normal(n, 1, 30, 30, 48, dtype="bfloat16") for n in range(8)]
    kernel = normal(8, 1, 8 * 48, 4, dtype="bfloat16")
    y = jax.jit(lambda parts: joined_linear(parts, kernel, implementation))(parts)
    assert y.dtype == "bfloat16"
    expected = np.concatenate([wide(part) for part in parts], -1)[0] @ wide(kernel)[0]
    # Rounded once, at the end; eight sums in bfloat16 would be rounded eight times.
    assert np.all(abs(wide(y)[0] - expected) <= 1.01 * BF16_STEP * abs(expected) + 1e-5)


# Since 0.11 JAX calls the backend of this kernel deprecated.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((2, 7, 13, 40), 24),  # Two blocks of pixels and of channels, the second not full.
        pytest.param((1, 1, 1, 3), 2, marks=pytest.mark.slow),
        pytest.param((1, 8, 8, 96), 136, marks=pytest.mark.slow),  # Two blocks of outputs.
    ],
)
def test_joined_linear_by_a_kernel_and_its_gradients_equal_one_product(shape, outputs):
    parts = [normal(n, *shape, dtype="bfloat16") for n in range(3)]
    kernel = normal(3, shape[0], 3 * shape[-1], outputs, dtype="bfloat16")
    with traced_for("cuda"):
        (y,), gradients = with_gradients(
            lambda *all: joined_linear(list(all[:3]), all[3], "pallas"), *parts, kernel
        )
    with jax.enable_x64(True):
        exact = with_gradients(
            lambda *all: joined(all[:3], all[3]).astype("bfloat16"),
            *map(jnp.float64, (*parts, kernel)),
        )
    assert y.dtype == "bfloat16"
    assert difference([y], exact[0]) < 2 * BF16_STEP
    assert difference(gradients, exact[1]) < 4 * BF16_STEP


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_only_gpus_join_by_a_kernel_and_bfloat16_alone():
    def program(platform, implementation="pallas", dtype="bfloat16"):
        parts = [normal(n, 1, 2, 3, 4, dtype=dtype) for n in range(2)]
        kernel = jnp.ones((1, 8, 4), dtype)
        with traced_for(platform):
            return str(
                jax.make_jaxpr(joined_linear, static_argnums=2)(parts, kernel, implementation)
            )

    assert_for_gpus_alone("joined_product", program, refused="float32")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bias", [False, True])
def test_projection_is_zero_outside_the_mask_whatever_is_there(bias):
    kernel, mask = normal(1, 4, 6), masks(2, 5, 7)
    affine = Affine(kernel, normal(2, 6) if bias else None)
    x = jnp.where(mask, normal(3, 2, 5, 7, 4), jnp.inf)
    expected = np.where(mask, np.where(mask, x, 0) @ kernel + (affine.bias if bias else 0), 0)
    assert_close(projected(x, affine, mask), expected, 1e-14)
    inside = jnp.where(mask, x, 1)
    whole = inside @ kernel + (affine.bias if bias else 0)
    assert_close(projected(inside, affine), whole, 1e-14)

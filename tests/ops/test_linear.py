"""Linear layers against a matrix product."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from plain import STEPS, assert_close, normal, vjp, wide

from drsformer_jax.ops.linear import joined_linear, linear

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

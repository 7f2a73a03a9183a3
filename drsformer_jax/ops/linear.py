"""Dense layers (1x1 convolutions) with a gradient that CPUs compile well."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from drsformer_jax.ops import implementations
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.types import Array, Bool, Float


class Affine(NamedTuple):
    """Kernel of a layer, output channels last, and its bias (o), if it has one."""

    kernel: Array
    bias: Array | None


def biased(y: Float[Array, "*b o"], affine: Affine) -> Float[Array, "*b o"]:
    """Adds the bias, if there is one, in the dtype of `y`."""
    return y if affine.bias is None else y + affine.bias.astype(y.dtype)


def precision_of(x: Array) -> jax.lax.Precision:
    """How to multiply: in float32 where the network is float32.

    TPUs and GPUs multiply float32 with fewer bits by default.
    """
    bfloat16 = x.dtype == jnp.bfloat16
    return jax.lax.Precision.DEFAULT if bfloat16 else jax.lax.Precision.HIGHEST


@jax.custom_vjp
def linear(x: Float[Array, "*b c"], kernel: Float[Array, "c o"]) -> Float[Array, "*b o"]:
    """`x @ kernel`, in the dtype of `x`: on images, a 1x1 convolution.

    The kernel's gradient is written so that the one with fewer channels, of `x` and the output's
    gradient, is the one that is transposed. XLA for CPUs fuses all that computes an array into its
    transposition; of the wide one that took half of the time of a feed-forward network's gradient.
    """
    return jnp.matmul(x, kernel.astype(x.dtype), precision=precision_of(x))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return linear(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    wide = jnp.promote_types(x.dtype, kernel.dtype)
    precision = precision_of(x)
    both = [each.reshape(-1, each.shape[-1]) for each in (x, grad)]
    first, second = sorted(both, key=lambda each: each.shape[-1])
    product = jnp.matmul(first.T, second, precision=precision, preferred_element_type=wide)
    kernel_grad = product if first is both[0] else product.T
    x_grad = jnp.matmul(grad, kernel.T.astype(grad.dtype), precision=precision)
    return x_grad, kernel_grad.astype(kernel.dtype)


linear.defvjp(_forward, _backward)


def projected(
    x: Float[Array, "*b c"],
    affine: Affine,
    valid_mask: Bool[Array, "*b 1"] | None = None,
    masked: bool = False,
) -> Float[Array, "*b o"]:
    """A 1x1 convolution, in the dtype of `x`; zeros where `valid_mask` is False.

    Without a bias zeros stay zeros. So `x` is masked, which often has fewer channels and is the
    same for several convolutions; unless it is `masked` already.
    """
    if affine.bias is None:
        return linear(x if masked else zero_outside(x, valid_mask), affine.kernel)
    return zero_outside(biased(linear(x, affine.kernel), affine), valid_mask)


def joined_linear(
    parts: list[Array], kernel: Float[Array, "b _ o"], implementation: str | None = None
) -> Float[Array, "b h w o"]:
    """A 1x1 convolution of images joined along their channels, with a kernel for each image.

    Args:
        parts: images (b, h, w, c), all of one shape and dtype, which the result has too.
        kernel: of all channels of the parts, one part after another; in the dtype of the parts.
        implementation: `joined` or `sums`, which adds the parts' products. CPUs do it in three
            quarters of the time: they would compute the parts while they join them, without
            vectors. Where gradients are computed it is `joined`, which has one product, not eight,
            in its backward pass. `pallas` is a kernel for bfloat16 on NVIDIA GPUs. See
            `implementations.run` for others.
    """
    by_name: implementations.Implementations = {"joined": joined, "sums": _sums}
    plain = functools.partial(implementations.run, "joined_linear", by_name, implementation)
    dtype = parts[0].dtype
    # Without tensor cores, in float32, such a kernel keeps more than fits into registers.
    kernels = implementations.kernels_of(implementation) if dtype == jnp.bfloat16 else None
    return implementations.run_fused(plain, _by_kernel, kernels, dtype, parts, kernel)


def _by_kernel(parts: list[Array], kernel: Array) -> Array:
    from drsformer_jax.ops.linear_triton import joined_product

    return joined_product(parts, kernel)


def joined(parts: Sequence[Array], kernel: Array) -> Array:
    """`joined_linear` as one product."""
    x = jnp.concatenate(parts, axis=-1)
    return jnp.einsum("bhwi,bio->bhwo", x, kernel, precision=precision_of(x))


@jax.custom_vjp
def _sums(parts: list[Array], kernel: Array) -> Array:
    x = parts[0]
    product = functools.partial(
        jnp.einsum,
        "bhwi,bio->bhwo",
        precision=precision_of(x),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    kernels = jnp.split(kernel, len(parts), axis=1)
    return functools.reduce(jnp.add, map(product, parts, kernels)).astype(x.dtype)


def _sums_forward(parts: list[Array], kernel: Array) -> tuple[Array, Callable[[Array], Any]]:
    return jax.vjp(joined, parts, kernel)


def _sums_backward(backward: Callable[[Array], Any], grad: Array) -> Any:
    return backward(grad)


_sums.defvjp(_sums_forward, _sums_backward)

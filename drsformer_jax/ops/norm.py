"""Layer normalization over channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from drsformer_jax.ops import implementations
from drsformer_jax.types import Array, Float

EPSILON = 1e-5


def layer_norm(
    x: Float[Array, "*b c"],
    weight: Float[Array, " c"],
    bias: Float[Array, " c"] | None,
    implementation: str | None = None,
) -> Float[Array, "*b c"]:
    """Normalizes each pixel over its channels, in float32 or wider; in the dtype of `x`.

        (x - mean) / sqrt(variance + 1e-5) * weight + bias

    Without a bias the mean is not subtracted, though the variance is around it: BiasFree of
    Restormer (CVPR 2022).

    Args:
        x: images.
        weight: factor of each channel.
        bias: added to each channel, or None.
        implementation: `plain`, `triton` (the gradient by a kernel for GPUs), None or `pallas` (see
            `implementations.run`).
    """
    return implementations.run_fused(
        normalized, _by_kernel, implementation, x.dtype, x, weight, bias
    )


def normalized(x: Array, weight: Array, bias: Array | None) -> Array:
    """`layer_norm`, as XLA computes it."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(variance + EPSILON) * weight
    y = wide * scale if bias is None else (wide - mean) * scale + bias
    return y.astype(x.dtype)


def _by_kernel(x: Array, weight: Array, bias: Array | None) -> Array:
    from drsformer_jax.ops.norm_triton import with_gradient

    return with_gradient(x, weight, bias)

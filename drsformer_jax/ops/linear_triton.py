"""A 1x1 convolution of several images as a kernel for GPUs: Pallas, compiled by Triton.

XLA would write the images side by side for it, and read them again: three times their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from drsformer_jax.ops.linear import joined
from drsformer_jax.types import Array, Float

_PIXELS = 64
"""Pixels that a program computes."""
_OUTPUTS = 128
"""Output channels, likewise, at most."""
_INPUTS = 32
"""Channels of an image that are multiplied together."""
_OPTIONS = plgpu.CompilerParams(num_warps=4)


@jax.custom_vjp
def joined_product(
    parts: Sequence[Float[Array, "b h w c"]], kernel: Float[Array, "b _ o"]
) -> Float[Array, "b h w o"]:
    """`linear.joined` of bfloat16, summed in float32; with the gradient of `joined`."""
    return _product(parts, kernel)


@jax.jit
def _product(parts: Sequence[Array], kernel: Array) -> Array:
    batch, height, width, channels = parts[0].shape
    pixels, outputs = height * width, kernel.shape[-1]
    columns = min(_OUTPUTS, max(16, pl.next_power_of_2(outputs)))

    def body(*refs: Any) -> None:
        *images, matrices, out = refs
        image, tile, block = (pl.program_id(axis) for axis in range(3))
        pixel = (tile * _PIXELS + jnp.arange(_PIXELS))[:, None]
        output = (block * columns + jnp.arange(columns))[None]
        total = jnp.zeros((_PIXELS, columns))
        for number, x in enumerate(images):
            for first in range(0, channels, _INPUTS):
                channel = first + jnp.arange(_INPUTS)
                inside = channel < channels
                values = plgpu.load(
                    x.at[image, pixel, channel[None]],
                    mask=(pixel < pixels) & inside[None],
                    other=0,
                )
                weights = plgpu.load(
                    matrices.at[image, number * channels + channel[:, None], output],
                    mask=inside[:, None] & (output < outputs),
                    other=0,
                )
                total += lax.dot(values, weights, preferred_element_type=jnp.float32)
        mask = (pixel < pixels) & (output < outputs)
        plgpu.store(out.at[image, pixel, output], total.astype(out.dtype), mask=mask)

    y = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((batch, pixels, outputs), parts[0].dtype),
        grid=(batch, pl.cdiv(pixels, _PIXELS), pl.cdiv(outputs, columns)),
        compiler_params=_OPTIONS,
        name="joined_product",
    )(*(part.reshape(batch, pixels, channels) for part in parts), kernel)
    return y.reshape(batch, height, width, outputs)


def _forward(parts: Sequence[Array], kernel: Array) -> tuple[Array, Any]:
    return _product(parts, kernel), (parts, kernel)


def _backward(saved: Any, grad: Array) -> Any:
    return jax.vjp(joined, *saved)[1](grad)


joined_product.defvjp(_forward, _backward)

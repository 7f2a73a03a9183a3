"""The gradient of layer normalization as a kernel for GPUs: Pallas, compiled by Triton.

XLA needs eight kernels for it and reads the images six times, most of them in float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from drsformer_jax.ops.norm import EPSILON, normalized
from drsformer_jax.types import Array, Float

_ELEMENTS = 2048
"""Pixels times channels that are computed together: 16 for each thread of a program."""
_PARTS = 256
"""Programs, at most. Each adds up its pixels for the weight and the bias."""
_OPTIONS = plgpu.CompilerParams(num_warps=4)


@jax.custom_vjp
def with_gradient(
    x: Float[Array, "*b c"], weight: Float[Array, " c"], bias: Float[Array, " c"] | None
) -> Float[Array, "*b c"]:
    """`norm.normalized` with a gradient that reads images once; of float32 or bfloat16."""
    return normalized(x, weight, bias)


def _forward(x: Array, weight: Array, bias: Array | None) -> tuple[Array, Any]:
    return normalized(x, weight, bias), (x, weight, bias)


@jax.jit
def _backward(saved: Any, grad: Array) -> tuple[Array, Array, Array | None]:
    x, weight, bias = saved
    channels = x.shape[-1]
    pixels = x.size // channels
    lanes = pl.next_power_of_2(channels)
    rows = max(1, _ELEMENTS // lanes)
    steps = pl.cdiv(pixels, rows * _PARTS)
    parts = pl.cdiv(pixels, rows * steps)
    centered = bias is not None

    def body(x: Any, grad: Any, weight: Any, x_grad: Any, sums: Any) -> None:
        part = pl.program_id(0)
        lane = jnp.arange(lanes)
        inside = lane < channels
        factor = plgpu.load(weight.at[lane], mask=inside, other=0)[None]

        def mean(value: Array) -> Array:
            return jnp.sum(value, axis=1, keepdims=True) / channels

        def step(index: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            pixel = ((part * steps + index) * rows + jnp.arange(rows))[:, None]
            place, mask = (pixel, lane[None]), (pixel < pixels) & inside[None]
            value, given = (
                plgpu.load(each.at[place], mask=mask, other=0).astype(jnp.float32)
                for each in (x, grad)
            )
            off_mean = jnp.where(mask, value - mean(value), 0)
            scale = lax.rsqrt(mean(off_mean * off_mean) + EPSILON)
            scaled = (off_mean if centered else value) * scale
            wanted = given * factor
            along = mean(wanted * scaled)
            out = scale * (wanted - off_mean * scale * along)
            if centered:
                out -= scale * mean(wanted)
            plgpu.store(x_grad.at[place], out.astype(x_grad.dtype), mask=mask)
            return sums[0] + jnp.sum(given * scaled, axis=0), sums[1] + jnp.sum(given, axis=0)

        zeros = jnp.zeros(lanes)
        for row, total in enumerate(lax.fori_loop(0, steps, step, (zeros, zeros))):
            plgpu.store(sums.at[part, jnp.int32(row), lane], total, mask=inside)

    x_grad, sums = pl.pallas_call(
        body,
        out_shape=[
            jax.ShapeDtypeStruct((pixels, channels), x.dtype),
            jax.ShapeDtypeStruct((parts, 2, channels), jnp.float32),
        ],
        grid=(parts,),
        compiler_params=_OPTIONS,
        name="layer_norm_grad",
    )(x.reshape(pixels, channels), grad.reshape(pixels, channels), weight.astype(jnp.float32))
    weight_grad, bias_grad = jnp.sum(sums, axis=0)
    grads = x_grad.reshape(x.shape), weight_grad.astype(weight.dtype)
    return *grads, None if bias is None else bias_grad.astype(bias.dtype)


with_gradient.defvjp(_forward, _backward)

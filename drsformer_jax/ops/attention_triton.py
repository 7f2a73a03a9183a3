"""Sums of queries and keys as kernels for GPUs: Pallas, compiled by Triton.

A program multiplies the queries of a head with its keys, for some pixels of an image, as they lie
in memory; XLA would copy the heads apart first. The backward pass is one kernel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from drsformer_jax.ops.linear import precision_of
from drsformer_jax.types import Array, Bool, Float

_PIXELS = 64
"""Pixels that are multiplied together."""
_STEPS = 32
"""How often a program does that."""
_OPTIONS = plgpu.CompilerParams(num_warps=8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def head_sums(
    both: Float[Array, "b h w _"], heads: int, counted: Bool[Array, "b h w 1"] | None = None
) -> tuple[Float[Array, "b m d d"], Float[Array, "b _"]]:
    """Products of each query channel with each key channel of its head, and all squares.

    Args:
        both: queries, then keys, head by head; float32 or bfloat16.
        heads: number m of heads.
        counted: True at the pixels to sum over; default: all.

    Returns:
        The products and the squares, summed over the pixels in float32. Their gradient is rounded
        to the dtype of the images before it is multiplied by them.
    """
    return _sums(both, heads, counted)


@functools.partial(jax.jit, static_argnums=1)
def _sums(both: Array, heads: int, counted: Array | None) -> tuple[Array, Array]:
    pixels = _Pixels.of(both, heads)
    parts = pl.cdiv(pixels.count, _PIXELS * _STEPS)

    def body(x: Any, *rest: Any) -> None:
        *masks, gram, squares = rest
        image, head, part = (pl.program_id(axis) for axis in range(3))

        def step(index: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            first = (part * _STEPS + index) * _PIXELS
            query, key = (pixels.load(x, image, first, head + heads * n, *masks) for n in range(2))
            product = _product(query, key, 0, 0)
            squared = (jnp.sum(value.astype(jnp.float32) ** 2, axis=0) for value in (query, key))
            return tuple(map(jnp.add, sums, (product, *squared)))

        zeros = jnp.zeros((pixels.padded, pixels.padded)), *[jnp.zeros(pixels.padded)] * 2
        product, *totals = lax.fori_loop(0, _STEPS, step, zeros)
        lanes, inside = pixels.lanes, pixels.inside
        place = (part, image, head, lanes[:, None], lanes[None])
        plgpu.store(gram.at[place], product, mask=inside[:, None] & inside[None])
        for number, total in enumerate(totals):
            channels = pixels.channels(head + heads * number)
            plgpu.store(squares.at[part, image, channels], total, mask=inside)

    batch = both.shape[0]
    shapes = (parts, batch, heads, pixels.depth, pixels.depth), (parts, batch, both.shape[-1])
    sums = pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(batch, heads, parts),
        compiler_params=_OPTIONS,
        name="head_sums",
    )(*pixels.images(both, counted))
    gram, squares = (jnp.sum(each, axis=0) for each in sums)
    return gram, squares


def _forward(both: Array, heads: int, counted: Array | None) -> tuple[Any, Any]:
    return _sums(both, heads, counted), (both, counted)


@functools.partial(jax.jit, static_argnums=0)
def _backward(heads: int, saved: Any, grads: tuple[Array, Array]) -> tuple[Array, None]:
    both, counted = saved
    pixels = _Pixels.of(both, heads)

    def body(gram: Any, squares: Any, x: Any, *rest: Any) -> None:
        *masks, out = rest
        image, head, part = (pl.program_id(axis) for axis in range(3))
        lanes, inside = pixels.lanes, pixels.inside
        place = (image, head, lanes[:, None], lanes[None])
        product = plgpu.load(gram.at[place], mask=inside[:, None] & inside[None], other=0)
        product = product.astype(x.dtype)
        first = part * _PIXELS
        values = [pixels.load(x, image, first, head + heads * n, *masks) for n in range(2)]
        for number, (own, other) in enumerate(zip(values, values[::-1], strict=True)):
            channels = pixels.channels(head + heads * number)
            twice = 2 * plgpu.load(squares.at[image, channels], mask=inside, other=0)
            # A query's gradient reads rows of the products' gradient, a key's its columns.
            mixed = _product(other, product, 1, 1 - number)
            pixels.store(out, image, first, channels, mixed + own.astype(jnp.float32) * twice)

    batch = both.shape[0]
    grad = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((batch, pixels.count, both.shape[-1]), both.dtype),
        grid=(batch, heads, pl.cdiv(pixels.count, _PIXELS)),
        compiler_params=_OPTIONS,
        name="head_sums_grad",
    )(*grads, *pixels.images(both, counted))
    return grad.reshape(both.shape), None


head_sums.defvjp(_forward, _backward)


def _product(first: Array, second: Array, axis: int, other: int) -> Array:
    """The product of two matrices, summed in float32 over these axes."""
    return lax.dot_general(
        first,
        second,
        (((axis,), (other,)), ((), ())),
        precision=precision_of(first),
        preferred_element_type=jnp.float32,
    )


@dataclass(frozen=True)
class _Pixels:
    """Pixels and channels of a head that are multiplied together."""

    count: int
    """Pixels of an image."""
    depth: int
    """Channels of a head."""

    @classmethod
    def of(cls, both: Array, heads: int) -> _Pixels:
        _, height, width, channels = both.shape
        return cls(height * width, channels // (2 * heads))

    @property
    def padded(self) -> int:
        """Channels as tensor cores take them."""
        return max(16, pl.next_power_of_2(self.depth))

    @property
    def lanes(self) -> Array:
        return jnp.arange(self.padded)

    @property
    def inside(self) -> Array:
        return self.lanes < self.depth

    def channels(self, group: Array) -> Array:
        """Those of a group: a head's queries or keys."""
        return group * self.depth + self.lanes

    def images(self, both: Array, counted: Array | None) -> list[Array]:
        """What `load` reads: pixels one after another, and where not all count, which do."""
        shape = both.shape[0], self.count, -1
        images = [both.reshape(shape)]
        if counted is not None:
            counted = jnp.broadcast_to(counted, (*both.shape[:3], 1))
            images.append(counted.astype(both.dtype).reshape(shape[:2]))
        return images

    def load(self, x: Any, image: Array, first: Array, group: Array, counted: Any = None) -> Array:
        """Pixels from the first one on, of a group of channels; zeros beyond, and not counted."""
        place, mask = self._place(image, first, self.channels(group))
        value = plgpu.load(x.at[place], mask=mask, other=0)
        if counted is None:
            return value
        places = first + jnp.arange(_PIXELS)
        counts = plgpu.load(counted.at[image, places], mask=places < self.count, other=0) > 0
        return jnp.where(counts[:, None], value, 0)

    def store(self, out: Any, image: Array, first: Array, channels: Array, value: Array) -> None:
        """Writes pixels from the first one on."""
        place, mask = self._place(image, first, channels)
        plgpu.store(out.at[place], value.astype(out.dtype), mask=mask)

    def _place(self, image: Array, first: Array, channels: Array) -> tuple[Any, Array]:
        places = (first + jnp.arange(_PIXELS))[:, None]
        return (image, places, channels[None]), (places < self.count) & self.inside[None]

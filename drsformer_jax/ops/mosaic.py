"""Depthwise convolutions as kernels for TPUs: Pallas, compiled by Mosaic.

A kernel reads blocks of some rows and 128 channels, one on each lane of the vector unit, with the
rows around them, into the core's own memory, where it widens them to float32 (`mosaic_strips`), so
that every tap is a load at another place. Sums stay in registers.

What limits them is the vector unit. Larger kernels are Winograd's filters along the columns, of two
thirds of the operations; for 3x3 it costs more to write what is multiplied than they would save.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from drsformer_jax.ops.implementations import kernels_take
from drsformer_jax.ops.mosaic_strips import EDGE, LANES, MEMORY, Strips, Values, for_columns
from drsformer_jax.types import Array, Float

_SUMS = 56
"""Sums of a gradient in registers at the same time."""
_LIMIT = 60 * 2**20
"""Bytes that the compiler may use: cores of v5p have 64 MiB, of v5e and v6e 128, of v4 only 16."""


def supports(
    shape: tuple[int, ...], dtype: jnp.dtype, size: int, dilation: int = 1, terms: int = 1
) -> bool:
    """Whether these functions can compute images of this shape and type, and their gradients."""
    strips = Strips.of(shape, dtype, shape[-1] // terms, size, dilation, 2)
    fits = strips.halo <= EDGE and strips.bytes(dtype, 2) <= MEMORY
    return fits and kernels_take(dtype)


# Compiled functions are traced once a shape.
@functools.partial(jax.jit, static_argnames=("dilation", "terms"))
def correlate(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k o"], dilation: int = 1, terms: int = 1
) -> Float[Array, "b h w _"]:
    """Depthwise convolution, stride 1, zeros beyond the border; sums are in float32.

    With 5x5 and 7x7 kernels rounding errors are relative to the largest value that rows computed
    together read, and what is not finite spreads to all of these rows.

    Args:
        x: images. With fewer channels than the kernel, where `terms` is 1, each channel is read
            several times: the kernel's channel c reads channel c modulo i.
        kernel: k odd.
        dilation: distance of neighboring taps, in pixels.
        terms: 2 adds the results of the second half of the channels to those of the first one;
            where `LANES` does not divide a half, both are rounded first.
    """
    batch, height, width, inputs = x.shape
    size, _, outputs = kernel.shape
    channels = outputs // terms
    if inputs < outputs and inputs % LANES:  # A block reads whole blocks.
        return correlate(_repeated(x, outputs), kernel, dilation, terms)
    if terms > 1 and channels % LANES:
        first, second = jnp.split(correlate(x, kernel, dilation), terms, axis=-1)
        return first + second
    strips = Strips.of(x.shape, x.dtype, channels, size, dilation, terms)
    blocks, read = pl.cdiv(channels, LANES), pl.cdiv(inputs, LANES)

    def block_of(term: int) -> Callable[..., tuple[Any, Any, Any]]:
        return lambda b, c, s: (b, s, (term * blocks + c) % read)

    def taps_of(term: int) -> Callable[..., tuple[Any, Any]]:
        return lambda b, c, s: (0, term * blocks + c)

    taps = strips.packed(jnp.concatenate(strips.filter.factors(list(kernel.astype(jnp.float32)))))
    views = [view for term in range(terms) for view in strips.views(block_of(term))]
    kernels = [pl.BlockSpec((len(taps), LANES), taps_of(term)) for term in range(terms)]
    return pl.pallas_call(
        functools.partial(_correlate_block, strips, terms),
        out_shape=jax.ShapeDtypeStruct((batch, height, width, channels), x.dtype),
        grid=(batch, blocks, strips.steps),
        in_specs=[*views, *kernels],
        out_specs=strips.spec(lambda b, c, s: (b, s, c)),
        scratch_shapes=[strips.scratch(strips.halo), strips.changed()] * terms,
        compiler_params=_options("parallel", "parallel", "arbitrary"),
        name=f"correlate{size}x{size}",
    )(*[x] * len(views), *[taps] * terms)


def _correlate_block(strips: Strips, terms: int, *refs: Any) -> None:
    """Computes a block: views of each term, taps of each term, the result, scratch of each term."""
    kernels, out, scratch = refs[3 * terms : 4 * terms], refs[4 * terms], refs[4 * terms + 1 :]
    for term in range(terms):
        strips.load(refs[3 * term : 3 * term + 3], scratch[2 * term])

    def rows(top: Array) -> None:
        read = [strips.values(*each, top) for each in zip(scratch[::2], scratch[1::2], strict=True)]

        def columns(left: Array | int, count: int) -> None:
            _add_taps(strips, read, kernels, out, top, left, count)

        for_columns(strips.width, 8, columns)

    strips.for_rows(rows)


def _add_taps(
    strips: Strips,
    values: Sequence[Values],
    kernels: Sequence[Any],
    out: Any,
    top: Array,
    left: Array | int,
    columns: int,
) -> None:
    """Computes `columns` of the rows that are computed together, from (top, left)."""
    size, dilation = strips.filter.taps, strips.dilation
    sums: list[Any] = [0] * strips.filter.sums
    for read, taps in zip(values, kernels, strict=True):
        for dx in range(size):
            place = pl.ds(left + (EDGE - strips.halo + dilation * dx), columns)
            for number, products in itertools.groupby(strips.filter.products, lambda each: each[0]):
                value = read(number, place)
                for _, factor, total in products:
                    tap = factor * size + dx
                    sums[total] += value * taps[tap : tap + 1]
    for number, result in enumerate(strips.filter.results(sums)):
        for half, lanes in enumerate(strips.lanes):
            row = half * strips.rows + top + dilation * number
            out[0, row, pl.ds(left, columns)] = result[:, lanes].astype(out.dtype)


@functools.partial(jax.jit, static_argnames=("size", "dilation"))
def kernel_grad(
    x: Float[Array, "b h w c"], grad: Float[Array, "b h w o"], size: int, dilation: int = 1
) -> Float[Array, "k k c"]:
    """The gradient of the kernel of `correlate`, in float32.

    Args:
        x: images.
        grad: gradient of the result; with fewer channels than x, channel c modulo o belongs to x's
            channel c.
        size: k.
        dilation: distance of neighboring taps, in pixels.
    """
    batch, _, _, channels = x.shape
    if grad.shape[-1] < channels and grad.shape[-1] % LANES:
        grad = _repeated(grad, channels)
    strips = Strips.of(x.shape, x.dtype, channels, size, dilation, 2)
    taps = strips.filter.transposed()
    blocks, read = pl.cdiv(channels, LANES), pl.cdiv(grad.shape[-1], LANES)
    summed = pl.pallas_call(
        functools.partial(_kernel_grad_block, strips),
        out_shape=jax.ShapeDtypeStruct((taps.sums * size, 8, blocks * LANES), jnp.float32),
        grid=(blocks, batch, strips.steps),
        in_specs=[
            *strips.views(lambda c, b, s: (b, s, c)),
            strips.spec(lambda c, b, s: (b, s, c % read)),
        ],
        out_specs=pl.BlockSpec((taps.sums * size, 8, LANES), lambda c, b, s: (0, 0, c)),
        scratch_shapes=[
            *(strips.scratch(strips.halo), strips.changed()),
            *(strips.scratch(0), strips.changed()),
        ],
        compiler_params=_options("parallel", "arbitrary", "arbitrary"),
        name=f"kernel_grad{size}x{size}",
    )(x, x, x, grad)
    sums = strips.added(jnp.sum(summed, axis=1)).reshape(taps.sums, size, channels)
    return jnp.stack(taps.results(list(sums)))


def _kernel_grad_block(strips: Strips, *refs: Any) -> None:
    """Adds the sums of a block: views of the images, the gradient, the sums, scratch of both."""
    *views, grads, out, strip, changed, weights, changed_weights = refs
    strips.load(views, strip)
    strips.load([None, grads, None], weights)
    taps = strips.filter.transposed()
    size, dilation = strips.filter.taps, strips.dilation

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _begin() -> None:
        out[...] = jnp.zeros_like(out)

    def rows(top: Array) -> None:
        values = strips.values(strip, changed, top)
        factors = strips.factors(weights, changed_weights, top)

        def add(some: range) -> None:
            """Adds the rows to the sums of some distances of columns."""

            def columns(column: Array, sums: dict[int, Array]) -> dict[int, Array]:
                left = pl.multiple_of(column * 8, 8) + EDGE
                sums = dict(sums)
                for number, factor, total in taps.products:
                    weight = factors(factor, pl.ds(left, 8))
                    for dx in some:
                        place = pl.ds(left - strips.halo + dilation * dx, 8)
                        sums[total * size + dx] += values(number, place) * weight
                return sums

            places = [total * size + dx for total in range(taps.sums) for dx in some]
            count = pl.cdiv(strips.width, 8)
            sums = {place: out[place] for place in places}
            sums = lax.fori_loop(0, count, columns, sums, unroll=math.gcd(count, 8))
            for place in places:
                out[place] = sums[place]

        at_once = max(1, _SUMS // taps.sums)
        for first in range(0, size, at_once):
            add(range(first, min(first + at_once, size)))

    strips.for_rows(rows)


def _options(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    """Which axes of the grid cores may share."""
    return pltpu.CompilerParams(vmem_limit_bytes=_LIMIT, dimension_semantics=semantics)


def _repeated(x: Array, channels: int) -> Array:
    return jnp.concatenate([x] * (channels // x.shape[-1]), axis=-1)

"""Depthwise convolutions as kernels for TPUs: Pallas, compiled by Mosaic.

A kernel reads blocks of some rows and 128 channels, one on each lane of the vector unit, with the
rows around them, into the core's own memory. There it widens them to float32 once, between columns
of zeros, so that every tap is a load at another place. Sums stay in registers. Where an image has
at most 64 channels, the upper and the lower half of a block share the lanes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from drsformer_jax.ops.implementations import kernels_take
from drsformer_jax.types import Array, Float

LANES = 128
"""Channels of a block."""
_EDGE = 8
"""Columns of zeros on each side of a strip: whole tiles, and at least the halo."""
_ROWS = 64
"""Most rows of a strip."""
_MEMORY = 48 * 2**20
"""Bytes of the core's memory that strips and blocks may have."""
_GROUP = 4
"""Rows that are computed together: they share loads."""
_COLUMNS = 16
"""Columns that are computed together: a tile of bfloat16."""
_SUMS = 28
"""Taps whose sums are in registers at the same time."""
_LIMIT = 60 * 2**20
"""Bytes that the compiler may use: cores of v5p have 64 MiB, of v5e and v6e 128, of v4 only 16."""


def supports(
    shape: tuple[int, ...], dtype: jnp.dtype, size: int, dilation: int = 1, terms: int = 1
) -> bool:
    """Whether these functions can compute images of this shape and type, and their gradients."""
    halo = dilation * (size // 2)
    strips = _Strips.of(shape, dtype, shape[-1] // terms, halo, 2, _GROUP * dilation)
    fits = halo <= _EDGE and strips.bytes(dtype, 2) <= _MEMORY
    return fits and kernels_take(dtype)


# Compiled functions are traced once a shape.
@functools.partial(jax.jit, static_argnames=("dilation", "terms"))
def correlate(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k o"], dilation: int = 1, terms: int = 1
) -> Float[Array, "b h w _"]:
    """Depthwise convolution, stride 1, zeros beyond the border; sums are in float32.

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
    channels, halo = outputs // terms, dilation * (size // 2)
    if inputs < outputs and inputs % LANES:  # A block reads whole blocks.
        return correlate(_repeated(x, outputs), kernel, dilation, terms)
    if terms > 1 and channels % LANES:
        first, second = jnp.split(correlate(x, kernel, dilation), terms, axis=-1)
        return first + second
    strips = _Strips.of(x.shape, x.dtype, channels, halo, terms, _GROUP * dilation)
    blocks, read = pl.cdiv(channels, LANES), pl.cdiv(inputs, LANES)

    def block_of(term: int) -> Callable[..., tuple[Any, Any, Any]]:
        return lambda b, c, s: (b, s, (term * blocks + c) % read)

    def taps_of(term: int) -> Callable[..., tuple[Any, Any]]:
        return lambda b, c, s: (0, term * blocks + c)

    taps = strips.packed(kernel.astype(jnp.float32).reshape(size * size, outputs))
    views = [view for term in range(terms) for view in strips.views(block_of(term))]
    kernels = [pl.BlockSpec((size * size, LANES), taps_of(term)) for term in range(terms)]
    return pl.pallas_call(
        functools.partial(_correlate_block, strips, size, dilation, terms),
        out_shape=jax.ShapeDtypeStruct((batch, height, width, channels), x.dtype),
        grid=(batch, blocks, strips.steps),
        in_specs=[*views, *kernels],
        out_specs=strips.spec(lambda b, c, s: (b, s, c)),
        scratch_shapes=[strips.scratch(halo)] * terms,
        compiler_params=_options("parallel", "parallel", "arbitrary"),
        name=f"correlate{size}x{size}",
    )(*[x] * len(views), *[taps] * terms)


def _correlate_block(strips: _Strips, size: int, dilation: int, terms: int, *refs: Any) -> None:
    """Computes a block: views of each term, taps of each term, the result, strips of each term."""
    kernels, out, wide = refs[3 * terms : 4 * terms], refs[4 * terms], refs[4 * terms + 1 :]
    for term, strip in enumerate(wide):
        strips.load(refs[3 * term : 3 * term + 3], strip)
    whole, rest = divmod(strips.width, _COLUMNS)

    def rows(index: Array, _: None) -> None:
        top = lax.div(index, dilation) * (_GROUP * dilation) + lax.rem(index, dilation)
        add = functools.partial(_add_taps, strips, size, dilation, wide, kernels, out, top)

        def columns(column: Array, _: None) -> None:
            add(pl.multiple_of(column * _COLUMNS, _COLUMNS), _COLUMNS)

        lax.fori_loop(0, whole, columns, None, unroll=math.gcd(whole, 8))
        if rest:
            add(whole * _COLUMNS, rest)

    lax.fori_loop(0, strips.rows // _GROUP, rows, None)


def _add_taps(
    strips: _Strips,
    size: int,
    dilation: int,
    wide: Sequence[Any],
    kernels: Sequence[Any],
    out: Any,
    top: Array,
    left: Array | int,
    columns: int,
) -> None:
    """Computes `columns` of `_GROUP` rows, which are as far apart as taps, from (top, left)."""
    sums: list[Any] = [0] * _GROUP
    for strip, taps in zip(wide, kernels, strict=True):
        for dx, row in itertools.product(range(size), range(_GROUP + size - 1)):
            start = left + (_EDGE - strips.halo + dilation * dx)
            value = strip[top + dilation * row, pl.ds(start, columns)]
            for dy in range(max(0, row - _GROUP + 1), min(size, row + 1)):
                tap = dy * size + dx
                sums[row - dy] += value * taps[tap : tap + 1]
    for row, total in enumerate(sums):
        for half, lanes in enumerate(strips.lanes):
            place = half * strips.rows + top + dilation * row
            out[0, place, pl.ds(left, columns)] = total[:, lanes].astype(out.dtype)


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
    halo = dilation * (size // 2)
    if grad.shape[-1] < channels and grad.shape[-1] % LANES:
        grad = _repeated(grad, channels)
    strips = _Strips.of(x.shape, x.dtype, channels, halo, 2, 8)
    blocks, read = pl.cdiv(channels, LANES), pl.cdiv(grad.shape[-1], LANES)
    summed = pl.pallas_call(
        functools.partial(_kernel_grad_block, strips, size, dilation),
        out_shape=jax.ShapeDtypeStruct((size * size, 8, blocks * LANES), jnp.float32),
        grid=(blocks, batch, strips.steps),
        in_specs=[
            *strips.views(lambda c, b, s: (b, s, c)),
            strips.spec(lambda c, b, s: (b, s, c % read)),
        ],
        out_specs=pl.BlockSpec((size * size, 8, LANES), lambda c, b, s: (0, 0, c)),
        scratch_shapes=[strips.scratch(halo), strips.scratch(0)],
        compiler_params=_options("parallel", "arbitrary", "arbitrary"),
        name=f"kernel_grad{size}x{size}",
    )(x, x, x, grad)
    return strips.added(jnp.sum(summed, axis=1)).reshape(size, size, channels)


def _kernel_grad_block(strips: _Strips, size: int, dilation: int, *refs: Any) -> None:
    """Adds the sums of a block: views of the images, the gradient, the sums, strips of both."""
    *views, grads, out, strip, weights = refs
    strips.load(views, strip)
    strips.load([None, grads, None], weights)
    count = pl.cdiv(strips.width, 8)

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _begin() -> None:
        out[...] = jnp.zeros_like(out)

    def add(taps: list[tuple[int, int]], row: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        """Adds a row to the sums of some taps."""

        def columns(column: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            left = pl.multiple_of(column * 8, 8) + _EDGE
            weight = weights[row, pl.ds(left, 8)]
            return tuple(
                total
                + strip[row + dilation * dy, pl.ds(left - strips.halo + dilation * dx, 8)] * weight
                for total, (dy, dx) in zip(sums, taps, strict=True)
            )

        return lax.fori_loop(0, count, columns, sums, unroll=math.gcd(count, 8))

    taps = list(itertools.product(range(size), range(size)))
    at_once = max(1, _SUMS // size) * size  # Whole rows of taps.
    for first in range(0, len(taps), at_once):
        some = range(first, min(first + at_once, len(taps)))
        step = functools.partial(add, [taps[tap] for tap in some])
        sums = lax.fori_loop(0, strips.rows, step, tuple(out[tap] for tap in some))
        for tap, total in zip(some, sums, strict=True):
            out[tap] = total


def _options(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    """Which axes of the grid cores may share."""
    return pltpu.CompilerParams(vmem_limit_bytes=_LIMIT, dimension_semantics=semantics)


def _repeated(x: Array, channels: int) -> Array:
    return jnp.concatenate([x] * (channels // x.shape[-1]), axis=-1)


@dataclass(frozen=True)
class _Strips:
    """How images are cut into blocks, and blocks into strips that share the lanes."""

    height: int
    width: int
    channels: int
    """Of the images, at most half of the lanes if there are two strips, or more."""
    halo: int
    rows: int
    """Of a strip."""
    view: int
    """Rows of the blocks beside a block that have its halo; a divisor of its rows."""

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        dtype: jnp.dtype,
        channels: int,
        halo: int,
        copies: int,
        unit: int,
    ) -> _Strips:
        """Chooses the rows: a multiple of `unit`, so that `copies` strips fit into memory."""
        _, height, width, _ = shape
        view = 1 << max(0, halo - 1).bit_length()
        unit = math.lcm(view, unit)
        least = cls(height, width, channels, halo, unit, view)
        needed = pl.cdiv(height, len(least.lanes))
        rows = min(max(_ROWS, unit), needed + unit - 1) // unit * unit
        while rows > unit:
            strips = dataclasses.replace(least, rows=rows)
            if strips.bytes(dtype, copies) <= _MEMORY:
                return strips
            rows -= unit
        return least

    def bytes(self, dtype: jnp.dtype, copies: int) -> int:
        """Bytes of so many strips, and of the blocks: one is computed, the next one loaded."""
        strips = 4 * copies * (self.rows + 2 * self.halo) * (self.width + 3 * _EDGE)
        rows = (copies + 1) * self.block + 2 * copies * self.view
        return LANES * (strips + 2 * jnp.dtype(dtype).itemsize * rows * self.width)

    @property
    def lanes(self) -> list[slice]:
        """Lanes of each strip of a block, one below the other."""
        half = LANES // 2
        if self.channels > half:
            return [slice(0, LANES)]
        return [slice(0, self.channels), slice(half, half + self.channels)]

    @property
    def block(self) -> int:
        """Rows of a block."""
        return self.rows * len(self.lanes)

    @property
    def steps(self) -> int:
        """Blocks of an image, one below the other."""
        return pl.cdiv(self.height, self.block)

    def packed(self, taps: Array) -> Array:
        """Rows of values by channel, for all lanes."""
        if len(self.lanes) == 1:
            return taps
        half = jnp.pad(taps, ((0, 0), (0, LANES // 2 - self.channels)))
        return jnp.concatenate([half, half], axis=-1)

    def added(self, sums: Array) -> Array:
        """Sums by channel of those of all lanes."""
        if len(self.lanes) == 1:
            return sums[:, : self.channels]
        first, second = self.lanes
        return sums[:, first] + sums[:, second]

    def spec(
        self, place: Callable[..., tuple[Any, Any, Any]], rows: int | None = None
    ) -> pl.BlockSpec:
        """A block of rows; `place` gives image, block of rows and block of channels."""
        shape = (1, rows or self.block, self.width, self.lanes[0].stop)

        def index(*ids: Array) -> tuple[Any, ...]:
            image, row, channel = place(*ids)
            return image, row, 0, channel

        return pl.BlockSpec(shape, index)

    def views(self, place: Callable[..., tuple[Any, Any, Any]]) -> list[pl.BlockSpec]:
        """The block with the halo above a block, the block, and the one with the halo below."""
        ratio = self.block // self.view
        last = pl.cdiv(self.height, self.view) - 1

        def above(*ids: Array) -> tuple[Any, Any, Any]:
            image, step, channel = place(*ids)
            return image, jnp.maximum(step * ratio - 1, 0), channel

        def below(*ids: Array) -> tuple[Any, Any, Any]:
            image, step, channel = place(*ids)
            return image, jnp.minimum((step + 1) * ratio, last), channel

        return [self.spec(above, self.view), self.spec(place), self.spec(below, self.view)]

    def scratch(self, halo: int) -> Any:
        """Strips in float32, with their halo."""
        return pltpu.VMEM((self.rows + 2 * halo, self.width + 3 * _EDGE, LANES), jnp.float32)

    def load(self, views: Sequence[Any], wide: Any) -> None:
        """Fills strips in float32: zeros beyond the image.

        Args:
            views: blocks above, at and below this place; the first and the last are None where the
                strips have no halo.
            wide: the strips.
        """
        top, middle, bottom = views
        halo = 0 if top is None else self.halo
        image = slice(_EDGE, _EDGE + self.width)
        step = pl.program_id(2)

        @pl.when(step == 0)
        def _zero_sides() -> None:
            for side in (slice(0, _EDGE), slice(_EDGE + self.width, wide.shape[1])):
                zeros = (wide.shape[0], side.stop - side.start, LANES)
                wide[:, side] = jnp.zeros(zeros, jnp.float32)

        for half, lanes in enumerate(self.lanes):
            first = half * self.rows - halo
            start, end = max(first, 0), min(first + wide.shape[0], self.block)
            inside = middle[0, start:end].astype(jnp.float32)
            wide[start - first : end - first, image, lanes] = inside
            if first < 0:
                above = top[0, self.view - halo :].astype(jnp.float32)
                wide[:halo, image, lanes] = jnp.where(step > 0, above, 0)
            if end - first < wide.shape[0]:
                wide[end - first :, image, lanes] = bottom[0, :halo].astype(jnp.float32)
            # Blocks have any values beyond the array. It ends in the last of them, or in the halo
            # of the one before.
            for last in range(max(0, self.steps - 2), self.steps):
                beyond = max(0, self.height - last * self.block - first)
                if beyond < wide.shape[0]:

                    @pl.when(step == last)
                    def _zero_below(beyond: int = beyond, lanes: slice = lanes) -> None:
                        zeros = (wide.shape[0] - beyond, self.width, lanes.stop - lanes.start)
                        wide[beyond:, image, lanes] = jnp.zeros(zeros, jnp.float32)

"""Depthwise convolutions as kernels for GPUs: Pallas, compiled by Triton.

A program computes some columns and channels of a band of rows. It passes once over the rows that
the band reads. Each row is loaded at every shift, and added to the sums of all rows that it is a
tap of, which stay in registers. Sums are in float32. Rows of a band are as far apart as taps.

Since 0.11 JAX calls this backend deprecated, and its successor, Mosaic GPU, experimental.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from drsformer_jax.types import Array, Float

_ROWS = 32
"""Rows of a band."""
_OUTPUTS = 1024
"""Columns times channels of a program: eight for each of its threads."""
_SUMS = 256
"""The same where a program keeps a sum a tap."""
_OPTIONS = plgpu.CompilerParams(num_warps=4)


def supports(
    shape: tuple[int, ...], dtype: jnp.dtype, size: int, dilation: int = 1, terms: int = 1
) -> bool:
    """Whether these functions can compute images of this shape and type, and their gradients."""
    del shape, size, dilation, terms
    return dtype in (jnp.float32, jnp.bfloat16)


# Compiled functions are traced once a shape.
@functools.partial(jax.jit, static_argnames=("dilation", "terms"))
def correlate(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k o"], dilation: int = 1, terms: int = 1
) -> Float[Array, "b h w _"]:
    """`mosaic.correlate` on GPUs; all sums are rounded once."""
    batch, height, width, inputs = x.shape
    size, _, outputs = kernel.shape
    channels, halo = outputs // terms, dilation * (size // 2)
    tiles = _Tiles.of(height, width, min(inputs, channels), dilation, _OUTPUTS)

    def body(x: Any, kernel: Any, out: Any) -> None:
        here = tiles.here()

        def row(index: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            """Adds row `index` of those that the band reads; writes the row that is complete."""
            new = list(sums)
            for term, dx in itertools.product(range(terms), range(size)):
                shift = dilation * index - halo, dilation * dx - halo
                value = here.load(x, *shift, term)
                for dy in range(size):
                    tap = here.channel_values(kernel, dy * size + dx, here.repeat + term)
                    new[size - 1 - dy] += value * tap
            done = index - (size - 1)
            here.store(out, dilation * done, new[0], here.repeat, done >= 0)
            return (*new[1:], jnp.zeros_like(new[0]))

        lax.fori_loop(0, tiles.rows + size - 1, row, (jnp.zeros(tiles.shape),) * size)

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((batch, height, width, channels), x.dtype),
        grid=tiles.grid(batch, channels),
        compiler_params=_OPTIONS,
        name=f"correlate{size}x{size}",
    )(x, kernel.astype(jnp.float32).reshape(size * size, outputs))


@functools.partial(jax.jit, static_argnames=("size", "dilation"))
def kernel_grad(
    x: Float[Array, "b h w c"], grad: Float[Array, "b h w o"], size: int, dilation: int = 1
) -> Float[Array, "k k c"]:
    """`mosaic.kernel_grad` on GPUs."""
    batch, height, width, channels = x.shape
    halo = dilation * (size // 2)
    tiles = _Tiles.of(height, width, grad.shape[-1], dilation, _SUMS)

    def body(x: Any, grad: Any, out: Any) -> None:
        here = tiles.here()
        taps = list(itertools.product(range(size), range(size)))

        def row(index: Array, carry: Any) -> Any:
            """Adds row `index` of those that the band reads, times the gradients that read it."""
            grads, sums = carry
            # Of this row and those before, a gradient for each row of taps, the last one first.
            grads = (*grads[1:], here.load(grad, dilation * index, 0, 0, index < tiles.rows))
            values = [
                here.load(x, dilation * index - halo, dilation * dx - halo, here.repeat)
                for dx in range(size)
            ]
            added = (values[dx] * grads[size - 1 - dy] for dy, dx in taps)
            return grads, tuple(map(jnp.add, sums, added))

        zeros = jnp.zeros(tiles.shape)
        carry = (zeros,) * size, (zeros,) * size**2
        _, sums = lax.fori_loop(0, tiles.rows + size - 1, row, carry)
        for tap, total in enumerate(sums):
            here.store_sums(out, tap, jnp.sum(total, axis=0))

    summed = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((*tiles.parts(batch), size * size, channels), jnp.float32),
        grid=tiles.grid(batch, channels),
        compiler_params=_OPTIONS,
        name=f"kernel_grad{size}x{size}",
    )(x, grad)
    return jnp.sum(summed, axis=(0, 1, 2)).reshape(size, size, channels)


@dataclass(frozen=True)
class _Tiles:
    """How images are cut into what a program computes."""

    height: int
    width: int
    unit: int
    """Channels that are read and written side by side; there may be several such units."""
    dilation: int
    rows: int
    """Of a band."""
    shape: tuple[int, int]
    """Columns and channels."""

    @classmethod
    def of(cls, height: int, width: int, unit: int, dilation: int, elements: int) -> _Tiles:
        """Chooses rows and columns so that a program has so many elements a row."""
        channels = next((lanes for lanes in (64, 32, 16) if unit % lanes == 0), 32)
        columns = min(elements // channels, pl.next_power_of_2(width))
        rows = min(_ROWS, pl.cdiv(height, dilation))
        return cls(height, width, unit, dilation, rows, (columns, channels))

    @property
    def across(self) -> int:
        """Programs side by side in a band."""
        return pl.cdiv(self.width, self.shape[0])

    @property
    def blocks(self) -> int:
        """Programs for the channels of a unit."""
        return pl.cdiv(self.unit, self.shape[1])

    def parts(self, batch: int) -> tuple[int, int, int]:
        """Programs of one block of channels: of columns, of rows, and of images."""
        bands = pl.cdiv(self.height, self.rows * self.dilation) * self.dilation
        return self.across, bands, batch

    def grid(self, batch: int, channels: int) -> tuple[int, int, int]:
        """The programs, for images with so many channels."""
        across, bands, batch = self.parts(batch)
        return across * self.blocks * (channels // self.unit), bands, batch

    def here(self) -> _Here:
        """The place of the program that calls it."""
        number, band, image = (pl.program_id(axis) for axis in range(3))
        block, part = lax.div(number, self.across), lax.rem(number, self.across)
        first = lax.div(band, self.dilation) * (self.rows * self.dilation)
        return _Here(
            tiles=self,
            part=(part, band, image),
            row=first + lax.rem(band, self.dilation),
            column=part * self.shape[0],
            channel=lax.rem(block, self.blocks) * self.shape[1],
            repeat=lax.div(block, self.blocks),
        )


@dataclass(frozen=True)
class _Here:
    """The part of the images that a program computes."""

    tiles: _Tiles
    part: tuple[Array, Array, Array]
    row: Array
    column: Array
    channel: Array
    repeat: Array
    """Which unit of channels."""

    def load(
        self, x: Any, down: Array, right: int, unit: Array | int, where: Array | bool = True
    ) -> Array:
        """A row of the columns and channels in float32, moved; zeros beyond the image."""
        place, mask = self._place(self.row + down, self.column + right, unit, where)
        return plgpu.load(x.at[place], mask=mask, other=0).astype(jnp.float32)

    def store(self, out: Any, down: Array, value: Array, unit: Array | int, where: Array) -> None:
        """Writes a row of the columns and channels."""
        place, mask = self._place(self.row + down, self.column, unit, where)
        plgpu.store(out.at[place], value.astype(out.dtype), mask=mask)

    def channel_values(self, x: Any, row: int, unit: Array | int) -> Array:
        """Values of the channels, from a row of an array."""
        lanes, mask = self._lanes(unit)
        return plgpu.load(x.at[jnp.int32(row), lanes], mask=mask, other=0)

    def store_sums(self, out: Any, tap: int, value: Array) -> None:
        """Writes sums by channel."""
        lanes, mask = self._lanes(self.repeat)
        plgpu.store(out.at[(*self.part, jnp.int32(tap), lanes)], value, mask=mask)

    def _lanes(self, unit: Array | int) -> tuple[Array, Array]:
        channels = self.channel + jnp.arange(self.tiles.shape[1])
        return channels + unit * self.tiles.unit, channels < self.tiles.unit

    def _place(
        self, row: Array, column: Array, unit: Array | int, where: Array | bool
    ) -> tuple[tuple[Array, ...], Array]:
        columns = (column + jnp.arange(self.tiles.shape[0]))[:, None]
        lanes, mask = self._lanes(unit)
        mask = mask[None] & (columns >= 0) & (columns < self.tiles.width)
        mask &= where & (row >= 0) & (row < self.tiles.height)
        return (self.part[2], row, columns, lanes[None]), mask

"""Depthwise convolutions as kernels for GPUs: Pallas, compiled by Triton.

A program computes some columns and channels of a band of rows. It passes once over the rows that
the band reads. Each row is loaded at every shift, and added to the sums of all rows that it is a
tap of, which stay in registers. Sums are in float32. Rows of a band are as far apart as taps.

Since 0.11 JAX calls this backend deprecated, and its successor, Mosaic GPU, experimental.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from drsformer_jax.ops.implementations import kernels_take
from drsformer_jax.types import Array, Float

_ROWS = 32
"""Rows of a band."""
OUTPUTS = 1024
"""Columns times channels of a program: eight for each of its threads."""
SUMS = 256
"""The same where a program keeps a sum a tap."""
OPTIONS = plgpu.CompilerParams(num_warps=4)


def supports(
    shape: tuple[int, ...], dtype: jnp.dtype, size: int, dilation: int = 1, terms: int = 1
) -> bool:
    """Whether these functions can compute images of this shape and type, and their gradients."""
    del shape, size, dilation, terms
    return kernels_take(dtype)


# Compiled functions are traced once a shape.
@functools.partial(jax.jit, static_argnames=("dilation", "terms"))
def correlate(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k o"], dilation: int = 1, terms: int = 1
) -> Float[Array, "b h w _"]:
    """`mosaic.correlate` on GPUs; all sums are rounded once."""
    batch, height, width, inputs = x.shape
    size, _, outputs = kernel.shape
    channels = outputs // terms
    tiles = Tiles.of(height, width, min(inputs, channels), dilation, OUTPUTS)

    def body(x: Any, kernel: Any, out: Any) -> None:
        here = tiles.here()

        def term(number: int) -> Taps:
            taps = here.channels(here.repeat + number)
            return Taps(
                size,
                lambda down, right: here.load(x, down, right, here.channels(number)),
                lambda tap: here.load_row(kernel, tap, taps),
            )

        def store(down: Array, total: Array, where: Array) -> None:
            here.store(out, down, total, here.channels(here.repeat), where)

        add_taps(tiles, [term(number) for number in range(terms)], store)

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((batch, height, width, channels), x.dtype),
        grid=tiles.grid(batch, channels),
        compiler_params=OPTIONS,
        name=f"correlate{size}x{size}",
    )(x, kernel.astype(jnp.float32).reshape(size * size, outputs))


@functools.partial(jax.jit, static_argnames=("size", "dilation"))
def kernel_grad(
    x: Float[Array, "b h w c"], grad: Float[Array, "b h w o"], size: int, dilation: int = 1
) -> Float[Array, "k k c"]:
    """`mosaic.kernel_grad` on GPUs."""
    batch, height, width, channels = x.shape
    tiles = Tiles.of(height, width, grad.shape[-1], dilation, SUMS)

    def body(x: Any, grad: Any, out: Any) -> None:
        here = tiles.here()
        channels = here.channels(here.repeat)
        sum_taps(
            tiles,
            size,
            lambda down, right: here.load(x, down, right, channels),
            lambda down, where: here.load(grad, down, 0, here.channels(0), where),
            lambda tap, total: here.store_sums(out, tap, total, channels),
        )

    summed = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((*tiles.parts(batch), size * size, channels), jnp.float32),
        grid=tiles.grid(batch, channels),
        compiler_params=OPTIONS,
        name=f"kernel_grad{size}x{size}",
    )(x, grad)
    return jnp.sum(summed, axis=(0, 1, 2)).reshape(size, size, channels)


@dataclass(frozen=True)
class Taps:
    """The taps of one kernel on one image."""

    size: int
    load: Callable[[Array, int], Array]
    """Values of the image, so many rows and columns from those that are computed."""
    weights: Callable[[int], Array]
    """Of a tap, by channel; taps are numbered row by row."""


def add_taps(
    tiles: Tiles, terms: Sequence[Taps], store: Callable[[Array, Array, Array], None]
) -> None:
    """Computes the rows of a band: the sum over all taps of all terms.

    Args:
        tiles: of the program.
        terms: kernels with one center.
        store: called with a row below the band's first one, its sums, and whether it is a row.
    """
    size = max(term.size for term in terms)
    halo = size // 2

    def row(index: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        """Adds row `index` of those that the band reads; writes the row that is complete."""
        new = list(sums)
        for term in terms:
            edge = halo - term.size // 2
            for dx in range(term.size):
                left = tiles.dilation * (dx - term.size // 2)
                value = term.load(tiles.dilation * (index - halo), left)
                for dy in range(term.size):
                    new[size - 1 - edge - dy] += value * term.weights(dy * term.size + dx)
        done = index - (size - 1)
        store(tiles.dilation * done, new[0], done >= 0)
        return (*new[1:], jnp.zeros_like(new[0]))

    lax.fori_loop(0, tiles.rows + size - 1, row, (jnp.zeros(tiles.shape),) * size)


def sum_taps(
    tiles: Tiles,
    size: int,
    load: Callable[[Array, int], Array],
    load_grad: Callable[[Array, Array], Array],
    store: Callable[[int, Array], None],
) -> None:
    """Sums image times gradient over a band, for each tap of a kernel.

    Args:
        tiles: of the program.
        size: k.
        load: values of the image, so many rows and columns from those of the gradient.
        load_grad: values of the gradient so many rows below the band's first one; zeros unless the
            second argument holds.
        store: called with each tap's number and its sums by channel.
    """
    halo = size // 2
    taps = list(itertools.product(range(size), range(size)))

    def row(index: Array, carry: Any) -> Any:
        """Adds row `index` of those that the band reads, times the gradients that read it."""
        grads, sums = carry
        # Of this row and those before, a gradient for each row of taps, the last one first.
        grads = (*grads[1:], load_grad(tiles.dilation * index, index < tiles.rows))
        values = [
            load(tiles.dilation * (index - halo), tiles.dilation * (dx - halo))
            for dx in range(size)
        ]
        added = (values[dx] * grads[size - 1 - dy] for dy, dx in taps)
        return grads, tuple(map(jnp.add, sums, added))

    zeros = jnp.zeros(tiles.shape)
    carry = (zeros,) * size, (zeros,) * size**2
    _, sums = lax.fori_loop(0, tiles.rows + size - 1, row, carry)
    for tap, total in enumerate(sums):
        store(tap, jnp.sum(total, axis=0))


@dataclass(frozen=True)
class Tiles:
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
    def of(cls, height: int, width: int, unit: int, dilation: int, elements: int) -> Tiles:
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

    def here(self) -> Here:
        """The place of the program that calls it."""
        number, band, image = (pl.program_id(axis) for axis in range(3))
        block, part = lax.div(number, self.across), lax.rem(number, self.across)
        first = lax.div(band, self.dilation) * (self.rows * self.dilation)
        return Here(
            tiles=self,
            part=(part, band, image),
            row=first + lax.rem(band, self.dilation),
            column=part * self.shape[0],
            channel=lax.rem(block, self.blocks) * self.shape[1],
            repeat=lax.div(block, self.blocks),
        )


@dataclass(frozen=True)
class Here:
    """The part of the images that a program computes."""

    tiles: Tiles
    part: tuple[Array, Array, Array]
    row: Array
    column: Array
    channel: Array
    repeat: Array
    """Which unit of channels."""

    def load(
        self, x: Any, down: Array, right: int, channels: Array, where: Array | bool = True
    ) -> Array:
        """A row of the columns and channels in float32, moved; zeros beyond the image."""
        place, mask = self._place(self.row + down, self.column + right, channels, where)
        return plgpu.load(x.at[place], mask=mask, other=0).astype(jnp.float32)

    def store(self, out: Any, down: Array, value: Array, channels: Array, where: Array) -> None:
        """Writes a row of the columns and channels."""
        place, mask = self._place(self.row + down, self.column, channels, where)
        plgpu.store(out.at[place], value.astype(out.dtype), mask=mask)

    def load_row(self, x: Any, row: Array | int, channels: Array, other: int = 0) -> Array:
        """Values of the channels, from a row of an array; `other` beyond the unit."""
        return plgpu.load(x.at[jnp.int32(row), channels], mask=self._inside(), other=other)

    def store_sums(self, out: Any, tap: int, value: Array, channels: Array) -> None:
        """Writes sums by channel."""
        plgpu.store(out.at[(*self.part, jnp.int32(tap), channels)], value, mask=self._inside())

    def channels(self, unit: Array | int) -> Array:
        """The channels in a unit."""
        return self._lanes() + unit * self.tiles.unit

    def _lanes(self) -> Array:
        return self.channel + jnp.arange(self.tiles.shape[1])

    def _inside(self) -> Array:
        return self._lanes() < self.tiles.unit

    def _place(
        self, row: Array, column: Array, channels: Array, where: Array | bool
    ) -> tuple[tuple[Array, ...], Array]:
        columns = (column + jnp.arange(self.tiles.shape[0]))[:, None]
        mask = self._inside()[None] & (columns >= 0) & (columns < self.tiles.width)
        mask &= where & (row >= 0) & (row < self.tiles.height)
        return (self.part[2], row, columns, channels[None]), mask

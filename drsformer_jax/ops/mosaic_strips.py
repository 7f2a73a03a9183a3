"""What kernels for TPUs keep in the core's own memory.

A block of some rows and 128 channels, one on each lane of the vector unit, is widened to float32,
between columns of zeros and with the rows around it. Where an image has at most 64 channels, the
upper and the lower half of a block share the lanes, as two strips.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from drsformer_jax.ops.filters import Plain, Winograd
from drsformer_jax.types import Array

LANES = 128
"""Channels of a block."""
EDGE = 8
"""Columns of zeros on each side of a strip: whole tiles, and at least the halo."""
MEMORY = 48 * 2**20
"""Bytes of the core's memory that strips and blocks may have."""
_ROWS = 64
"""Most rows of a strip."""
_COLUMNS = 32
"""Columns that are computed together: they share loads of taps."""
_TOGETHER = 4
"""Rows that are computed together."""
_WINOGRAD = {5: _TOGETHER, 7: 2}
"""The same where they are Winograd's, by the number of taps."""

Values = Callable[[int, Any], Array]
"""Reads what is multiplied, by its number in the filter and a slice of columns."""


def for_columns(width: int, unroll: int, body: Callable[[Array | int, int], None]) -> None:
    """Calls `body` for columns that are computed together, with the first and their number.

    Args:
        width: columns in all; the last ones may be fewer.
        unroll: at most so many calls are a trip of a loop.
        body: the function.
    """
    whole, rest = divmod(width, _COLUMNS)

    def columns(index: Array, _: None) -> None:
        body(pl.multiple_of(index * _COLUMNS, _COLUMNS), _COLUMNS)

    lax.fori_loop(0, whole, columns, None, unroll=math.gcd(whole, unroll))
    if rest:
        body(whole * _COLUMNS, rest)


@dataclass(frozen=True)
class Strips:
    """How images are cut into blocks, and blocks into strips that share the lanes."""

    height: int
    width: int
    channels: int
    """Of the images, at most half of the lanes if there are two strips, or more."""
    filter: Plain
    """Along the columns."""
    dilation: int
    """Distance of neighboring taps."""
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
        size: int,
        dilation: int,
        copies: int,
    ) -> Strips:
        """Chooses the filter, and the rows, so that `copies` strips fit into memory."""
        _, height, width, _ = shape
        filter = Plain(_TOGETHER, size)
        if size in _WINOGRAD:
            filter = Winograd(_WINOGRAD[size], size)
        view = 1 << max(0, dilation * (size // 2) - 1).bit_length()
        unit = math.lcm(view, filter.outputs * dilation)
        least = cls(height, width, channels, filter, dilation, unit, view)
        needed = pl.cdiv(height, len(least.lanes))
        rows = min(max(_ROWS, unit), needed + unit - 1) // unit * unit
        while rows > unit:
            strips = dataclasses.replace(least, rows=rows)
            if strips.bytes(dtype, copies) <= MEMORY:
                return strips
            rows -= unit
        return least

    def bytes(self, dtype: jnp.dtype, copies: int) -> int:
        """Bytes of so many strips, and of the blocks: one is computed, the next one loaded."""
        strips = 4 * copies * (self.rows + 2 * self.halo + self.written) * (self.width + 3 * EDGE)
        rows = (copies + 1) * self.block + 2 * copies * self.view
        return LANES * (strips + 2 * jnp.dtype(dtype).itemsize * rows * self.width)

    @property
    def halo(self) -> int:
        """Rows and columns around a pixel that a result depends on."""
        return self.dilation * (self.filter.taps // 2)

    @property
    def written(self) -> int:
        """Rows of changed values that are written to scratch; 0 for plain filters."""
        return self.filter.points if isinstance(self.filter, Winograd) else 0

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
        return pltpu.VMEM((self.rows + 2 * halo, self.width + 3 * EDGE, LANES), jnp.float32)

    def changed(self) -> Any:
        """The rows that are written instead, or a row, since there must be something."""
        rows = max(1, self.written)
        return pltpu.VMEM((rows, self.width + 3 * EDGE, LANES), jnp.float32)

    def for_rows(self, body: Callable[[Array], None]) -> None:
        """Calls `body` with the first of the rows that are computed together, for all."""
        together, dilation = self.filter.outputs, self.dilation

        def rows(index: Array, _: None) -> None:
            body(lax.div(index, dilation) * (together * dilation) + lax.rem(index, dilation))

        lax.fori_loop(0, self.rows // together, rows, None)

    def values(self, strip: Any, scratch: Any, top: Array) -> Values:
        """What the rows from `top` are multiplied as; written to `scratch` if it is not them."""
        return self._changed(self.filter.values, self.filter.points, strip, scratch, top)

    def factors(self, strip: Any, scratch: Any, top: Array) -> Values:
        """The same where the rows are the taps of the gradient's filter."""
        change = self.filter.transposed().factors
        return self._changed(change, self.filter.outputs, strip, scratch, top)

    def _changed(
        self,
        change: Callable[[Sequence[Array]], list[Array]],
        rows: int,
        strip: Any,
        scratch: Any,
        top: Array,
    ) -> Values:
        """Writes what `rows` rows are changed to."""
        if not self.written:
            return lambda row, columns: strip[top + self.dilation * row, columns]

        def columns(left: Array | int, count: int) -> None:
            place = pl.ds(left, count)
            values = [strip[top + self.dilation * row, place] for row in range(rows)]
            for number, value in enumerate(change(values)):
                scratch[number, place] = value

        for_columns(pl.cdiv(self.width + 2 * EDGE, 8) * 8, 1, columns)
        return lambda number, columns: scratch[number, columns]

    def load(self, views: Sequence[Any], wide: Any) -> None:
        """Fills strips in float32: zeros beyond the image.

        Args:
            views: blocks above, at and below this place; the first and the last are None where the
                strips have no halo.
            wide: the strips.
        """
        top, middle, bottom = views
        halo = 0 if top is None else self.halo
        image = slice(EDGE, EDGE + self.width)
        step = pl.program_id(2)

        @pl.when(step == 0)
        def _zero_sides() -> None:
            for side in (slice(0, EDGE), slice(EDGE + self.width, wide.shape[1])):
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

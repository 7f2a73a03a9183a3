"""How the rows of images are computed: all at once, in strips, or shared by devices.

All that the network does is local within a few rows, but for sums over whole images (the scores
of its attention, the mean that its gates read). So images can be computed in pieces, exactly:
layers through `map`, which gives them a window with the rows around that they read, and sums
through `sum`, which adds up what the pieces have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drsformer_jax.ops.masking import inside, rows_between
from drsformer_jax.types import Array, Bool, Float, Int

Mask = Bool[Array, "b h w 1"] | None
Layer = Callable[[Float[Array, "b h w c"], Mask], Float[Array, "b h w o"]]
"""Of a window and the mask of its images; None where they fill it."""
Sums = Callable[[Float[Array, "b h w c"], Mask, Mask], Any]
"""Of a window, the mask of its images, and the mask of the pixels to count: any tree."""

_AXIS = "rows"
MOST_REACH = 6
"""Rows above and below that any layer of the network reads for one row of its result."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows at once."""

    size: Int[Array, "b 2"] | None = None
    """True height and width of each image where the arrays are larger."""

    def at(self, size: Int[Array, "b 2"] | None) -> Rows:
        """The same for images of other sizes."""
        return dataclasses.replace(self, size=size)

    def map(self, layer: Layer, x: Float[Array, "b h w c"], reach: int) -> Float[Array, "b h w o"]:
        """What a layer makes of images.

        Args:
            layer: keeps height and width.
            x: images, or what this device has of them.
            reach: rows above and below that one row of its result depends on.
        """
        return layer(x, self._inside(x))

    def sum(self, sums: Sums, x: Float[Array, "b h w c"], reach: int) -> Any:
        """Sums over whole images; arguments as those of `map`."""
        mask = self._inside(x)
        return sums(x, mask, mask)

    def _inside(self, x: Array, top: Array | int = 0) -> Mask:
        if self.size is None:
            return None
        height, width = x.shape[1:3]
        return inside(self.size, height, width, top)


AT_ONCE = Rows()


@dataclasses.dataclass(frozen=True)
class Strips(Rows):
    """One strip after another: what is computed within a layer exists for one strip alone.

    A strip's window lies within the array, so that a border of the window is the array's own or as
    far from the strip as the layer reaches.
    """

    height: int = 64
    """Rows of a strip, at every level of the network."""

    def map(self, layer: Layer, x: Array, reach: int) -> Array:
        """What a layer makes of images, strip by strip."""
        if self._is_low(x, reach):
            return super().map(layer, x, reach)

        def strip(index: Array) -> tuple[Array, Array]:
            first, top, window = self._window(x, index, reach)
            restored = layer(window, self._inside(window, top))
            return lax.dynamic_slice_in_dim(restored, first - top, self.height, axis=1), first

        def write(index: Array, done: Array) -> Array:
            rows, first = strip(index)
            return lax.dynamic_update_slice_in_dim(done, rows, first, axis=1)

        shape = jax.eval_shape(strip, 0)[0]
        done = jnp.zeros((x.shape[0], x.shape[1], *shape.shape[2:]), shape.dtype)
        return lax.fori_loop(0, self._count(x), write, done)

    def sum(self, sums: Sums, x: Array, reach: int) -> Any:
        """Sums over whole images, strip by strip."""
        if self._is_low(x, reach):
            return super().sum(sums, x, reach)

        def strip(index: Array) -> Any:
            first, top, window = self._window(x, index, reach)
            mask = self._inside(window, top)
            # The last strip begins early enough to be whole; what it shares is counted once.
            counted = rows_between(index * self.height, first + self.height, window, top)
            return sums(window, mask, counted if mask is None else counted & mask)

        def add(index: Array, total: Any) -> Any:
            return jax.tree.map(jnp.add, total, strip(index))

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(strip, 0)
        )
        return lax.fori_loop(0, self._count(x), add, zeros)

    def _is_low(self, x: Array, reach: int) -> bool:
        return x.shape[1] <= self.height + 2 * reach

    def _count(self, x: Array) -> int:
        return math.ceil(x.shape[1] / self.height)

    def _window(self, x: Array, index: Array, reach: int) -> tuple[Array, Array, Array]:
        """First row of a strip, first row of its window, and the window."""
        first = jnp.minimum(index * self.height, x.shape[1] - self.height)
        rows = self.height + 2 * reach
        top = jnp.clip(first - reach, 0, x.shape[1] - rows)
        return first, top, lax.dynamic_slice_in_dim(x, top, rows, axis=1)


@dataclasses.dataclass(frozen=True)
class Shards(Rows):
    """Each device along the axis `rows` of a mesh has its own, and asks others for those it reads.

    For use inside `jax.shard_map`.
    """

    count: int = 1
    """Devices along the axis."""

    def map(self, layer: Layer, x: Array, reach: int) -> Array:
        """What a layer makes of this device's rows."""
        window = self._window(x, reach)
        return layer(window, self._mask(x, reach))[:, reach : reach + x.shape[1]]

    def sum(self, sums: Sums, x: Array, reach: int) -> Any:
        """Sums over whole images, the same on every device."""
        window, mask = self._window(x, reach), self._mask(x, reach)
        counted = mask & rows_between(0, x.shape[1], window, -reach)
        return lax.psum(sums(window, mask, counted), _AXIS)

    def _mask(self, x: Array, reach: int) -> Array:
        """Of the images in a window, without the rows beyond the first and the last device's."""
        rows, width = x.shape[1:3]
        size = self.size
        if size is None:
            size = jnp.full((len(x), 2), jnp.array([self.count * rows, width]))
        top = lax.axis_index(_AXIS) * rows - reach
        return inside(size, rows + 2 * reach, width, top)

    def _window(self, x: Array, reach: int) -> Array:
        """This device's rows and `reach` more on either side, zeros beyond the first and last."""
        rows = x.shape[1]
        above: list[Array] = []
        below: list[Array] = []
        for hop in range(1, math.ceil(reach / rows) + 1):
            wanted = min(rows, reach - rows * (hop - 1))
            down = [(device, device + hop) for device in range(self.count - hop)]
            up = [(target, source) for source, target in down]
            above.insert(0, lax.ppermute(x[:, rows - wanted :], _AXIS, down))
            below.append(lax.ppermute(x[:, :wanted], _AXIS, up))
        return jnp.concatenate([*above, x, *below], axis=1)

"""How the rows of images are computed: all at once, in strips, or sharded over devices.

Each row of a layer's output depends on a few rows of its input, its halo; only sums over whole
images (the attention's scores, the mean that the gates of MEFC read) depend on more. So images can
be computed in parts along the spatial axis h, exactly: layers by `map`, which gives them a window
(a part and its halo), and sums by `sum`, which adds up those of the parts. `ops.strips` has a
drawing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drsformer_jax.ops.masking import rows_between, size_mask
from drsformer_jax.types import Array, Bool, Float, Int

Mask = Bool[Array, "b h w 1"] | None
Layer = Callable[[Float[Array, "b h w c"], Mask], Float[Array, "b h w o"]]
"""(window, valid_mask) -> output of the same height and width; no mask: all pixels are valid."""
Sums = Callable[[Float[Array, "b h w c"], Mask, Mask], Any]
"""(window, valid_mask, counted) -> tree of sums over the counted pixels; no mask: over all."""

_AXIS = "rows"
"""The mesh axis over which the spatial axis h is sharded."""
MAX_HALO = 6
"""The largest halo of any layer of the network, in rows above and below: that of MEFC's steps."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["size"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows at once."""

    size: Int[Array, "b 2"] | None = None
    """Height and width of each image, in pixels, where the arrays are larger."""

    def with_size(self, size: Int[Array, "b 2"] | None) -> Rows:
        """The same for images of this size: that of another level of the network."""
        return dataclasses.replace(self, size=size)

    def map(self, layer: Layer, x: Float[Array, "b h w c"], halo: int) -> Float[Array, "b h w o"]:
        """Applies a layer to images.

        Args:
            layer: see `Layer`.
            x: images, or this device's shard of them.
            halo: rows above and below that a row of the layer's output depends on.
        """
        return layer(x, self._valid_mask(x))

    def sum(self, sums: Sums, x: Float[Array, "b h w c"], halo: int) -> Any:
        """Sums over whole images; arguments like those of `map`."""
        mask = self._valid_mask(x)
        return sums(x, mask, mask)

    def _valid_mask(self, x: Array, top: Array | int = 0) -> Mask:
        if self.size is None:
            return None
        height, width = x.shape[1:3]
        return size_mask(self.size, height, width, top)


AT_ONCE = Rows()


@functools.partial(jax.tree_util.register_dataclass, data_fields=["size"], meta_fields=["count"])
@dataclasses.dataclass(frozen=True)
class Spread(Rows):
    """All rows at once, and each of several devices has some of the images."""

    count: int = 1
    """Devices; they divide the number of images."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["size"], meta_fields=["height"])
@dataclasses.dataclass(frozen=True)
class Strips(Rows):
    """In strips, one after another: intermediates of a layer exist for one strip at a time.

    A window never leaves the array: where a strip is too close to the array's border for a whole
    halo, the window is moved, and has more rows of the halo on the other side.
    """

    height: int = 64
    """Rows of a strip, at every level of the network."""

    def map(self, layer: Layer, x: Array, halo: int) -> Array:
        """Applies a layer to images, strip by strip."""
        if self._is_one_window(x, halo):
            return super().map(layer, x, halo)

        def strip(index: Array) -> tuple[Array, Array]:
            first, top, window = self._window(x, index, halo)
            output = layer(window, self._valid_mask(window, top))
            return lax.dynamic_slice_in_dim(output, first - top, self.height, axis=1), first

        def write(index: Array, done: Array) -> Array:
            rows, first = strip(index)
            return lax.dynamic_update_slice_in_dim(done, rows, first, axis=1)

        shape = jax.eval_shape(strip, 0)[0]
        done = jnp.zeros((x.shape[0], x.shape[1], *shape.shape[2:]), shape.dtype)
        return lax.fori_loop(0, self._count(x), write, done)

    def sum(self, sums: Sums, x: Array, halo: int) -> Any:
        """Sums over whole images, strip by strip."""
        if self._is_one_window(x, halo):
            return super().sum(sums, x, halo)

        def strip(index: Array) -> Any:
            first, top, window = self._window(x, index, halo)
            mask = self._valid_mask(window, top)
            # The last strip is moved up to be whole; what it shares with the one before is not
            # counted again.
            counted = rows_between(index * self.height, first + self.height, window, top)
            return sums(window, mask, counted if mask is None else counted & mask)

        def add(index: Array, total: Any) -> Any:
            return jax.tree.map(jnp.add, total, strip(index))

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(strip, 0)
        )
        return lax.fori_loop(0, self._count(x), add, zeros)

    def _is_one_window(self, x: Array, halo: int) -> bool:
        return x.shape[1] <= self.height + 2 * halo

    def _count(self, x: Array) -> int:
        return math.ceil(x.shape[1] / self.height)

    def _window(self, x: Array, index: Array, halo: int) -> tuple[Array, Array, Array]:
        """First row of a strip, first row of its window, and the window."""
        first = jnp.minimum(index * self.height, x.shape[1] - self.height)
        rows = self.height + 2 * halo
        top = jnp.clip(first - halo, 0, x.shape[1] - rows)
        return first, top, lax.dynamic_slice_in_dim(x, top, rows, axis=1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["size"], meta_fields=["count"])
@dataclasses.dataclass(frozen=True)
class Shards(Rows):
    """Sharded over the mesh axis `rows`: halo exchange gives each device the rows around its own.

    For use inside `jax.shard_map`.
    """

    count: int = 1
    """Devices along the axis, which have equally many rows."""

    def map(self, layer: Layer, x: Array, halo: int) -> Array:
        """Applies a layer to this device's shard."""
        window = self._window(x, halo)
        return layer(window, self._mask(x, halo))[:, halo : halo + x.shape[1]]

    def sum(self, sums: Sums, x: Array, halo: int) -> Any:
        """Sums over whole images, the same on every device."""
        window, mask = self._window(x, halo), self._mask(x, halo)
        counted = mask & rows_between(0, x.shape[1], window, -halo)
        return lax.psum(sums(window, mask, counted), _AXIS)

    def _mask(self, x: Array, halo: int) -> Array:
        """The valid mask of a window, False above the first device's shard and below the last's."""
        rows, width = x.shape[1:3]
        size = self.size
        if size is None:
            size = jnp.full((len(x), 2), jnp.array([self.count * rows, width]))
        top = lax.axis_index(_AXIS) * rows - halo
        return size_mask(size, rows + 2 * halo, width, top)

    def _window(self, x: Array, halo: int) -> Array:
        """This device's shard and its halo, zeros beyond the first and last shard."""
        rows = x.shape[1]
        above: list[Array] = []
        below: list[Array] = []
        for hop in range(1, math.ceil(halo / rows) + 1):  # A halo can span several shards.
            wanted = min(rows, halo - rows * (hop - 1))
            down = [(device, device + hop) for device in range(self.count - hop)]
            up = [(target, source) for source, target in down]
            above.insert(0, lax.ppermute(x[:, rows - wanted :], _AXIS, down))
            below.append(lax.ppermute(x[:, :wanted], _AXIS, up))
        return jnp.concatenate([*above, x, *below], axis=1)

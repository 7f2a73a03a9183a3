"""Chains of convolutions in strips, so that what is between them stays in a CPU's cache.

A strip is some consecutive rows of an image. To compute a strip of the output, convolutions need
its halo too: the pixels around it that they read. So the chain runs on a window, the strip and its
halo, and the strip is what is left of the window in the end:

    rows of the padded image          window of strip 1          output
    0 0 0 0 0 0 0 0 0  <- zeros
    strip 0                           last rows of strip 0
    strip 1                  ->       strip 1            ->      strip 1
    strip 2                           first rows of strip 2
    0 0 0 0 0 0 0 0 0

Halos are computed twice, for both strips that they belong to. On whole images every convolution of
the chain would write all hidden channels to memory, for the next one to read.

`nn.rows.Strips` cuts images into strips too, and whole layers run on them: that bounds the memory
of large images on any hardware, where strips here are faster, and on CPUs alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from drsformer_jax.types import Array, Bool, Dimension, Float

STRIP_ELEMENTS = 2**20
"""Elements of a strip: 4 MiB of float32."""
_USUAL_WIDTH = 256
"""Width of an image, in pixels, that is assumed in programs for any width (`jax.export`)."""

Chain = Callable[[Any, Array, Array], Array]
"""(weights, window, valid_mask) -> strip.

`window` is (rows + 2 halo, w + 2 halo, c), `valid_mask` (rows + 2 halo, w + 2 halo, 1), and the
strip (rows, w, o).
"""

StripSums = Callable[[Any, Array, Array, Array], Any]
"""(weights, window, valid_mask, counted) -> tree of sums over the counted pixels of the strip.

`counted` is (rows, w, 1), the rest as in `Chain`.
"""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def in_strips(
    chain: Chain,
    halo: int,
    rows: int,
    weights: Any,
    x: Float[Array, "b h w c"],
    valid_mask: Bool[Array, "b h w 1"] | None,
) -> Float[Array, "b h w o"]:
    """Applies `chain` strip by strip, in the dtype of `x`.

    The backward pass saves the arguments alone, and recomputes each strip.

    Args:
        chain: what a strip is made by, see `Chain`. Its `valid_mask` is False beyond the image.
        halo: pixels around a strip that `chain` reads, on each side.
        rows: at most so many rows a strip.
        weights: tree of arrays for `chain`.
        x: images.
        valid_mask: True at the pixels of the images; default: everywhere.
    """
    strips = _Strips(x, halo, rows)
    padded, mask = strips.pad(x), strips.pad(_mask(x, valid_mask))

    def add(index: Array, out: Array) -> Array:
        strip = chain(weights, strips.window(padded, index), strips.window(mask, index))
        return strips.write(out, strip, index)

    first = jax.eval_shape(chain, weights, strips.window(padded, 0), strips.window(mask, 0))
    out = jnp.zeros((x.shape[0], strips.height, *first.shape[1:]), x.dtype)
    return lax.fori_loop(0, strips.count, add, out)[:, : x.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def sum_in_strips(
    sums: StripSums,
    halo: int,
    rows: int,
    weights: Any,
    x: Float[Array, "b h w c"],
    valid_mask: Bool[Array, "b h w 1"] | None,
    counted: Bool[Array, "b h w 1"] | None,
) -> Any:
    """Sums over each image, strip by strip; the backward pass is like that of `in_strips`.

    Args:
        sums: what a strip adds, see `StripSums`.
        halo: pixels around a strip that `sums` reads, on each side.
        rows: at most so many rows a strip.
        weights: tree of arrays for `sums`.
        x: images.
        valid_mask: True at the pixels of the images; default: everywhere.
        counted: True at the pixels to sum over; default: everywhere.

    Returns:
        The tree that `sums` makes, each leaf with a first axis b.
    """
    strips = _Strips(x, halo, rows)
    padded = strips.pad(x)
    run = _summed(sums, strips, x, valid_mask, counted)

    def add(index: Array, total: Any) -> Any:
        part = run(weights, strips.window(padded, index), index)
        return jax.tree.map(lambda t, p: t.at[index // strips.per_image].add(p), total, part)

    shapes = jax.eval_shape(run, weights, strips.window(padded, 0), 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((x.shape[0], *leaf.shape), leaf.dtype), shapes)
    return lax.fori_loop(0, strips.count, add, zeros)


def _summed(
    sums: StripSums, strips: _Strips, x: Array, valid_mask: Array | None, counted: Array | None
) -> Callable[[Any, Array, Array | int], Any]:
    """`sums` as a function of weights, a window and the index of its strip."""
    valid = strips.pad(_mask(x, valid_mask))
    to_count = strips.pad_below(_mask(x, counted))

    def run(weights: Any, window: Array, index: Array | int) -> Any:
        return sums(weights, window, strips.window(valid, index), strips.strip(to_count, index))

    return run


def rows_in_cache(width: Dimension, channels: int) -> int:
    """Rows of a strip that has about `STRIP_ELEMENTS` elements, and at least 8 rows."""
    width = _USUAL_WIDTH if export.is_symbolic_dim(width) else width
    return max(8, STRIP_ELEMENTS // (width * channels))


def crop(x: Array, pixels: int) -> Array:
    """A window (h, w, c) without its outermost `pixels` rows and columns on each side."""
    return x[pixels : x.shape[0] - pixels, pixels : x.shape[1] - pixels]


def materialized(function: Callable[..., Array], any_valid: Array, *arrays: Any) -> Array:
    """`function(*arrays)`, written to memory for its consumers; zeros where not `any_valid`.

    XLA for CPUs otherwise fuses a convolution into the next one, and recomputes it for every tap of
    that. An optimization barrier does not prevent this fusion, but the border of a branch does.

    Args:
        function: of `arrays`, to one array.
        any_valid: whether the window has a valid pixel. Without one the branch skips the work.
        *arrays: arrays, or trees of them.
    """
    shape = jax.eval_shape(function, *arrays)
    return lax.cond(any_valid, function, lambda *_: jnp.zeros(shape.shape, shape.dtype), *arrays)


class _Strips:
    """Which rows belong to which strip, counted through all images of a batch."""

    def __init__(self, x: Array, halo: int, rows: int) -> None:
        batch, height = x.shape[:2]
        self.per_image = -(-height // rows)
        # Equally many in each strip, where the height is known.
        self.rows = rows if export.is_symbolic_dim(height) else -(-height // self.per_image)
        self.height = self.per_image * self.rows
        self.count = batch * self.per_image
        self.halo = halo
        self.below = halo + self.height - height

    def pad(self, x: Array) -> Array:
        border = (self.halo, self.halo)
        return jnp.pad(x, ((0, 0), (self.halo, self.below), border, (0, 0)))

    def _start(self, index: Array | int) -> tuple[Array | int, ...]:
        return index // self.per_image, index % self.per_image * self.rows, 0, 0

    def window(self, padded: Array, index: Array | int) -> Array:
        size = (1, self.rows + 2 * self.halo, *padded.shape[2:])
        return lax.dynamic_slice(padded, self._start(index), size)[0]

    def pad_below(self, x: Array) -> Array:
        """Appends rows, up to the last row of the last strip."""
        return jnp.pad(x, ((0, 0), (0, self.height - x.shape[1]), (0, 0), (0, 0)))

    def strip(self, x: Array, index: Array | int) -> Array:
        return lax.dynamic_slice(x, self._start(index), (1, self.rows, *x.shape[2:]))[0]

    def write(self, x: Array, part: Array, index: Array) -> Array:
        return lax.dynamic_update_slice(x, part[None].astype(x.dtype), self._start(index))


def _mask(x: Array, valid_mask: Array | None) -> Array:
    return jnp.ones((*x.shape[:3], 1), bool) if valid_mask is None else valid_mask


def _forward(
    chain: Chain, halo: int, rows: int, weights: Any, x: Array, valid_mask: Array | None
) -> tuple[Array, tuple[Any, Array, Array | None]]:
    return in_strips(chain, halo, rows, weights, x, valid_mask), (weights, x, valid_mask)


def _backward(
    chain: Chain, halo: int, rows: int, saved: tuple[Any, Array, Array | None], grad: Array
) -> tuple[Any, Array, None]:
    weights, x, valid_mask = saved
    strips = _Strips(x, halo, rows)
    mask, grad = strips.pad(_mask(x, valid_mask)), strips.pad_below(grad)

    def run(weights: Any, window: Array, index: Array) -> Array:
        return chain(weights, window, strips.window(mask, index))

    return *_gradients(run, strips, weights, x, lambda index: strips.strip(grad, index)), None


in_strips.defvjp(_forward, _backward)


def _sum_forward(
    sums: StripSums, halo: int, rows: int, weights: Any, x: Array, *masks: Array | None
) -> tuple[Any, tuple[Any, Array, tuple[Array | None, ...]]]:
    return sum_in_strips(sums, halo, rows, weights, x, *masks), (weights, x, masks)


def _sum_backward(
    sums: StripSums,
    halo: int,
    rows: int,
    saved: tuple[Any, Array, tuple[Array | None, ...]],
    grad: Any,
) -> tuple[Any, Array, None, None]:
    weights, x, masks = saved
    strips = _Strips(x, halo, rows)

    def of_image(index: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[index // strips.per_image], grad)

    return *_gradients(_summed(sums, strips, x, *masks), strips, weights, x, of_image), None, None


sum_in_strips.defvjp(_sum_forward, _sum_backward)


def _gradients(
    run: Callable[[Any, Array, Array], Any],
    strips: _Strips,
    weights: Any,
    x: Array,
    cotangent: Callable[[Array], Any],
) -> tuple[Any, Array]:
    """Gradients to `weights` and `x` of what `run` makes of them strip by strip.

    Args:
        run: of weights, a window and the index of its strip.
        strips: the rows of each strip.
        weights: tree of arrays.
        x: images.
        cotangent: the gradient to what `run` makes, by the index of the strip.
    """
    padded = strips.pad(x)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(index: Array, total: tuple[Any, Array]) -> tuple[Any, Array]:
        weights_total, x_total = total
        y, back = jax.vjp(
            lambda weights, window: run(weights, window, index),
            weights,
            strips.window(padded, index),
        )
        grad = jax.tree.map(lambda g, y: g.astype(y.dtype), cotangent(index), y)
        weights_grad, window_grad = back(grad)
        # Windows overlap: the gradients of what several strips read add up.
        window_grad = strips.window(x_total, index) + window_grad.astype(wide)
        weights_total = jax.tree.map(jnp.add, weights_total, weights_grad)
        return weights_total, strips.write(x_total, window_grad, index)

    zeros = jax.tree.map(jnp.zeros_like, weights), jnp.zeros(padded.shape, wide)
    weights_grad, x_grad = lax.fori_loop(0, strips.count, add, zeros)
    height, width = x.shape[1:3]
    x_grad = x_grad[:, strips.halo : strips.halo + height, strips.halo : strips.halo + width]
    return weights_grad, x_grad.astype(x.dtype)

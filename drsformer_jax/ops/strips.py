"""Chains of convolutions strip by strip, so that what lies between them stays in a CPU's cache.

A whole image of hidden channels is written to memory and read again by every convolution. Here
the chain runs on a few rows at a time, with as many rows and columns around them as it reads;
what two strips both need is computed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drsformer_jax.types import Array, Bool, Float

SIZE = 2**20
"""Numbers of a strip: 4 MiB of float32."""

Chain = Callable[[Any, Array, Array], Array]
"""(weights, window, inside) -> strip.

`window` and `inside` are (rows + 2 reach, w + 2 reach, channels) and (..., 1); the strip is the
(rows, w, o) in the middle of the window.
"""

StripSums = Callable[[Any, Array, Array, Array], Any]
"""(weights, window, inside, counted) -> tree of sums over the pixels of the strip that count.

`counted` is (rows, w, 1), the rest as in `Chain`.
"""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def in_strips(
    chain: Chain,
    reach: int,
    rows: int,
    weights: Any,
    x: Float[Array, "b h w c"],
    inside: Bool[Array, "b h w 1"] | None,
) -> Float[Array, "b h w o"]:
    """Applies `chain` to strips of about `rows` rows, in the type of `x`.

    The derivative saves the arguments alone, and computes each strip again.

    Args:
        chain: what happens to a strip, see `Chain`. `inside` is False beyond the image.
        reach: how far beyond the strip it looks, in pixels.
        rows: rows of a strip; a few more where that divides the images evenly.
        weights: tree of arrays for `chain`.
        x: images.
        inside: mask of the images in larger arrays.
    """
    cut = _Strips(x, reach, rows)
    padded, mask = cut.pad(x), cut.pad(_mask(x, inside))

    def add(number: Array, out: Array) -> Array:
        strip = chain(weights, cut.window(padded, number), cut.window(mask, number))
        return cut.write(out, strip, number)

    first = jax.eval_shape(chain, weights, cut.window(padded, 0), cut.window(mask, 0))
    out = jnp.zeros((x.shape[0], cut.height, *first.shape[1:]), x.dtype)
    return lax.fori_loop(0, cut.count, add, out)[:, : x.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def sum_in_strips(
    sums: StripSums,
    reach: int,
    rows: int,
    weights: Any,
    x: Float[Array, "b h w c"],
    inside: Bool[Array, "b h w 1"] | None,
    counted: Bool[Array, "b h w 1"] | None,
) -> Any:
    """Sums of each image, arguments and derivative like those of `in_strips`.

    Args:
        sums: what a strip adds, see `StripSums`.
        reach: how far beyond the strip it looks, in pixels.
        rows: rows of a strip; a few more where that divides the images evenly.
        weights: tree of arrays for `sums`.
        x: images.
        inside: mask of the images in larger arrays.
        counted: mask of the pixels to count.

    Returns:
        The tree that `sums` makes, each leaf with a first axis b.
    """
    cut = _Strips(x, reach, rows)
    padded = cut.pad(x)
    run = _summed(sums, cut, x, inside, counted)

    def add(number: Array, total: Any) -> Any:
        part = run(weights, cut.window(padded, number), number)
        return jax.tree.map(lambda t, p: t.at[number // cut.each].add(p), total, part)

    shapes = jax.eval_shape(run, weights, cut.window(padded, 0), 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((len(x), *leaf.shape), leaf.dtype), shapes)
    return lax.fori_loop(0, cut.count, add, zeros)


def _summed(
    sums: StripSums, cut: _Strips, x: Array, inside: Array | None, counted: Array | None
) -> Callable[[Any, Array, Array | int], Any]:
    """`sums` of weights, a window and the number of its strip."""
    seen, counts = cut.pad(_mask(x, inside)), cut.lengthen(_mask(x, counted))

    def run(weights: Any, window: Array, number: Array | int) -> Any:
        return sums(weights, window, cut.window(seen, number), cut.strip(counts, number))

    return run


def rows_in_cache(width: int, channels: int) -> int:
    """Rows of a strip whose images with so many columns and channels stay in a CPU's caches."""
    return max(8, SIZE // (width * channels))


def crop(x: Array, pixels: int) -> Array:
    """A window (h, w, c) without its border."""
    return x[pixels : x.shape[0] - pixels, pixels : x.shape[1] - pixels]


def stored(function: Callable[..., Array], anything: Array, *arrays: Any) -> Array:
    """`function(*arrays)`, written to memory and read from there; zeros where not `anything`.

    XLA for CPUs otherwise fuses a convolution into the next one, and computes it again for every
    tap of that; an optimization barrier does not hinder it, but the border of a branch does.
    """
    shape = jax.eval_shape(function, *arrays)
    return lax.cond(anything, function, lambda *_: jnp.zeros(shape.shape, shape.dtype), *arrays)


class _Strips:
    """Where the strips of images lie, in arrays with a border of `reach` pixels."""

    def __init__(self, x: Array, reach: int, rows: int) -> None:
        batch, height, self.width, _ = x.shape
        self.each = -(-height // rows)  # Strips of one image.
        self.rows = -(-height // self.each)
        self.height = self.each * self.rows
        self.count = batch * self.each
        self.reach = reach
        self.lower = reach + self.height - height

    def pad(self, x: Array) -> Array:
        border = (self.reach, self.reach)
        return jnp.pad(x, ((0, 0), (self.reach, self.lower), border, (0, 0)))

    def _start(self, number: Array | int) -> tuple[Array | int, ...]:
        return number // self.each, number % self.each * self.rows, 0, 0

    def window(self, padded: Array, number: Array | int) -> Array:
        size = (1, self.rows + 2 * self.reach, *padded.shape[2:])
        return lax.dynamic_slice(padded, self._start(number), size)[0]

    def lengthen(self, x: Array) -> Array:
        """Appends rows up to the end of the last strip."""
        return jnp.pad(x, ((0, 0), (0, self.height - x.shape[1]), (0, 0), (0, 0)))

    def strip(self, x: Array, number: Array | int) -> Array:
        return lax.dynamic_slice(x, self._start(number), (1, self.rows, *x.shape[2:]))[0]

    def write(self, x: Array, part: Array, number: Array) -> Array:
        return lax.dynamic_update_slice(x, part[None].astype(x.dtype), self._start(number))


def _mask(x: Array, inside: Array | None) -> Array:
    return jnp.ones((*x.shape[:3], 1), bool) if inside is None else inside


def _forward(
    chain: Chain, reach: int, rows: int, weights: Any, x: Array, inside: Array | None
) -> tuple[Array, tuple[Any, Array, Array | None]]:
    return in_strips(chain, reach, rows, weights, x, inside), (weights, x, inside)


def _backward(
    chain: Chain, reach: int, rows: int, saved: tuple[Any, Array, Array | None], grad: Array
) -> tuple[Any, Array, None]:
    weights, x, inside = saved
    cut = _Strips(x, reach, rows)
    mask, grad = cut.pad(_mask(x, inside)), cut.lengthen(grad)

    def run(weights: Any, window: Array, number: Array) -> Array:
        return chain(weights, window, cut.window(mask, number))

    return *_gradients(run, cut, weights, x, lambda number: cut.strip(grad, number)), None


in_strips.defvjp(_forward, _backward)


def _sum_forward(
    sums: StripSums, reach: int, rows: int, weights: Any, x: Array, *masks: Array | None
) -> tuple[Any, tuple[Any, Array, tuple[Array | None, ...]]]:
    return sum_in_strips(sums, reach, rows, weights, x, *masks), (weights, x, masks)


def _sum_backward(
    sums: StripSums,
    reach: int,
    rows: int,
    saved: tuple[Any, Array, tuple[Array | None, ...]],
    grad: Any,
) -> tuple[Any, Array, None, None]:
    weights, x, masks = saved
    cut = _Strips(x, reach, rows)

    def of_image(number: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[number // cut.each], grad)

    return *_gradients(_summed(sums, cut, x, *masks), cut, weights, x, of_image), None, None


sum_in_strips.defvjp(_sum_forward, _sum_backward)


def _gradients(
    run: Callable[[Any, Array, Array], Any],
    cut: _Strips,
    weights: Any,
    x: Array,
    cotangent: Callable[[Array], Any],
) -> tuple[Any, Array]:
    """Gradients to `weights` and `x` of what `run` makes of them strip by strip.

    Args:
        run: of weights, a window and the number of its strip.
        cut: where the strips lie.
        weights: tree of arrays.
        x: images.
        cotangent: the gradient to what `run` makes, by the number of the strip.
    """
    padded = cut.pad(x)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(number: Array, total: tuple[Any, Array]) -> tuple[Any, Array]:
        weights_total, x_total = total
        y, back = jax.vjp(
            lambda weights, window: run(weights, window, number),
            weights,
            cut.window(padded, number),
        )
        grad = jax.tree.map(lambda g, y: g.astype(y.dtype), cotangent(number), y)
        weights_grad, window_grad = back(grad)
        # Windows overlap: the gradients of what several strips read add up.
        window_grad = cut.window(x_total, number) + window_grad.astype(wide)
        weights_total = jax.tree.map(jnp.add, weights_total, weights_grad)
        return weights_total, cut.write(x_total, window_grad, number)

    zeros = jax.tree.map(jnp.zeros_like, weights), jnp.zeros(padded.shape, wide)
    weights_grad, x_grad = lax.fori_loop(0, cut.count, add, zeros)
    height, width = x.shape[1:3]
    x_grad = x_grad[:, cut.reach : cut.reach + height, cut.reach : cut.reach + width]
    return weights_grad, x_grad.astype(x.dtype)

"""The convolutions of the MSFN as kernels for GPUs: Pallas, compiled by Triton.

Between the two 1x1 convolutions are four convolutions, all with f groups in each half. One kernel
computes both paths, and one the groups of both halves: its programs are of the one size or the
other. Each applies the relu to what it writes, and finds the channels of a group where the paths
left them, so that nothing is joined, split or sorted in memory. The backward pass has four.

Images between the kernels have 4f channels: 2f of the 3x3 path in their stored order, then 2f of
the 5x5 path.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from drsformer_jax.ops.mixed_scale_channels import group_inputs
from drsformer_jax.ops.triton import OPTIONS, OUTPUTS, SUMS, Here, Taps, Tiles, add_taps, sum_taps
from drsformer_jax.types import Array, Bool, Float

_SIZES = (3, 5)
"""Of the kernels of both paths, and of both halves."""
_MOST_TAPS = _SIZES[-1] ** 2


@jax.custom_vjp
def mixed_convolutions(
    x: Float[Array, "b h w _"],
    paths: tuple[Float[Array, "3 3 _"], Float[Array, "5 5 _"]],
    groups: tuple[Float[Array, "3 3 2 f"], Float[Array, "5 5 2 f"]],
    valid_mask: Bool[Array, "b h w 1"] | None = None,
) -> Float[Array, "b h w _"]:
    """What an MSFN without biases computes from one 1x1 convolution to the other.

    Args:
        x: output of the first 1x1 convolution: 2f channels in the order of `hidden_order`.
        paths: kernels of the 3x3 and of the 5x5 path, in that order of channels.
        groups: kernels of the grouped convolutions of the first and of the second half.
        valid_mask: True at the pixels of the images, as in `mixed_scale`; x is zero elsewhere.

    Returns:
        The outputs of all 2f groups, in the official order.
    """
    return _forward(x, paths, groups, valid_mask)[0]


def _forward(x: Array, paths: Any, groups: Any, valid_mask: Array | None) -> tuple[Array, Any]:
    hidden = _of_paths(x, paths, valid_mask)
    mixed = _of_groups(hidden, groups)
    return mixed, (x, paths, groups, hidden, mixed)


def _backward(saved: Any, grad: Array) -> tuple[Array, Any, Any, None]:
    x, paths, groups, hidden, mixed = saved
    grad = jnp.where(mixed > 0, grad, 0)
    hidden_grad = _hidden_grad(grad, groups, hidden)
    groups_grad = _groups_grad(hidden, grad)
    paths_grad = _paths_grad(x, hidden_grad)
    kernels = jax.tree.leaves((paths, groups))
    grads = [
        sums.reshape(kernel.shape).astype(kernel.dtype)
        for sums, kernel in zip((*paths_grad, *groups_grad), kernels, strict=True)
    ]
    return _x_grad(hidden_grad, paths), tuple(grads[:2]), tuple(grads[2:]), None


mixed_convolutions.defvjp(_forward, _backward)


# Compiled functions are traced once a shape.
@jax.jit
def _of_paths(x: Array, paths: Any, valid_mask: Array | None) -> Array:
    """The 4f channels of both paths, zeros where not valid."""
    masks = []
    if valid_mask is not None:
        masks.append(jnp.broadcast_to(valid_mask, (*x.shape[:3], 1)).astype(x.dtype))
    tiles = _tiles(x, x.shape[-1], OUTPUTS)

    def body(x: Any, small: Any, large: Any, *masks_and_out: Any) -> None:
        *masks, out = masks_and_out
        here = tiles.here()
        for path, kernel in enumerate((small, large)):

            def compute(path: int = path, kernel: Any = kernel) -> None:
                channels = here.channels(0)
                taps = _taps(here, x, channels, kernel, channels, _SIZES[path])
                add_taps(tiles, [taps], _store_relu(here, out, here.channels(path), *masks))

            pl.when(here.repeat == path)(compute)

    return _image(body, tiles, x, 2 * x.shape[-1], "paths")(x, *_rows(paths), *masks)


@jax.jit
def _of_groups(hidden: Array, groups: Any) -> Array:
    """The 2f outputs of both halves."""
    width = groups[0].shape[-1]
    tiles = _tiles(hidden, width, OUTPUTS)

    def body(hidden: Any, places: Any, small: Any, large: Any, out: Any) -> None:
        here = tiles.here()
        for half, kernel in enumerate((small, large)):

            def compute(half: int = half, kernel: Any = kernel) -> None:
                terms = [
                    _taps(
                        *(here, hidden, _channels_of_groups(here, places, half, term)),
                        *(kernel, here.channels(term), _SIZES[half]),
                    )
                    for term in range(2)
                ]
                add_taps(tiles, terms, _store_relu(here, out, here.channels(half)))

            pl.when(here.repeat == half)(compute)

    images = hidden, _places(width)
    return _image(body, tiles, hidden, 2 * width, "groups")(*images, *_rows(groups))


@jax.jit
def _hidden_grad(grad: Array, groups: Any, hidden: Array) -> Array:
    """The gradient of the 4f channels, before their relu."""
    width = groups[0].shape[-1]
    tiles = _tiles(grad, width, OUTPUTS)

    def body(grad: Any, hidden: Any, places: Any, small: Any, large: Any, out: Any) -> None:
        here = tiles.here()
        half, term = lax.div(here.repeat, 2), lax.rem(here.repeat, 2)
        channels = _channels_of_groups(here, places, half, term)

        def store(down: Array, total: Array, where: Array) -> None:
            passed = here.load(hidden, down, 0, channels, where) > 0
            here.store(out, down, jnp.where(passed, total, 0), channels, where)

        for number, kernel in enumerate((small, large)):

            def compute(number: int = number, kernel: Any = kernel) -> None:
                of_taps = here.channels(term)
                taps = _taps(here, grad, here.channels(number), kernel, of_taps, _SIZES[number])
                add_taps(tiles, [taps], store)

            pl.when(half == number)(compute)

    images = grad, hidden, _places(width)
    return _image(body, tiles, grad, 4 * width, "groups_x_grad")(*images, *_rows(groups, True))


@jax.jit
def _x_grad(hidden_grad: Array, paths: Any) -> Array:
    """The gradient of what both paths read."""
    width = paths[0].shape[-1]
    tiles = _tiles(hidden_grad, width, OUTPUTS)

    def body(grad: Any, small: Any, large: Any, out: Any) -> None:
        here = tiles.here()
        channels = here.channels(0)
        terms = [
            _taps(here, grad, here.channels(path), kernel, channels, _SIZES[path])
            for path, kernel in enumerate((small, large))
        ]

        def store(down: Array, total: Array, where: Array) -> None:
            here.store(out, down, total, channels, where)

        add_taps(tiles, terms, store)

    return _image(body, tiles, hidden_grad, width, "paths_x_grad")(hidden_grad, *_rows(paths, True))


@jax.jit
def _groups_grad(hidden: Array, grad: Array) -> list[Array]:
    """The gradients of the kernels of both halves: k * k rows of 2f."""
    width = grad.shape[-1] // 2
    tiles = _tiles(hidden, width, SUMS)

    def body(hidden: Any, places: Any, grad: Any, out: Any) -> None:
        here = tiles.here()
        half, term = lax.div(here.repeat, 2), lax.rem(here.repeat, 2)
        read = _channels_of_groups(here, places, half, term)
        _sum_one_size(here, half, hidden, read, grad, here.channels(half), out)

    images = hidden, _places(width), grad
    return _sums(body, tiles, hidden, 4 * width, "groups_grad")(*images)


@jax.jit
def _paths_grad(x: Array, hidden_grad: Array) -> list[Array]:
    """The gradients of the kernels of both paths: k * k rows of 2f."""
    tiles = _tiles(x, x.shape[-1], SUMS)

    def body(x: Any, grad: Any, out: Any) -> None:
        here = tiles.here()
        path = here.repeat
        _sum_one_size(here, path, x, here.channels(0), grad, here.channels(path), out)

    return _sums(body, tiles, x, 2 * x.shape[-1], "paths_grad")(x, hidden_grad)


def _places(width: int) -> np.ndarray:
    """By half: which of the 4f channels are the first of its groups, then which are the second."""
    halves = np.arange(2)[:, None] * width + np.arange(width)
    return np.concatenate(group_inputs(halves, 2 * width + halves), axis=-1, dtype=np.int32)


def _channels_of_groups(here: Here, places: Any, half: Array | int, term: Array | int) -> Array:
    """Which of the 4f channels are the first (or second) of the groups that a program computes."""
    # Beyond the groups none of them: a channel must not be meant twice, not even where masked.
    return here.load_row(places, half, here.channels(term), other=4 * here.tiles.unit)


def _rows(kernels: Any, turned: bool = False) -> list[Array]:
    """A row of channels for each tap; turned by half a circle, for the transposed convolution."""
    kernels = [kernel[::-1, ::-1] if turned else kernel for kernel in kernels]
    return [kernel.astype(jnp.float32).reshape(kernel.shape[0] ** 2, -1) for kernel in kernels]


def _tiles(x: Array, unit: int, elements: int) -> Tiles:
    _, height, width, _ = x.shape
    return Tiles.of(height, width, unit, 1, elements)


def _taps(here: Here, x: Any, channels: Array, kernel: Any, of_taps: Array, size: int) -> Taps:
    """Taps of some channels of a kernel on some channels of an image."""
    return Taps(
        size,
        lambda down, right: here.load(x, down, right, channels),
        lambda tap: here.load_row(kernel, tap, of_taps),
    )


def _store_relu(here: Here, out: Any, channels: Array, mask: Any = None) -> Any:
    def store(down: Array, total: Array, where: Array) -> None:
        if mask is not None:
            valid = here.load(mask, down, 0, jnp.zeros_like(channels), where) > 0
            total = jnp.where(valid, total, 0)
        # Not the maximum, which GPUs take to be 0 for a NaN.
        here.store(out, down, jnp.where(total <= 0, 0, total), channels, where)

    return store


def _sum_one_size(
    here: Here, number: Array, x: Any, read: Array, grad: Any, channels: Array, out: Any
) -> None:
    """Sums the taps of the kernel whose size has this number."""
    for index, size in enumerate(_SIZES):

        def compute(size: int = size) -> None:
            sum_taps(
                here.tiles,
                size,
                lambda down, right: here.load(x, down, right, read),
                lambda down, where: here.load(grad, down, 0, channels, where),
                lambda tap, total: here.store_sums(out, tap, total, here.channels(here.repeat)),
            )

        pl.when(number == index)(compute)


def _image(body: Any, tiles: Tiles, x: Array, channels: int, name: str) -> Any:
    """A kernel that computes an image with so many channels, like x in all else."""
    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((*x.shape[:3], channels), x.dtype),
        grid=tiles.grid(x.shape[0], channels),
        compiler_params=OPTIONS,
        name=f"mixed_scale_{name}",
    )


def _sums(body: Any, tiles: Tiles, x: Array, channels: int, name: str) -> Any:
    """A kernel that sums taps; half of the channels are of each size."""
    parts = tiles.parts(x.shape[0])
    summed = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((*parts, _MOST_TAPS, channels), jnp.float32),
        grid=tiles.grid(x.shape[0], channels),
        compiler_params=OPTIONS,
        name=f"mixed_scale_{name}",
    )

    def compute(*images: Array) -> list[Array]:
        small, large = jnp.split(jnp.sum(summed(*images), axis=(0, 1, 2)), 2, axis=-1)
        return [small[: _SIZES[0] ** 2], large]

    return compute

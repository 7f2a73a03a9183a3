"""Pixels to channels and back: their order, and that each is the gradient of the other."""

from __future__ import annotations

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from plain import normal, vjp

from drsformer_jax.ops.pixels import pixel_shuffle, pixel_unshuffle


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_unshuffle_orders_channels_by_channel_row_column(dtype, factor):
    x = jnp.arange(2 * 2 * 3 * 2 * factor**2, dtype=dtype).reshape(2, 2 * factor, 3 * factor, 2)
    y = pixel_unshuffle(x, factor)
    assert y.dtype == dtype
    assert y.shape == (2, 2, 3, 2 * factor**2)
    for channel, dy, dx in itertools.product(range(2), range(factor), range(factor)):
        place = (channel * factor + dy) * factor + dx
        np.testing.assert_array_equal(y[..., place], x[:, dy::factor, dx::factor, channel])


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_undoes_pixel_unshuffle_and_is_its_gradient(factor):
    x = normal(1, 2, factor, 2 * factor, 3, dtype="float32")
    small = normal(2, 2, 1, 2, 3 * factor**2, dtype="float32")
    unshuffle = functools.partial(pixel_unshuffle, factor=factor)
    y, (gradient,) = vjp(unshuffle, (x,), small)
    np.testing.assert_array_equal(pixel_shuffle(y, factor), x)
    np.testing.assert_array_equal(pixel_shuffle(small, factor), gradient)
    np.testing.assert_array_equal(unshuffle(pixel_shuffle(small, factor)), small)

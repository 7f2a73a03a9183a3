"""Convolutions tap by tap in plain jnp, and how far results and gradients are from each other."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

STEPS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""Largest relative errors of rounding."""


def conv(x, kernel, valid_mask=True, dilation=1):
    """Depthwise: kernel k k c and x b h w c, zero where not `valid_mask`."""
    halo = dilation * (kernel.shape[0] // 2)
    x = jnp.pad(jnp.where(valid_mask, x, 0), ((0, 0), (halo, halo), (halo, halo), (0, 0)))
    rows, columns = x.shape[1] - 2 * halo, x.shape[2] - 2 * halo
    taps = itertools.product(range(kernel.shape[0]), repeat=2)
    places = ((i, j, i * dilation, j * dilation) for i, j in taps)
    return sum(x[:, t : t + rows, s : s + columns] * kernel[i, j] for i, j, t, s in places)


def with_gradients(function, *arguments):
    """Leaves of the value, then of the gradients of a sum with fixed weights, as one program."""

    def run(*arguments):
        value, back = jax.vjp(function, *arguments)
        random = np.random.default_rng(7)
        cotangent = jax.tree.map(
            lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype), value
        )
        return jax.tree.leaves(value), jax.tree.leaves(back(cotangent))

    return jax.jit(run)(*arguments)


def difference(found, expected):
    """Largest difference in any array, over the largest value there; NaN where there is one."""
    leaves = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    wide = [(np.float64(f), np.float64(e)) for f, e in leaves]
    return np.max([np.abs(f - e).max() / max(np.abs(e).max(), 1e-30) for f, e in wide])


def together(arrays):
    """All values in one array."""
    return np.concatenate([np.ravel(np.float64(array)) for array in arrays])


def masks(batch, height, width):
    """Of images that differ in size: one loses half of its rows, the others two columns."""
    valid_mask = np.ones((batch, height, width, 1), bool)
    valid_mask[0, (height + 1) // 2 :] = False
    valid_mask[1:, :, -2:] = False
    return jnp.asarray(valid_mask)

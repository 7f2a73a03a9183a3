"""GDFN, the gated feed-forward network, as one operation (Restormer, CVPR 2022, section 3.2)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drsformer_jax.ops import implementations
from drsformer_jax.ops.depthwise import depthwise_conv, window_conv
from drsformer_jax.ops.linear import Affine, biased, linear, projected
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.strips import in_strips, rows_in_cache
from drsformer_jax.types import Array, Bool, Float


class GatedWeights(NamedTuple):
    """Of the convolutions of GDFN with f hidden channels a half, the gates first."""

    project_in: Affine
    """1x1 convolution; kernel c 2f."""
    depthwise: Affine
    """Kernel k k 2f."""
    project_out: Affine
    """1x1 convolution; kernel f c."""


def gated(
    x: Float[Array, "b h w c"],
    weights: GatedWeights,
    valid_mask: Bool[Array, "b h w 1"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b h w c"]:
    """One half of the hidden channels gates the other.

        gate, value = split(depthwise(project_in(x)))
        output = project_out(gelu(gate) * value)

    The GELU is the exact one. The backward pass of strips saves `x`, which has a fifth of the
    hidden channels, and the weights, and recomputes the rest.

    Args:
        x: images.
        weights: kernels and biases.
        valid_mask: True at the pixels of the images; default: everywhere. The convolution reads
            zeros at other pixels, and what the result has there means nothing.
        implementation: `whole` (convolutions of whole images), `strips` (of a few rows at a time),
            None or `pallas` (see `implementations.run`).
    """
    kernels = implementations.kernels_of(implementation)
    by_name: implementations.Implementations = {
        "whole": functools.partial(_whole, kernels),
        "strips": _strips,
    }
    return implementations.run_by_width("gated", by_name, implementation, x, weights, valid_mask)


def _whole(kernels: str | None, x: Array, weights: GatedWeights, valid_mask: Array | None) -> Array:
    into, depthwise, out = weights
    hidden = projected(x, into, valid_mask)
    both = biased(depthwise_conv(hidden, depthwise.kernel, 1, kernels), depthwise)
    return biased(linear(_product(both), out.kernel), out)


def _strips(x: Array, weights: GatedWeights, valid_mask: Array | None) -> Array:
    size, _, hidden = weights.depthwise.kernel.shape
    rows = rows_in_cache(x.shape[2], hidden)
    return in_strips(_strip, size // 2, rows, weights, zero_outside(x, valid_mask), valid_mask)


def _strip(
    weights: GatedWeights, x: Float[Array, "h w c"], valid_mask: Bool[Array, "h w 1"]
) -> Float[Array, "_ _ c"]:
    """A strip, see `strips.Chain`."""
    into, depthwise, out = weights
    hidden = projected(x, into, valid_mask, masked=True)
    both = biased(window_conv(hidden, depthwise.kernel, jnp.any(valid_mask)), depthwise)
    return biased(linear(_product(both), out.kernel), out)


def _product(both: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    """gelu(gate) * value, of gates and values that are concatenated along channels."""
    gate, value = jnp.split(both, 2, axis=-1)
    return jax.nn.gelu(gate, approximate=False) * value

"""MSFN, the mixed-scale feed-forward network, as one operation (DRSformer, CVPR 2023)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax.nn import relu

from drsformer_jax.ops import implementations
from drsformer_jax.ops.depthwise import depthwise_conv, grouped_conv
from drsformer_jax.ops.linear import biased, linear, projected
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.ops.mixed_scale_channels import (
    MixedScaleWeights,
    aligned_parts,
    group_inputs,
    part_weights,
    select,
    shared_place,
)
from drsformer_jax.ops.mixed_scale_strips import mixed_scale_in_strips
from drsformer_jax.types import Array, Bool, Float

LANES = 128
"""Channels of a TPU's vector."""


def mixed_scale(
    x: Float[Array, "b h w c"],
    weights: MixedScaleWeights,
    valid_mask: Bool[Array, "b h w 1"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "b h w c"]:
    """A 3x3 and a 5x5 path that exchange half of their channels, and then again.

                          +- depthwise 3x3, relu -> a1, a2 (f channels each)
        x - project_in 2f +
                          +- depthwise 5x5, relu -> b1, b2

        a1, b1 - grouped 3x3, relu -> f channels -+
                                                  + concat - project_out c
        a2, b2 - grouped 5x5, relu -> f channels -+

    Each grouped convolution has f groups of two channels (see `mixed_scale_channels`).

    One operation from one 1x1 convolution to the other, because that leaves the order of the
    hidden channels to each implementation. The backward pass of strips saves `x`, which has a fifth
    of the channels of the hidden images, and the weights, and recomputes those images.

    Args:
        x: images.
        weights: kernels and biases.
        valid_mask: True at the pixels of the images; default: everywhere. What the result has at
            other pixels means nothing.
        implementation: `whole` (convolutions of whole images), `aligned` (likewise, with hidden
            channels in full vectors of `LANES`), `strips` (of a few rows at a time), `triton`
            (`whole` by kernels for GPUs), None or `pallas` (see `implementations.run`).
    """
    kernels = implementations.kernels_of(implementation)
    by_name: implementations.Implementations = {
        "whole": functools.partial(_whole, kernels),
        "aligned": functools.partial(_aligned, kernels),
        "strips": mixed_scale_in_strips,
        "triton": functools.partial(_whole, "triton"),
    }
    return implementations.run_by_width(
        "mixed_scale", by_name, implementation, x, weights, valid_mask
    )


def _whole(
    kernels: str | None, x: Array, weights: MixedScaleWeights, valid_mask: Array | None
) -> Array:
    x = projected(x, weights.project_in, valid_mask)
    plain = functools.partial(_convolutions, kernels)
    unbiased = all(affine.bias is None for affine in weights[1:-1])
    mixed = implementations.run_fused(
        plain,
        _convolutions_by_kernels,
        kernels if unbiased else None,
        x.dtype,
        *(x, weights, valid_mask),
    )
    return projected(mixed, weights.project_out)


def _convolutions(
    kernels: str | None, x: Array, weights: MixedScaleWeights, valid_mask: Array | None
) -> Array:
    """What is between the two 1x1 convolutions."""
    both = [
        zero_outside(relu(biased(depthwise_conv(x, path.kernel, 1, kernels), path)), valid_mask)
        for path in (weights.depthwise3x3, weights.depthwise5x5)
    ]
    (a1, a2), (b1, b2) = (jnp.split(path, 2, axis=-1) for path in both)
    mixed = [
        relu(biased(grouped_conv(group_inputs(a, b), grouped.kernel, kernels), grouped))
        for a, b, grouped in ((a1, b1, weights.grouped3x3), (a2, b2, weights.grouped5x5))
    ]
    return jnp.concatenate(mixed, axis=-1)


def _convolutions_by_kernels(
    x: Array, weights: MixedScaleWeights, valid_mask: Array | None
) -> Array:
    """`_convolutions` without biases on GPUs."""
    from drsformer_jax.ops.mixed_scale_triton import mixed_convolutions

    kernels = [affine.kernel for affine in weights[1:-1]]
    return mixed_convolutions(x, tuple(kernels[:2]), tuple(kernels[2:]), valid_mask)


def _aligned(
    kernels: str | None, x: Array, weights: MixedScaleWeights, valid_mask: Array | None
) -> Array:
    """`_whole` with the channels of `aligned_parts`."""
    hidden = weights.grouped3x3.kernel.shape[-1]
    parts = aligned_parts(hidden, LANES // 2)
    arranged = part_weights(weights, parts)
    paths = []
    for path, depthwise in enumerate((weights.depthwise3x3, weights.depthwise5x5)):
        channels = np.concatenate([c for half in parts for c in half[path][:2]])
        into, kernel = select(weights.project_in, channels), select(depthwise, channels)
        y = projected(x, into, valid_mask)
        y = zero_outside(
            relu(biased(depthwise_conv(y, kernel.kernel, 1, kernels), kernel)), valid_mask
        )
        paths.append(jnp.split(y, 2, axis=-1))
    mixed = []
    for half, of_parts in zip(zip(*paths, strict=True), arranged, strict=True):
        small, large = (
            grouped_conv([path], part.grouped.kernel, kernels)
            for path, part in zip(half, of_parts, strict=True)
        )
        if (place := shared_place(hidden)) is not None:
            small += jnp.where(jnp.arange(small.shape[-1]) == place, large, 0)
        mixed += [relu(biased(y, p.grouped)) for y, p in zip((small, large), of_parts, strict=True)]
    project_out = jnp.concatenate([part.project_out for half in arranged for part in half])
    return biased(linear(jnp.concatenate(mixed, axis=-1), project_out), weights.project_out)

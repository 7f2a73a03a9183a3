"""Parameters, MACs and FLOPs of a network, counted from its configuration.

The rule is that of the published tables: a convolution or Linear counts a multiply-accumulate (MAC)
for each of its weights at each position, zero padding included; so do the products of the attention
(q k^T, and one with v for each softmax) and the mean that the gate of the MEFC reads. Norms,
softmax, pooling, activations and additions count nothing. Implementations may do less work than is
counted: products of small matrices are folded together, for instance.

DRSformer's own figure, 242.9 G, follows this rule. The 174.7 G that its paper gives for Restormer
do not: by the rule it has 154.88 G.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drsformer_jax.config import SIZE_MULTIPLE, ModelConfig
from drsformer_jax.errors import InputError
from drsformer_jax.nn.experts import DILATED_SIZES, EXPERTS, GATE_WIDTH, SEPARABLE_SIZES, STEPS


@dataclass(frozen=True)
class _Part:
    """A part of the network that works at one resolution."""

    level: int
    """Its images have sides of 1 / 2**level."""
    weights: int
    """Weights of convolutions: each is multiplied once per pixel."""
    products: int = 0
    """Multiplications per pixel without a weight."""
    once: int = 0
    """Weights that are multiplied once per image."""
    others: int = 0
    """Parameters whose multiplications and additions are not counted."""


def parameters(config: ModelConfig) -> int:
    """Number of trainable parameters."""
    return sum(part.weights + part.once + part.others for part in _parts(config))


def macs(config: ModelConfig, height: int = 256, width: int = 256) -> int:
    """MACs of restoring one image, by the rule of this module.

    Args:
        config: the network.
        height: height of the image in pixels, a multiple of 8.
        width: likewise.

    Raises:
        InputError: if a side is no multiple of 8.
    """
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or min(height, width) < 1:
        raise InputError(f"the image is {width}x{height}; expected multiples of {SIZE_MULTIPLE}")
    return sum(
        height * width // 4**part.level * (part.weights + part.products) + part.once
        for part in _parts(config)
    )


def training_operations(config: ModelConfig, crops: int, side: int) -> float:
    """FLOPs of a training step: two per MAC, and twice that for the backward pass.

    Args:
        config: the network.
        crops: number of crops in the batch.
        side: side of each in pixels, a multiple of 8.
    """
    return 6.0 * crops * macs(config, side, side)


def _parts(config: ModelConfig) -> Iterator[_Part]:
    dim, bias = config.dim, config.bias
    yield _Part(0, 9 * 3 * dim)  # patch_embed
    if config.encoder_level0 == "mefc":
        yield _mefc(dim)
    for level in range(4):
        channels, heads = config.channels(level), config.heads[level]
        encoder = decoder = _block(level, channels, heads, config)
        if level == 0:  # The last level of the decoder has twice the channels.
            decoder = _block(0, 2 * dim, heads, config)
        yield from [encoder] * config.blocks[level]
        if level < 3:
            yield from [decoder] * config.blocks[level]
            yield _Part(level, 9 * channels * channels // 2)  # down
            yield _Part(level + 1, 9 * 2 * channels * 4 * channels)  # up
        if level in (1, 2):
            yield _Part(level, 2 * channels * channels, others=bias * channels)  # reduce_chan
    if config.refinement == "mefc":
        yield _mefc(2 * dim)
    elif config.refinement == "blocks":
        yield from [_block(0, 2 * dim, config.heads[0], config)] * config.refinement_blocks
    yield _Part(0, 9 * 2 * dim * 3, others=bias * 3)  # output


def _block(level: int, channels: int, heads: int, config: ModelConfig) -> _Part:
    softmaxes = len(config.topk_fractions) if config.attention == "topk" else 1
    branch_weights = softmaxes if config.attention == "topk" else 0
    norms = 2 * channels * (2 if config.norm == "with_bias" else 1)
    hidden = config.hidden(channels)
    # Weights, and channels between the first and last convolution that biases are added to.
    weights, inner = {
        "msfn": (4 * channels * hidden + 4 * hidden * (9 + 25), 8 * hidden),
        "gdfn": (3 * channels * hidden + 2 * hidden * 9, 4 * hidden),
        "dfn": (2 * channels * hidden + hidden * 9, 2 * hidden),
        "fn": (2 * channels * hidden, hidden),
    }[config.feed_forward]
    return _Part(
        level,
        weights=3 * channels * (channels + 9) + channels * channels + weights,
        products=(1 + softmaxes) * channels * channels // heads,
        others=norms + heads + branch_weights + config.bias * (8 * channels + inner),
    )


def _mefc(channels: int) -> _Part:
    """All steps of the mixture of experts, with its gate."""
    separable = sum(2 * channels * (size**2 + channels) for size in SEPARABLE_SIZES)
    dilated = sum(channels * (size**2 + channels) for size in DILATED_SIZES)
    step = separable + dilated + EXPERTS * channels * channels
    return _Part(
        level=0,
        weights=channels * channels + STEPS * step,
        products=channels,
        once=GATE_WIDTH * (channels + STEPS * EXPERTS),
        others=GATE_WIDTH + STEPS * EXPERTS,
    )

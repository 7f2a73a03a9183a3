"""Parameters and multiplications are those of the network and of the published tables."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest
import recipe

from drsformer_jax.config import PRESETS
from drsformer_jax.errors import InputError
from drsformer_jax.nn.functional import abstract_params
from drsformer_jax.scoring.complexity import macs, parameters

# Blocks of 10 C^2 + 27 C: qkv 3 C^2, its 3x3 depthwise 27 C, q k^T and (softmax) v with one head
# C^2 each, projection C^2, feed-forward network twice C * 2 C.
SMALL = dataclasses.replace(recipe.SMALL, expansion=2.0)
SMALL_WORK = (
    # 3 -> 4, block of 4, 4 -> 2, block of 8, 8 -> 3
    64 * (9 * 3 * 4 + 268 + 9 * 4 * 2 + 856 + 9 * 8 * 3)
    # two blocks of 8, 16 -> 8 by 1x1, 8 -> 4, 8 -> 16
    + 16 * (2 * 856 + 16 * 8 + 9 * 8 * 4 + 9 * 8 * 16)
    # two blocks of 16, 32 -> 16 by 1x1, 16 -> 8, 16 -> 32
    + 4 * (2 * 2992 + 32 * 16 + 9 * 16 * 8 + 9 * 16 * 32)
    # block of 32, 32 -> 64
    + 1 * (11104 + 9 * 32 * 64)
)
# Sums of C^2 and of C over all blocks and the pixels of an 8x8 image that each works on.
SQUARES = 64 * (16 + 64) + 16 * (64 + 64) + 4 * (256 + 256) + 1024
CHANNELS = 64 * (4 + 8) + 16 * (8 + 8) + 4 * (16 + 16) + 32


@pytest.mark.parametrize(
    ("preset", "count", "giga"),
    [
        ("drsformer", 33_655_424, "242.99"),
        ("drsformer_no_mefc", 32_610_304, "175.37"),
        ("restormer", 26_126_644, "154.88"),
    ],
)
def test_presets_have_the_published_parameters_and_multiplications(preset, count, giga):
    assert parameters(PRESETS[preset]) == count
    assert f"{macs(PRESETS[preset]) / 1e9:.2f}" == giga


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, 0),
        ({"bias": True}, 0),
        ({"norm": "bias_free"}, 0),
        ({"dtype": "bfloat16", "remat": True}, 0),
        # 2 C^2 / heads in place of 2 C^2.
        ({"heads": (1, 2, 4, 8)}, -16 * 2 * 64 - 4 * 2 * 384 - 1792),
        ({"blocks": (2, 1, 1, 1)}, 64 * (268 + 856)),
        ({"blocks": (1, 1, 1, 3)}, 2 * 11104),
        # A product with v for each softmax.
        ({"attention": "topk"}, 3 * SQUARES),
        ({"attention": "topk", "topk_fractions": ("1/2",)}, 0),
        ({"topk_fractions": ("1/2", "1")}, 0),
        # Hidden channels 2 C, or int(2.66 C): 10, 21, 42, 85.
        ({"expansion": 2.66}, 64 * (16 + 80) + 16 * 160 + 4 * 640 + 2 * 32 * 21),
        # 3x3 depthwise on 2 C.
        ({"feed_forward": "dfn"}, 18 * CHANNELS),
        # C -> 4 C, 3x3 depthwise on 4 C, 2 C -> C.
        ({"feed_forward": "gdfn"}, 2 * SQUARES + 36 * CHANNELS),
        # C -> 4 C, 3x3 and 5x5 depthwise on 4 C, then pairs of channels to 2 C each, 4 C -> C.
        ({"feed_forward": "msfn"}, 4 * SQUARES + (36 + 100 + 36 + 100) * CHANNELS),
        # 1x1, and four times: depthwise sums of squared sizes 84 and 83, 11 + 8 1x1; mean; gate.
        ({"encoder_level0": "mefc"}, 64 * (16 + 4 * (251 * 4 + 19 * 16) + 4) + 64 * (4 + 32)),
        ({"refinement": "mefc"}, 64 * (64 + 4 * (251 * 8 + 19 * 64) + 8) + 64 * (8 + 32)),
        ({"refinement": "blocks", "refinement_blocks": 2}, 64 * 2 * 856),
        ({"refinement_blocks": 2}, 0),
    ],
    ids=str,
)
def test_multiplications_of_a_small_network_are_the_sum_over_its_layers(options, more):
    assert macs(dataclasses.replace(SMALL, **options), 8, 8) == SMALL_WORK + more


@pytest.mark.parametrize("name", PRESETS)
def test_work_grows_with_the_pixels_and_the_gates_cost_once(name):
    config = PRESETS[name]
    gates = 64 * (48 + 32) + 64 * (96 + 32) if config.encoder_level0 == "mefc" else 0
    work = macs(config, 8, 8) - gates
    assert macs(config, 16, 24) == 6 * work + gates
    assert macs(config) == macs(config, 256, 256)
    assert macs(config) == 1024 * work + gates


@pytest.mark.parametrize("feed_forward", ["msfn", "gdfn", "dfn", "fn"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "norm": "bias_free", "attention": "topk"},
        {"bias": True, "encoder_level0": "mefc", "heads": (1, 2, 4, 8), "expansion": 2.66},
        {"refinement": "mefc", "blocks": (2, 1, 3, 2), "attention": "topk", "dim": 6},
        {"refinement": "blocks", "attention": "topk", "topk_fractions": ("1/2", "1")},
    ],
    ids=str,
)
def test_parameters_are_those_of_the_network(feed_forward, options):
    config = dataclasses.replace(SMALL, feed_forward=feed_forward, **options)
    leaves = jax.tree.leaves(abstract_params(config))
    assert parameters(config) == sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (0, 8), (-8, -8)])
def test_a_size_that_the_network_does_not_take_is_rejected(height, width):
    with pytest.raises(
        InputError, match=f"^the image is {width}x{height}; expected multiples of 8$"
    ):
        macs(SMALL, height, width)

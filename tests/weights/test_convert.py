"""Official weights become ours and come back without a loss; the architecture is read off them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from recipe import FORWARD, Golden, load_small

from drsformer_jax.config import PRESETS, ModelConfig
from drsformer_jax.errors import InputError
from drsformer_jax.nn.functional import abstract_params, init_params
from drsformer_jax.weights.convert import (
    describe,
    from_torch,
    infer_config,
    params_from_torch,
    params_to_torch,
    to_torch,
)

SMALL = ModelConfig(dim=8, blocks=(1, 2, 1, 1), heads=(1, 2, 1, 2))
CUSTOM = {
    "other sizes": {"dim": 12, "blocks": (1, 2, 3, 4), "heads": (1, 2, 3, 6)},
    "experts before alone": {"refinement": "none"},
    "experts after alone": {"encoder_level0": "none"},
    "three blocks after": {"refinement": "blocks", "refinement_blocks": 3},
    "restormer with biases": {"attention": "dense", "feed_forward": "gdfn", "bias": True},
    "dfn": {"feed_forward": "dfn", "expansion": 4.0},
    "fn": {"feed_forward": "fn", "expansion": 1.0},
    "narrow": {"expansion": 0.5},
    "wide": {"expansion": 3.3},
    "nearly published": {"expansion": 2.7},
    "bias-free": {"norm": "bias_free", "expansion": 2.0},
}


@pytest.fixture(scope="module", params=FORWARD)
def golden(request) -> Golden:
    return load_small(request.param)


def shapes_of(state: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {key: value.shape for key, value in state.items()}


def empty_state(config: ModelConfig) -> dict[str, np.ndarray]:
    """An official state dict of zeros."""
    params = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config)
    )
    return params_to_torch(params, config)


def assert_same_network(found: ModelConfig, expected: ModelConfig) -> None:
    """All fields are equal, but the expansion only in the widths that it gives."""
    widths = [expected.channels(level) for level in range(4)]
    assert list(map(found.hidden, widths)) == list(map(expected.hidden, widths))
    ignored: dict[str, Any] = {"expansion": 1.0}
    if expected.refinement != "blocks":
        ignored["refinement_blocks"] = 1
    assert dataclasses.replace(found, **ignored) == dataclasses.replace(expected, **ignored)


def test_every_official_value_stands_in_exactly_one_place(golden):
    codes, coded = 0, {}
    for key, weight in golden.weights.items():
        coded[key] = np.arange(codes + 1, codes + 1 + weight.size, dtype=np.float32)
        coded[key] = coded[key].reshape(weight.shape)
        codes += weight.size
    assert codes < 2**24, "float32 does not tell the codes apart"
    leaves = jax.tree.leaves(params_from_torch(coded, golden.config()))
    found = np.concatenate([np.ravel(leaf) for leaf in leaves])
    np.testing.assert_array_equal(np.sort(found), np.arange(1, codes + 1))


def test_round_trip_gives_the_same_bits_under_the_same_keys(golden):
    params = params_from_torch(golden.weights, golden.config())
    back = params_to_torch(params, golden.config())
    assert back.keys() == golden.weights.keys()
    for key, weight in golden.weights.items():
        np.testing.assert_array_equal(back[key], weight, err_msg=key, strict=True)


def test_round_trip_the_other_way_gives_the_same_bits():
    params = init_params(SMALL, jax.random.key(0))
    back = params_from_torch(params_to_torch(params, SMALL), SMALL)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_conversion_keeps_double_precision():
    with jax.enable_x64(True):
        config = dataclasses.replace(SMALL, dtype="float64", param_dtype="float64")
        state = {key: value + 1 / 3 for key, value in empty_state(config).items()}
        back = params_to_torch(params_from_torch(state, config), config)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value.astype(np.float64), err_msg=key)


def test_architecture_is_read_off_the_golden_networks(golden):
    assert_same_network(infer_config(shapes_of(golden.weights)), golden.config())


@pytest.mark.parametrize("name", CUSTOM)
def test_architecture_is_read_off_other_networks(name):
    config = dataclasses.replace(SMALL, **CUSTOM[name])
    assert_same_network(infer_config(shapes_of(empty_state(config))), config)


@pytest.mark.parametrize("preset", ["drsformer", "drsformer_no_mefc", "restormer"])
def test_published_keys_are_read_as_their_preset_and_written_again(preset, official_shapes):
    shapes = official_shapes(preset)
    assert infer_config(shapes) == PRESETS[preset]
    assert shapes_of(empty_state(PRESETS[preset])) == shapes


def test_network_is_built_from_a_state_dict_alone(golden):
    model = from_torch(golden.weights)
    assert_same_network(model.config, golden.config())
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(model)),
        params_from_torch(golden.weights, golden.config()),
    )


def test_everything_that_does_not_fit_is_named_in_one_error():
    state = empty_state(SMALL)
    del state["latent.0.attn.attn3"], state["output.weight"]
    state["ghost.weight"] = np.zeros(3, np.float32)
    # Of 8 channels one broadcasts, and 48 values can be reshaped: neither may slip through.
    state["encoder_level1.0.norm1.body.bias"] = np.zeros(1, np.float32)
    state["encoder_level2.1.attn.qkv.weight"] = np.zeros((16, 48, 1, 1), np.float32)
    with pytest.raises(InputError) as error:
        params_from_torch(state, SMALL)
    message = str(error.value)
    assert "\n" not in message
    assert sorted(
        message.removeprefix("the checkpoint does not fit the network: ").split("; ")
    ) == [
        "encoder_level1.0.norm1.body.bias has shape (1,), expected (8,)",
        "encoder_level2.1.attn.qkv.weight has shape (16, 48, 1, 1), expected (48, 16, 1, 1)",
        "ghost.weight is not used",
        "latent.0.attn.attn3 is missing",
        "output.weight is missing",
    ]


def test_values_that_no_network_can_have_are_named():
    state = empty_state(SMALL)
    state["output.weight"] = state["output.weight"].astype(np.int64)
    with pytest.raises(InputError, match=r"output\.weight is int64, expected floating point$"):
        from_torch(state)
    state = empty_state(SMALL)
    state["output.weight"] = np.full_like(state["output.weight"], np.nan)
    state["latent.0.attn.attn3"] = np.array([np.inf])
    with pytest.raises(InputError, match=r"not finite; .* holds values that are not finite$"):
        from_torch(state)


def test_state_dict_is_found_bare_nested_and_prefixed():
    state = empty_state(SMALL)
    prefixed = {f"module.{key}": value for key, value in state.items()}
    other = {"params": {}, "params_ema": prefixed, "iteration": 5}
    for content in (state, prefixed, {"params": state}, other):
        assert to_torch(from_torch(content)).keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "nothing"),
        ({"epoch": 3, "state": {}}, "'epoch' (a int), 'state' (a dict)"),
        ({"params": 5}, "'params' (a int)"),
        ([1, 2], "a list"),
        ({i: i for i in range(9)}, "'0' (a int), '1' (a int), '2' (a int), '3' (a int), '4' (a int)"
         " and 4 more"),
    ],
)  # fmt: skip
def test_what_holds_no_state_dict_is_reported_in_one_line(content, found):
    with pytest.raises(InputError) as error:
        from_torch(content)
    assert str(error.value) == (
        f"the checkpoint holds {found}; expected a state dict of DRSformer or Restormer; save it "
        "alone with `torch.save({'params': model.state_dict()}, 'net.pth')`"
    )


def test_two_arrays_of_one_name_are_rejected():
    state = empty_state(SMALL)
    with pytest.raises(
        InputError, match=r"has output\.weight with and without _check.*module; exp"
    ):
        from_torch({**state, "module.output.weight": state["output.weight"]})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (PRESETS["drsformer_no_mefc"], "drsformer_no_mefc"),
        (
            dataclasses.replace(PRESETS["restormer"], dim=32, bias=True),
            "restormer, dim 32, bias True",
        ),
    ],
)
def test_network_is_described_by_its_preset_and_what_differs(config, text):
    assert describe(config) == text


def test_block_beyond_a_gap_in_the_numbers_is_named():
    state = empty_state(SMALL)
    for key in [key for key in state if key.startswith("encoder_level2.1.")]:
        state[key.replace("encoder_level2.1.", "encoder_level2.2.")] = state.pop(key)
    with pytest.raises(InputError) as error:
        from_torch(state)
    assert "encoder_level2.1.attn.temperature is missing" in str(error.value)
    assert "encoder_level2.2.attn.temperature is not used" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"encoder_level1.0.attn.temperature": None},
        {"latent.0.ffn.project_out.weight": None},
        {"encoder_level1.0.ffn.project_in.weight": None},
        {"patch_embed.proj.weight": ()},
        {"patch_embed.proj.weight": (7, 3, 3, 3)},
        {"encoder_level3.0.attn.temperature": (5, 1, 1)},
        {"latent.0.ffn.project_out.weight": (64, 640, 1, 1)},
    ],
    ids=str,
)
def test_hopeless_keys_are_rejected_in_one_line(change):
    shapes = {**shapes_of(empty_state(SMALL)), **change} if change else {"conv1.weight": (8, 3)}
    with pytest.raises(InputError) as error:
        infer_config({key: shape for key, shape in shapes.items() if shape is not None})
    assert "\n" not in str(error.value)
    assert "expected" in str(error.value)

"""The network against golden numbers, and what must hold for every network."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plain import equations
from recipe import FORWARD, Golden, load_small, relative_error

from drsformer_jax.config import PRESETS, ModelConfig
from drsformer_jax.nn.drsformer import Block
from drsformer_jax.nn.experts import ExpertCompensator
from drsformer_jax.nn.functional import abstract_params, apply, build, init_params
from drsformer_jax.nn.linear import initialize
from drsformer_jax.nn.stack import Stack
from drsformer_jax.ops import strips
from drsformer_jax.ops.implementations import NARROW, traced_for
from drsformer_jax.weights.convert import params_from_torch, params_to_torch

pytestmark = pytest.mark.usefixtures("one_platform")
ROOT = Path(__file__).parents[2]
COMPACT = ModelConfig(dim=4, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1))
BARE = dataclasses.replace(COMPACT, encoder_level0="none", refinement="none")


@pytest.fixture(scope="module")
def drsformer() -> Golden:
    return load_small("drsformer")


def run_stages(golden: Golden, config: ModelConfig) -> dict[str, jax.Array]:
    params = params_from_torch(golden.weights, config)
    x = jnp.asarray(golden["input"], config.param_dtype)
    return jax.jit(lambda params, x: build(config, params).stages(x))(params, x)


@pytest.mark.parametrize("variant", FORWARD)
@pytest.mark.parametrize(
    ("dtype", "stage_bound", "output_bound"),
    # The stages were stored in float32, the output in float64.
    [("float32", 1.5e-6, 1.5e-6), ("float64", 5e-8, 1e-13)],
)
def test_every_stage_and_the_output_equal_the_reference(variant, dtype, stage_bound, output_bound):
    golden = load_small(variant)
    with jax.enable_x64(dtype == "float64"):
        stages = run_stages(golden, golden.config(dtype))
    expected = golden.stages()
    assert expected.keys() <= stages.keys()
    errors = {name: relative_error(stages[name], value) for name, value in expected.items()}
    errors["all"] = relative_error(golden["input"] + np.asarray(stages["output"]), golden["output"])
    assert max(errors.values()) < stage_bound, errors
    assert errors["all"] < output_bound, errors


def test_golden_file_holds_every_stage(drsformer):
    model = build(drsformer.config(), params_from_torch(drsformer.weights, drsformer.config()))
    stages = jax.eval_shape(model.stages, drsformer["input"])
    assert {name: value.shape for name, value in drsformer.stages().items()} == {
        name: value.shape for name, value in stages.items()
    }


def test_images_of_a_batch_do_not_meet(drsformer):
    config = drsformer.config()
    params = params_from_torch(drsformer.weights, config)
    restore = jax.jit(lambda params, x: apply(config, params, x))
    image = drsformer["input"]
    other = np.random.default_rng(0).random(image.shape, np.float32) ** 2
    one = restore(params, np.concatenate([image, other]))
    two = restore(params, np.concatenate([other, image]))
    assert relative_error(one[:1], drsformer["output"]) < 1.5e-6
    assert relative_error(two[1:], drsformer["output"]) < 1.5e-6
    assert relative_error(two[:1], one[1:]) < 1.5e-6


def test_bfloat16_is_close_to_float32(drsformer):
    config = dataclasses.replace(drsformer.config(), dtype="bfloat16")
    stages = run_stages(drsformer, config)
    assert {value.dtype for value in stages.values()} == {jnp.dtype("bfloat16")}
    error = relative_error(stages["output"], drsformer.stages()["output"])
    assert 1e-3 < error < 0.04


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_output_has_the_type_of_the_input_and_parameters_stay_float32(dtype, given):
    config = dataclasses.replace(COMPACT, dtype=dtype)
    params = abstract_params(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), given)
    y = jax.eval_shape(lambda params, x: apply(config, params, x), params, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(
    ("preset", "count"),
    [("drsformer", 33_655_424), ("drsformer_no_mefc", 32_610_304), ("restormer", 26_126_644)],
)
def test_published_network_has_the_published_number_of_parameters(preset, count):
    params = abstract_params(PRESETS[preset])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_tiny_network_has_below_a_million_parameters():
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(PRESETS["tiny"])))
    assert 300_000 < count < 1_000_000


@pytest.mark.parametrize("preset", PRESETS)
def test_stages_of_every_preset_have_the_sizes_of_the_paper(preset):
    config = PRESETS[preset]
    x = jax.ShapeDtypeStruct((2, 40, 56, 3), "float32")
    stages = jax.eval_shape(
        lambda params, x: build(config, params).stages(x), abstract_params(config), x
    )
    levels = [(2, 40 >> n, 56 >> n, config.dim << n) for n in range(4)]
    expected = {
        "patch_embed": levels[0],
        "encoder_level1": levels[0],
        "down1_2": levels[1],
        "encoder_level2": levels[1],
        "down2_3": levels[2],
        "encoder_level3": levels[2],
        "down3_4": levels[3],
        "latent": levels[3],
        "up4_3": levels[2],
        "reduce_chan_level3": levels[2],
        "decoder_level3": levels[2],
        "up3_2": levels[1],
        "reduce_chan_level2": levels[1],
        "decoder_level2": levels[1],
        "up2_1": levels[0],
        "decoder_level1": (*levels[0][:3], 2 * config.dim),
        "output": x.shape,
    }
    if config.encoder_level0 != "none":
        expected["encoder_level0"] = levels[0]
    if config.refinement != "none":
        expected["refinement"] = expected["decoder_level1"]
    assert {name: value.shape for name, value in stages.items()} == expected


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (7, 7)])
def test_size_that_8_does_not_divide_is_rejected(size):
    x = jax.ShapeDtypeStruct((1, *size, 3), "float32")
    message = f"x is {size[0]}x{size[1]}; height and width must be multiples of 8"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda params, x: apply(BARE, params, x), abstract_params(BARE), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_products_of_float32_are_float32_on_every_hardware(dtype, differentiate):
    config = dataclasses.replace(COMPACT, dtype=dtype)

    def loss_of(params, x):
        return apply(config, params, x).mean()

    function = jax.grad(loss_of) if differentiate else loss_of
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    with traced_for(None):
        program = jax.make_jaxpr(function)(abstract_params(config), x)
    found = []
    for equation in equations(program.jaxpr):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            operands = {operand.aval.dtype.name for operand in equation.invars}
            precision = equation.params["precision"]
            # No request is the default too, unless a user asks for another one.
            found.append((operands, "DEFAULT" if precision is None else precision[0].name))
    assert len(found) > 50
    for operands, precision in found:
        assert precision == ("HIGHEST" if operands == {"float32"} else "DEFAULT"), operands
    if dtype == "float32":
        assert all(operands == {"float32"} for operands, _ in found)


@functools.cache
def equations_with(**fields):
    """Every equation of a network with these fields."""
    config = dataclasses.replace(COMPACT, **fields)
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    program = jax.make_jaxpr(functools.partial(apply, config))(abstract_params(config), x)
    return list(equations(program.jaxpr))


def test_remat_reaches_every_stage():
    found = {}
    for remat in (False, True):
        names = [equation.primitive.name for equation in equations_with(remat=remat)]
        found[remat] = names.count("checkpoint") + names.count("remat2") + names.count("remat")
    # Seven stages of blocks, and a mixture of experts at either end.
    assert found == {False: 0, True: 9}


def test_saved_convolutions_are_not_computed_again():
    def convolutions(**fields):
        config = dataclasses.replace(COMPACT, remat=True, kernels="xla", **fields)
        stack = Stack(Block(4, 1, config), 2, config)
        definition, params = nnx.split(stack)

        def loss(params, x):
            return jnp.sum(nnx.merge(definition, params)(x))

        gradient = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, jnp.ones((1, 5, 6, 4)))
        _, backward = (
            each.params["jaxpr"].jaxpr
            for each in equations(gradient.jaxpr)
            if each.primitive.name == "scan" and each.params["length"] == 2
        )
        names = [each.params.get("name") for each in equations(backward)]
        return names.count("_correlate")

    # Four of the MSFN and two of the attention, in each of which the gradient to x is one more.
    assert convolutions() - convolutions(save_convolutions=True) == 6


def test_strips_of_a_layer_that_is_computed_again_save_nothing_of_each(monkeypatch):
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", 1)  # 8 rows.
    count, layers = 5, 2
    config = dataclasses.replace(COMPACT, remat=True)
    definition, params = nnx.split(Stack(Block(4, 1, config), layers, config))

    def loss(params, x):
        return jnp.sum(nnx.merge(definition, params)(x))

    x = jnp.ones((1, 8 * count, NARROW, 4))
    with traced_for("cpu"):
        gradient = jax.make_jaxpr(jax.grad(loss))(params, x)
    loops = [each for each in equations(gradient.jaxpr) if each.primitive.name == "scan"]
    assert count in [loop.params["length"] for loop in loops]
    for loop in loops:
        stacked = loop.outvars[loop.params["num_carry"] :]
        assert loop.params["length"] != count or not stacked


def stage_of_blocks(config: ModelConfig) -> nnx.Module:
    stack = Stack(Block(4, 1, config), 2, config)
    initialize(stack, jax.random.key(0))
    return stack


def mixture_of_experts(config: ModelConfig) -> nnx.Module:
    mixture = ExpertCompensator(4, config)
    initialize(mixture, jax.random.key(0))
    return mixture


def test_unroll_reaches_every_stage():
    found = {}
    for unroll in (False, True):
        scans = [each for each in equations_with(unroll=unroll) if each.primitive.name == "scan"]
        found[unroll] = sum(each.params["unroll"] < each.params["length"] for each in scans)
    assert found[True] == 0 < found[False]


@pytest.mark.parametrize("make", [stage_of_blocks, mixture_of_experts])
@pytest.mark.parametrize("options", [("remat",), ("remat", "save_convolutions"), ("unroll",)])
def test_remat_and_unroll_keep_the_gradients(make, options):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 6, 4)), "float32")
    found = []
    for chosen in (False, True):
        config = dataclasses.replace(COMPACT, **dict.fromkeys(options, chosen))
        definition, params = nnx.split(make(config))

        def loss_of(params, x, definition=definition):
            return jnp.mean(nnx.merge(definition, params)(x) ** 2)

        found.append(nnx.to_pure_dict(jax.jit(jax.grad(loss_of))(params, x)))
    errors = jax.tree.map(relative_error, *found)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


def initial_weights(**fields) -> dict[str, np.ndarray]:
    """Initial parameters under official keys."""
    config = dataclasses.replace(COMPACT, blocks=(2, 1, 1, 1), **fields)
    return params_to_torch(init_params(config, jax.random.key(1)), config)


@pytest.mark.parametrize("fields", [{"bias": True}, {"feed_forward": "gdfn"}], ids=str)
def test_parameters_are_initialized_as_pytorch_does(fields):
    weights = initial_weights(**fields)
    for key, value in weights.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "temperature" or (".norm" in key and leaf == "weight"):
            np.testing.assert_array_equal(value, 1, err_msg=key)
        elif leaf.startswith("attn"):
            np.testing.assert_array_equal(value, np.float32(0.2), err_msg=key)
        elif ".norm" in key:
            np.testing.assert_array_equal(value, 0, err_msg=key)
        else:
            weight = weights[key.removesuffix(".bias") + ".weight"] if leaf == "bias" else value
            bound = 1 / np.sqrt(np.prod(weight.shape[1:]))
            assert np.abs(value).max() <= bound * (1 + 1e-6), key
            # Five standard errors of the mean and of the spread of as many uniform numbers.
            deviation = bound / np.sqrt(3)
            assert np.abs(value.mean()) < 5 * deviation / np.sqrt(value.size), key
            if value.size > 50:
                spread = np.sqrt(np.mean(value**2)) / deviation
                assert np.abs(spread - 1) < 5 * np.sqrt(0.2 / value.size), key


def test_initial_parameters_of_two_layers_differ():
    weights = initial_weights()
    first, second = (weights[f"encoder_level1.{n}.attn.qkv.weight"] for n in range(2))
    assert np.all(first != second)
    equal_shape = weights["decoder_level1.0.ffn.dwconv3x3.weight"]
    assert np.all(equal_shape != weights["decoder_level1.1.ffn.dwconv3x3.weight"])


def test_key_decides_the_initial_parameters():
    one, same, other = (init_params(BARE, jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernel = one["latent"]["layers"]["attn"]["qkv"]["kernel"]
    assert np.all(kernel != other["latent"]["layers"]["attn"]["qkv"]["kernel"])


def test_initial_parameters_of_a_seed_stay_the_same():
    # Otherwise a run could not be repeated from its configuration.
    params = init_params(BARE, jax.random.key(1))
    found = [
        params["decoder_level1"]["layers"]["attn"]["project_out"]["kernel"][0, 0, :3],
        params["latent"]["layers"]["attn"]["qkv"]["kernel"][0, 0, :3],
        params["up4_3"]["kernel"][2, 2, -1, -3:],
    ]
    expected = [
        [0.14327062666416168, -0.18750019371509552, 0.2247641682624817],
        [-0.019936176016926765, -0.09732330590486526, -0.10294009000062943],
        [0.04665379226207733, -0.03894996643066406, 0.04513055086135864],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def run_alone(program: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_network_runs_where_jax_and_flax_alone_are_installed():
    program = """
import sys

ABSENT = {
    "PIL", "array_record", "beartype", "clu", "drsformer_jax.data", "grain", "jaxtyping",
    "skimage", "tensorboardX", "tensorflow", "tensorflow_datasets", "tyro",
}

class Installed:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path = [Installed(finder) for finder in sys.meta_path]
import jax, numpy
from flax import nnx
from drsformer_jax.config import ModelConfig
from drsformer_jax.nn import DRSformer

config = ModelConfig(dim=2, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), encoder_level0="none",
                     refinement="none", topk_fractions=("1/2",))
model = DRSformer(config, rngs=nnx.Rngs(0))
y = jax.jit(lambda x: model(x))(numpy.ones((1, 8, 8, 3), "float32"))
print(y.shape, bool(jax.numpy.all(jax.numpy.isfinite(y))), ABSENT & sys.modules.keys())
"""
    assert run_alone(program).strip() == "(1, 8, 8, 3) True set()"


def test_importing_the_package_is_light():
    heavy = ("grain", "tensorflow_datasets", "tyro", "orbax", "tensorflow", "PIL", "skimage")
    program = f"import sys, drsformer_jax; print(sys.modules.keys() & set({heavy!r}))"
    assert run_alone(program).strip() == "set()"

"""Networks are read from every form they come in, and written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from drsformer_jax import weights
from drsformer_jax.config import MeshConfig, ModelConfig, TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.nn.functional import Params, abstract_params, apply, init_params
from drsformer_jax.restoring import Restorer
from drsformer_jax.sharding import make_mesh
from drsformer_jax.training import checkpoint, sharded_state
from drsformer_jax.training.checkpoint import Run
from drsformer_jax.weights.command import Convert
from drsformer_jax.weights.convert import params_from_torch, params_to_torch
from drsformer_jax.weights.tensor_files import read_tensors, write_pth, write_safetensors

TOPK = ModelConfig(
    dim=8, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), encoder_level0="none", refinement="none"
)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_loads_as(path, network):
    config, params = weights.load(path)
    assert config.architecture() == network[0].architecture()
    assert_equal(params, network[1])


def test_model_folder_gives_back_configuration_and_parameters(network, model):
    assert {path.name for path in model.iterdir()} == {"config.json", "params.safetensors"}
    config, params = weights.load(str(model))
    assert config == network[0]
    assert_equal(params, network[1])


@pytest.mark.parametrize("top", ["params", "params_ema"])
def test_official_pth_is_read_without_any_flag(network, tmp_path, top):
    config, params = network
    write_pth(tmp_path / "net.pth", params_to_torch(params, config), top)
    assert_loads_as(tmp_path / "net.pth", network)


def test_official_safetensors_with_the_prefix_of_several_gpus_is_read(network, tmp_path):
    config, params = network
    state = {f"module.{key}": value for key, value in params_to_torch(params, config).items()}
    write_safetensors(tmp_path / "net.safetensors", state)
    assert_loads_as(tmp_path / "net.safetensors", network)


def test_bfloat16_model_keeps_its_parameters_in_float32(network, tmp_path):
    config = dataclasses.replace(network[0], dtype="bfloat16")
    weights.save(tmp_path / "model", config, network[1])
    assert weights.load(tmp_path / "model")[0] == config


def test_nothing_is_written_where_something_stands(network, model):
    before = (model / "params.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"small is there already; expected the name of a new"):
        weights.save(model, *network)
    assert (model / "params.safetensors").read_bytes() == before


def test_failing_halfway_leaves_nothing(network, tmp_path):
    config, params = network
    with pytest.raises(InputError, match=r"output\.kernel is object"):
        weights.save(tmp_path / "model", config, {**params, "output": {"kernel": object()}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; expected a train"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
        (lambda folder: (folder / "params.safetensors").write_bytes(b"x" * 99), "params.safeten"),
    ],
)
def test_damaged_model_folder_is_reported_in_one_line(network, tmp_path, damage, message):
    weights.save(tmp_path / "model", *network)
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message) as error:
        weights.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_all_that_differs_from_the_configuration_beside_it_is_named(network, tmp_path):
    weights.save(tmp_path / "model", *network)
    path = tmp_path / "model" / "params.safetensors"
    stored = dict(read_tensors(path))
    del stored["output.kernel"]
    stored["ghost"] = np.zeros(2, np.float32)
    stored["patch_embed.kernel"] = np.zeros((3, 3, 3, 5), np.float32)
    write_safetensors(path, stored)
    with pytest.raises(InputError) as error:
        weights.load(tmp_path / "model")
    assert str(error.value).endswith(
        "does not fit the config.json beside it: output.kernel is missing; ghost is not used; "
        "patch_embed.kernel has shape (3, 3, 3, 5), expected (3, 3, 3, 4)"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv.weight": np.zeros(3, np.float32)},
            r"net\.pth: patch_embed\.proj\.weight is missing among 'conv\.weight'; expected",
        ),
        ({}, r"net\.pth: the checkpoint holds 'params' \(a dict\); expected a state dict of DRS"),
    ],
)
def test_file_of_another_network_is_reported_in_one_line(tmp_path, content, message):
    write_pth(tmp_path / "net.pth", content)
    with pytest.raises(InputError, match=message):
        weights.load(tmp_path / "net.pth")


def test_bomb_that_claims_a_huge_network_is_rejected_before_memory_is_asked_for(tmp_path):
    torch = pytest.importorskip("torch")
    shapes = {
        "patch_embed.proj.weight": (10**5, 3, 3, 3),
        "encoder_level1.0.ffn.project_in.weight": (10**6, 10**5, 1, 1),
    }
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    torch.save(state, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match=r"bomb\.pth: it claims 100,002,700,000 elements in"):
        weights.load(tmp_path / "bomb.pth")


@pytest.fixture
def wide(network) -> tuple[ModelConfig, Params]:
    """The small network in float64, with values that float32 has not."""
    config = dataclasses.replace(network[0], dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        return config, jax.tree.map(lambda leaf: leaf.astype("float64") / 3, network[1])


def test_float64_network_keeps_its_bits_and_leaves_jax_in_float32(network, wide, tmp_path):
    config, params = wide
    weights.save(tmp_path / "model", config, params)
    found, loaded = weights.load(tmp_path / "model")
    assert found == config
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded)} == {"float64"}
    assert_equal(loaded, params)
    back = params_from_torch(params_to_torch(loaded, config), config)
    assert_equal(back, params)
    assert not jax.config.jax_enable_x64
    assert jax.numpy.ones(3, float).dtype == "float32"


def test_float64_network_restores_in_float64_whatever_was_asked_before(wide, tmp_path):
    image = np.random.default_rng(0).integers(0, 2**16, (64, 64, 3), np.uint16)
    abstract_params(wide[0])  # Outside of x64, which must not be what is cached for inside it.
    with jax.enable_x64(True):
        exact = apply(*wide, jax.numpy.float64(image[None]) / 65535)[0]
        assert exact.dtype == "float64"
        expected = np.rint(np.clip(np.asarray(exact), 0, 1) * 65535)
    weights.save(tmp_path / "model", *wide)
    np.testing.assert_array_equal(Restorer.load(tmp_path / "model")(image), expected)
    narrow = Restorer.load(tmp_path / "model", dtype="float32")(image)
    assert np.any(narrow != expected), "the image does not tell the types apart"
    assert "f32" in str(jax.make_jaxpr(lambda x: x * 2)(np.float64(1))), "JAX was left in float64"


FRACTIONS = ("1/2", "1", "3/5", "1/3")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("fractions", [FRACTIONS, FRACTIONS[:2]])
def test_topk_fractions_pass_through_an_official_file(suffix, fractions, tmp_path):
    config = dataclasses.replace(TOPK, topk_fractions=fractions)
    params = init_params(config, jax.random.key(0))
    weights.save(tmp_path / "model", config, params)
    file = tmp_path / f"net{suffix}"
    with pytest.warns(UserWarning, match=r"topk_fractions are 1/2 1.*, which .* notes for drsf"):
        Convert(tmp_path / "model", file, to_torch=True).run()
    found, loaded = weights.load(file)
    assert found.topk_fractions == fractions
    assert_equal(loaded, params)
    if suffix == ".pth":
        torch = pytest.importorskip("torch")
        content = torch.load(file, weights_only=True)
        assert content["params"].keys() == params_to_torch(params, config).keys()


def test_topk_fractions_that_a_state_dict_lacks_can_be_given_and_are_never_guessed():
    config = dataclasses.replace(TOPK, topk_fractions=FRACTIONS[:2])
    state = params_to_torch(init_params(config, jax.random.key(0)), config)
    assert weights.from_torch(state, FRACTIONS[:2]).config.topk_fractions == FRACTIONS[:2]
    with pytest.raises(InputError, match=r"has 2 branches for top-k fractions .*; expected a fr"):
        weights.from_torch(state)
    with pytest.raises(InputError, match="the note drsformer_jax is damaged"):
        weights.from_torch({"params": state, "drsformer_jax": "{}"})


def test_published_network_is_written_without_a_note(network, tmp_path):
    weights.save(tmp_path / "model", *network)
    Convert(tmp_path / "model", tmp_path / "net.pth", to_torch=True).run()
    assert read_tensors(tmp_path / "net.pth").keys() == {"params"}


@pytest.fixture(scope="module")
def scored_run(network, tmp_path_factory) -> Path:
    """A run of three checkpoints, of which the second has the best score."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(model=network[0])
    state = sharded_state(config, make_mesh(MeshConfig(data=1)), network[1])
    with Run(folder, keep=3) as run:
        run.begin(config, 0)
        for step, psnr in ((1, 20.0), (2, 30.0), (3, 25.0)):
            params = jax.tree.map(lambda leaf, step=step: leaf * step, state.params)
            run.save(config, state._replace(step=jax.numpy.int32(step), params=params))
            run.score(step, config.protocol, psnr, 0.9)
    return folder


def test_best_checkpoint_of_a_run_is_loaded_not_the_latest(scored_run, network):
    twice = jax.tree.map(lambda leaf: leaf * 2, network[1])
    assert_equal(weights.load(scored_run)[1], twice)
    assert_equal(checkpoint.load(scored_run)[1], twice)


def test_folder_of_a_checkpoint_is_that_step_of_its_run(scored_run, network, monkeypatch):
    thrice = jax.tree.map(lambda leaf: leaf * 3, network[1])
    assert_equal(weights.load(scored_run, 3)[1], thrice)
    assert_equal(weights.load(scored_run / "checkpoints" / "3")[1], thrice)
    assert_equal(weights.load(scored_run / "checkpoints" / "3", 3)[1], thrice)
    with pytest.raises(InputError, match=r"beside step 2; expected --checkpoint RUN --step N$"):
        weights.load(scored_run / "checkpoints" / "3", 2)
    monkeypatch.chdir(scored_run)
    assert weights.run_of("checkpoints/3") == (Path("."), 3)
    monkeypatch.chdir(scored_run / "checkpoints")
    assert weights.run_of("3") == (scored_run, 3)
    assert weights.run_of("4") == (Path("4"), None)


def test_run_is_resumed_beside_what_a_killed_conversion_left(scored_run, network):
    left = scored_run / ".0123.temporary"
    left.mkdir()
    (left / "params.safetensors").touch()
    with Run(scored_run, keep=3) as run:
        run.begin(TrainConfig(model=network[0]), 3)
    assert not left.exists()


def test_what_is_missing_or_has_no_steps_is_reported_in_one_line(model, tmp_path):
    with pytest.raises(InputError, match=r"x does not exist; expected a run, a model"):
        weights.load(tmp_path / "x")
    with pytest.raises(InputError, match="small is no training run; expected one to take step 3"):
        weights.load(model, step=3)
    with pytest.raises(InputError, match=r"has no config\.json"):
        weights.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="has neither checkpoints/ nor params"):
        weights.load(tmp_path)


def test_builtin_names_the_network_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(weights.__file__).parents[1] / "pretrained"
    (config, params), (expected, tensors) = weights.load("builtin"), weights.load(folder)
    assert config == expected
    assert_equal(params, tensors)
    with pytest.raises(InputError, match=r"^builtin is no training run; expected one to take"):
        weights.load(Path("builtin"), step=3)


def test_a_file_called_builtin_is_read_where_there_is_one(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights.save("builtin", *network)
    assert_loads_as("builtin", network)
    assert weights.load()[0] != network[0]  # What is meant without a name has no name.


def test_weight_beyond_a_smaller_type_is_rejected():
    params = {"kernel": np.array([1.0, -70000.0], np.float32)}
    assert weights.stored_as(params, "bfloat16")["kernel"].dtype == "bfloat16"
    with pytest.raises(InputError, match=r"^a weight is 70000; expected all to be within float16$"):
        weights.stored_as(params, "float16")

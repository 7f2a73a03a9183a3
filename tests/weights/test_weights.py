"""Networks are read from every form they come in, and written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from drsformer_jax import weights
from drsformer_jax.errors import InputError
from drsformer_jax.weights.convert import params_to_torch
from drsformer_jax.weights.tensor_files import read_tensors, write_pth, write_safetensors


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
def test_damaged_model_folder_is_told_in_one_line(network, tmp_path, damage, message):
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
            r"net\.pth: patch_embed\.proj\.weight is missing; expected",
        ),
        ({}, r"net\.pth: the checkpoint holds 'params'; expected a state dict, bare or under"),
    ],
)
def test_file_of_another_network_is_told_in_one_line(tmp_path, content, message):
    write_pth(tmp_path / "net.pth", content)
    with pytest.raises(InputError, match=message):
        weights.load(tmp_path / "net.pth")


def test_bomb_that_claims_a_huge_network_is_refused_before_memory_is_asked_for(tmp_path):
    torch = pytest.importorskip("torch")
    shapes = {
        "patch_embed.proj.weight": (10**5, 3, 3, 3),
        "encoder_level1.0.ffn.project_in.weight": (10**6, 10**5, 1, 1),
    }
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    torch.save(state, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match=r"bomb\.pth: it claims 100,002,700,000 numbers in"):
        weights.load(tmp_path / "bomb.pth")


def test_float64_network_is_read_in_float64(network, tmp_path):
    with jax.enable_x64(True):
        config = dataclasses.replace(network[0], dtype="float64", param_dtype="float64")
        params = jax.tree.map(lambda leaf: leaf.astype("float64") / 3, network[1])
        weights.save(tmp_path / "model", config, params)
    script = (
        "import sys, jax; from drsformer_jax import weights; "
        "print({str(leaf.dtype) for leaf in jax.tree.leaves(weights.load(sys.argv[1])[1])})"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "model")]
    assert subprocess.check_output(command, text=True) == "{'float64'}\n"


def test_what_is_missing_or_has_no_steps_is_told_in_one_line(model, tmp_path):
    with pytest.raises(InputError, match=r"x does not exist; expected a run, a model"):
        weights.load(tmp_path / "x")
    with pytest.raises(InputError, match="small is no training run; expected one to take step 3"):
        weights.load(model, step=3)
    with pytest.raises(InputError, match=r"has no config\.json"):
        weights.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="has neither checkpoints/ nor params"):
        weights.load(tmp_path)


def test_weight_beyond_a_smaller_type_is_refused():
    params = {"kernel": np.array([1.0, -70000.0], np.float32)}
    assert weights.stored_as(params, "bfloat16")["kernel"].dtype == "bfloat16"
    with pytest.raises(InputError, match=r"^a weight is 70000; expected all to be within float16$"):
        weights.stored_as(params, "float16")

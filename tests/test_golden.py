"""Published networks at full size against the official numbers: `pytest -m golden`."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipe import Golden, load, relative_error
from steps import ShardedStep

from drsformer_jax import weights
from drsformer_jax.config import PRESETS, MeshConfig, TrainConfig
from drsformer_jax.nn.functional import apply
from drsformer_jax.training import TrainState
from drsformer_jax.weights.convert import from_torch, params_from_torch, params_to_torch

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("preset", ["drsformer", "drsformer_no_mefc", "restormer"])
def test_every_stage_and_the_output_equal_the_official_network(preset, shared, official_shapes):
    path = shared / "golden" / f"{preset}.npz"
    golden = load(path, PRESETS[preset].architecture(), official_shapes(preset))
    model = from_torch(golden.weights)
    assert model.config == PRESETS[preset]
    stages = jax.jit(model.stages)(jnp.asarray(golden["input"]))
    assert golden.stages().keys() == stages.keys()
    errors = {name: relative_error(stages[name], value) for name, value in golden.stages().items()}
    errors["all"] = relative_error(golden["input"] + stages["output"], golden["output"])
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("preset", ["drsformer", "drsformer_no_mefc", "restormer"])
def test_official_file_is_converted_there_and_back(preset, shared, official_shapes, tmp_path):
    torch = pytest.importorskip("torch")
    path = shared / "golden" / f"{preset}.npz"
    golden = load(path, PRESETS[preset].architecture(), official_shapes(preset))
    tensors = {key: torch.from_numpy(weight) for key, weight in golden.weights.items()}
    torch.save({"params": tensors}, tmp_path / "official.pth")

    def convert(*arguments: object) -> str:
        command = [sys.executable, "-m", "drsformer_jax", "convert", *map(str, arguments)]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout

    said = convert(tmp_path / "official.pth", tmp_path / "model")
    assert f"is {preset}, {sum(w.size for w in golden.weights.values()):,} parameters" in said
    config, params = weights.load(tmp_path / "model")
    restored = jax.jit(apply, static_argnums=0)(config, params, jnp.asarray(golden["input"]))
    assert relative_error(restored, golden["output"]) < 1e-5
    convert("--to-torch", tmp_path / "model", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth")["params"]
    # These keys and shapes, no more and no fewer, are what load_state_dict(strict=True) asks for.
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


@pytest.fixture(scope="module")
def golden(shared, official_shapes) -> Golden:
    path = shared / "golden" / "drsformer_train.npz"
    return load(path, PRESETS["drsformer"].architecture(), official_shapes("drsformer"))


def take_steps(
    golden: Golden, dtype: str, count: int, devices: int = 1
) -> tuple[TrainState, list[dict]]:
    """Takes some steps on the golden batch; the last state, and every step's metrics."""
    config = TrainConfig(model=golden.config(dtype), mesh=MeshConfig(data=devices))
    batch = {"rainy": golden["input"].astype(dtype), "clean": golden["target"].astype(dtype)}
    sharded = ShardedStep(config)
    state = sharded.state(params_from_torch(golden.weights, config.model))
    metrics = []
    for _ in range(count):
        state, scalars = sharded.step(state, batch)
        metrics.append(jax.device_get(scalars))
    return state, metrics


@pytest.mark.parametrize("devices", [1, 8])
def test_four_float64_steps_equal_the_official_program(devices, golden):
    with jax.enable_x64(True):
        _, metrics = take_steps(golden, "float64", 4, devices)
    losses = [scalars["loss"] for scalars in metrics]
    norms = [scalars["grad_norm"] for scalars in metrics]
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-6)
    np.testing.assert_allclose(norms, golden["total_grad_norms"], rtol=1e-6)


def test_first_float32_step_equals_the_official_program(golden):
    state, metrics = take_steps(golden, "float32", 1)
    total = golden["total_grad_norms"][0]
    np.testing.assert_allclose(metrics[0]["loss"], golden["losses"][0], rtol=1e-5)
    np.testing.assert_allclose(metrics[0]["grad_norm"], total, rtol=1e-4)
    # Adam's running mean holds a tenth of the gradient clipped to a norm of 0.01.
    ((_, mean),) = optax.tree.get_all_with_path(state.opt_state, "mu")
    gradients = params_to_torch(mean, golden.config())
    scale = metrics[0]["grad_norm"] / 0.01 / 0.1
    norms = np.array([np.linalg.norm(gradients[key]) for key in golden["grad_norm_keys"]]) * scale
    assert len(norms) == len(gradients)
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-3, atol=1e-5 * total)

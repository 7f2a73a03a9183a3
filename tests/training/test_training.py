"""The first optimizer steps against a reference, and what a step must do with any batch."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipe import SMALL, Golden, load_small
from steps import OFFICIAL_RATES, ShardedStep

from drsformer_jax.config import MeshConfig, OptimConfig, TrainConfig
from drsformer_jax.nn.functional import Params, init_params
from drsformer_jax.ops.implementations import jit_for
from drsformer_jax.sharding import make_mesh
from drsformer_jax.training import TrainState, abstract_state, compiled_step
from drsformer_jax.training.optim import lr_schedule, make_optimizer
from drsformer_jax.training.step import _loss_and_grads
from drsformer_jax.weights.convert import params_from_torch, params_to_torch


# The official schedule at a few numbers of updates done.
@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_small("train")


@pytest.fixture(scope="module")
def double(golden):
    """The golden steps in float64: their program, what they start with and their batch."""
    with jax.enable_x64(True):
        return start(golden, "float64")


def start(golden: Golden, dtype: str) -> tuple[ShardedStep, Params, dict[str, np.ndarray]]:
    config = TrainConfig(model=golden.config(dtype))
    batch = {"rainy": golden["input"].astype(dtype), "clean": golden["target"].astype(dtype)}
    return ShardedStep(config), params_from_torch(golden.weights, config.model), batch


@pytest.fixture(scope="module")
def double_start(double):
    """The state before the first step, in the host's memory, which no step consumes."""
    sharded, params, _ = double
    with jax.enable_x64(True):
        return jax.device_get(sharded.state(params))


@pytest.fixture(scope="module")
def double_steps(double, double_start):
    """Four steps in float64: the states after each, and their metrics."""
    sharded, _, batch = double
    with jax.enable_x64(True):
        state = sharded.copied(double_start)
        states, metrics = [], []
        for _ in range(4):
            state, scalars = sharded.step(state, batch)
            metrics.append(jax.device_get(scalars))
            states.append(jax.device_get(state))  # The next step consumes it.
    return states, metrics


def adam_mean(state: TrainState) -> Params:
    """The running mean of the clipped gradients."""
    ((_, mean),) = optax.tree.get_all_with_path(state.opt_state, "mu")
    return mean


@pytest.fixture(scope="module")
def first_gradients(golden, double_steps):
    """Gradients of the first step before clipping, out of Adam's mean of the clipped ones."""
    states, metrics = double_steps
    scale = metrics[0]["grad_norm"] / OptimConfig.clip_norm / (1 - OptimConfig.b1)
    return jax.tree.map(lambda leaf: leaf * scale, adam_mean(states[0]))


def test_four_steps_equal_the_reference(golden, double_steps):
    _, metrics = double_steps
    losses = [scalars["loss"] for scalars in metrics]
    norms = [scalars["grad_norm"] for scalars in metrics]
    # PyTorch clips to 0.01 / (norm + 1e-6) of the gradient, optax to 0.01 / norm: 1e-10 by eps.
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-9)
    np.testing.assert_allclose(norms, golden["total_grad_norms"], rtol=1e-9)
    np.testing.assert_allclose(losses[0], golden["losses"][0], rtol=1e-14)
    np.testing.assert_allclose(norms[0], golden["total_grad_norms"][0], rtol=1e-13)
    assert [scalars["learning_rate"] for scalars in metrics] == [3e-4] * 4
    assert [int(state.step) for state in double_steps[0]] == [1, 2, 3, 4]


def test_reference_leaves_the_range_that_a_clamp_would_keep(golden):
    assert golden["output"].min() < 0
    assert golden["output"].max() > 1


def test_gradient_of_every_official_key_has_the_norm_of_the_reference(golden, first_gradients):
    with jax.enable_x64(True):
        gradients = params_to_torch(first_gradients, golden.config("float64"))
    norms = [np.linalg.norm(gradients[key]) for key in golden["grad_norm_keys"]]
    assert len(norms) == len(gradients) == len(golden.weights)
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-9, atol=1e-14)


@pytest.fixture(scope="module")
def second_loss(double, double_start, first_gradients):
    """Loss of the second step, had an optimizer of this configuration made the first."""

    sharded, initial, batch = double
    # In one array: its arithmetic does not know the tree, and compiles in no time.
    leaves, tree = jax.tree.flatten(jax.device_get(initial))
    flat, gradients = (
        np.concatenate([leaf.ravel() for leaf in each])
        for each in (leaves, jax.tree.leaves(first_gradients))
    )
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def run(optim: OptimConfig) -> float:
        with jax.enable_x64(True):
            optimizer = make_optimizer(optim)
            updates, _ = optimizer.update(gradients, optimizer.init(flat), flat)
            pieces = np.split(np.asarray(optax.apply_updates(flat, updates)), ends)
            shaped = (piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True))
            state = double_start._replace(params=jax.tree.unflatten(tree, shaped))
            _, metrics = sharded.step(sharded.copied(state), batch)
            return float(metrics["loss"])

    return run


def test_optimizer_alone_makes_the_first_step(golden, second_loss):
    assert math.isclose(second_loss(OptimConfig()), golden["losses"][1], rel_tol=2e-10)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 3.001e-4},
        {"eps": 1.1e-8},
        {"weight_decay": 0.9e-4},
        {"weight_decay": 0.0},
        {"clip_norm": 0.011},
        {"clip_norm": 1e6},
    ],
    ids=str,
)
def test_changed_constant_breaks_the_agreement(change, golden, second_loss):
    loss = second_loss(dataclasses.replace(OptimConfig(), **change))
    assert not math.isclose(loss, golden["losses"][1], rel_tol=1e-9)


@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
def test_optimizer_is_adamw_on_clipped_gradients(clip_norm):
    config = OptimConfig(
        learning_rate=0.1,
        final_learning_rate=0.01,
        constant_steps=2,
        cosine_steps=3,
        b1=0.8,
        b2=0.95,
        eps=1e-3,
        weight_decay=0.3,
        clip_norm=clip_norm,
    )
    rng = np.random.default_rng(0)
    expected = {"a": rng.standard_normal(3), "b": rng.standard_normal((2, 2))}
    mean = {name: np.zeros_like(value) for name, value in expected.items()}
    square = {name: np.zeros_like(value) for name, value in expected.items()}
    rates = [0.1, 0.1, 0.1, 0.0775, 0.0325, 0.01, 0.01]
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, expected)
        optimizer = make_optimizer(config)
        state = optimizer.init(params)
        for step, rate in enumerate(rates):
            gradients = {
                n: rng.standard_normal(v.shape) * 10 ** (step - 3) for n, v in mean.items()
            }
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            norm = math.sqrt(sum(np.sum(value**2) for value in gradients.values()))
            for name, value in expected.items():
                clipped = gradients[name] * min(1, clip_norm / norm)
                mean[name] = 0.8 * mean[name] + 0.2 * clipped
                square[name] = 0.95 * square[name] + 0.05 * clipped**2
                corrected = np.sqrt(square[name] / (1 - 0.95 ** (step + 1)))
                change = mean[name] / (1 - 0.8 ** (step + 1)) / (corrected + 1e-3)
                expected[name] = value - rate * (change + 0.3 * value)
            for name, value in expected.items():
                np.testing.assert_allclose(params[name], value, rtol=1e-12)


@pytest.mark.parametrize(("updates", "rate"), OFFICIAL_RATES.items())
def test_learning_rate_is_the_official_one(updates, rate):
    with jax.enable_x64(True):
        found = float(lr_schedule(OptimConfig())(updates))
    assert math.isclose(found, rate, rel_tol=1e-12)


def test_learning_rate_stays_at_its_final_value():
    with jax.enable_x64(True):
        assert math.isclose(lr_schedule(OptimConfig())(10**6), 1e-6, rel_tol=1e-12)


def test_learning_rate_rises_linearly_over_the_warm_up():
    config = OptimConfig(learning_rate=0.8, constant_steps=6, cosine_steps=10, warmup_steps=4)
    rates = [float(lr_schedule(config)(updates)) for updates in range(6)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)


def test_cosine_alone_begins_at_once_and_is_damped_by_the_warm_up():
    config = OptimConfig(
        learning_rate=1.0, final_learning_rate=0.0, constant_steps=0, cosine_steps=8
    )
    cosine = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(10)]
    cosine[9] = 0.0
    found = [float(lr_schedule(config)(step)) for step in range(10)]
    np.testing.assert_allclose(found, cosine, rtol=1e-5, atol=1e-7)
    warmed = lr_schedule(dataclasses.replace(config, warmup_steps=2))
    np.testing.assert_allclose(
        [float(warmed(step)) for step in range(3)], [0.5, cosine[1], cosine[2]], rtol=1e-5
    )


def test_first_float32_gradient_is_close_and_black_images_do_not_break_it(golden):
    sharded, params, batch = start(golden, "float32")

    # Without the optimizer, which takes a third of a step's time to compile.
    def run(params: Params, rainy: jax.Array, clean: jax.Array) -> tuple[jax.Array, ...]:
        loss, grads = _loss_and_grads(sharded.config, sharded.mesh, params, rainy, clean)
        return loss, optax.tree.norm(grads), jax.flatten_util.ravel_pytree(grads)[0]

    gradient = jit_for("cpu", run)
    loss, norm, _ = gradient(params, batch["rainy"], batch["clean"])
    assert math.isclose(loss, golden["losses"][0], rel_tol=1e-5)
    assert math.isclose(norm, golden["total_grad_norms"][0], rel_tol=1e-4)
    _, norm, grads = gradient(params, np.zeros_like(batch["rainy"]), batch["clean"])
    assert np.isfinite(norm)
    # In one array, as above: the optimizer does not know the tree.
    optimizer = make_optimizer(sharded.config.optim)
    state = optimizer.update(grads, optimizer.init(grads), grads)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_mixed_precision_keeps_parameters_optimizer_and_loss_in_float32():
    config = TrainConfig(model=dataclasses.replace(SMALL, dim=2, dtype="bfloat16"))
    mesh = make_mesh(MeshConfig(data=1))
    batch = {name: jax.ShapeDtypeStruct((2, 8, 8, 3), np.uint8) for name in ("rainy", "clean")}
    step = compiled_step(config, mesh).trace(abstract_state(config, mesh), batch)
    state, metrics = step.out_info
    learned = jax.tree.leaves((state.params, state.opt_state, metrics["loss"]))
    assert {leaf.dtype for leaf in learned} == {np.dtype("float32"), np.dtype("int32")}
    assert ":bf16[2,8,8,2]" in str(step.jaxpr), "activations are in bfloat16"


def test_initial_state_has_the_parameters_of_the_seed_and_no_history():
    config = TrainConfig(model=dataclasses.replace(SMALL, dim=2), seed=3)
    state = ShardedStep(config).state()
    assert state.step == 0
    assert state.nonfinite_steps == 0
    assert state.ema is None
    expected = init_params(config.model, jax.random.key(3))
    jax.tree.map(
        lambda found, value: np.testing.assert_allclose(found, value, rtol=1e-6),
        state.params,
        expected,
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(state.opt_state)))

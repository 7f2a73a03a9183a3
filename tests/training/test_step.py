"""What a training step must do with any batch, whatever the network is: here two matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import numpy as np
import optax
import pytest
from plain import together
from recipe import relative_error
from steps import ShardedStep, replace_network

from drsformer_jax.config import ModelConfig, OptimConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = TrainConfig(
    model=ModelConfig(dtype="float64", param_dtype="float64"),
    optim=OptimConfig(learning_rate=1.0, ema_decay=0.75, warmup_steps=8),
)


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def compact() -> Iterator[ShardedStep]:
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        replace_network(patch)
        yield ShardedStep(CONFIG)


def test_eight_bit_batch_equals_the_same_batch_in_floating_point(compact):
    # Black and white alone: the other values divided by 255 have a last bit, which the compiler may
    # round either way and the network amplifies.
    eight_bit = {"rainy": images(0) // 128 * 255, "clean": images(1) // 128 * 255}
    floating = {name: value.astype(np.float64) / 255 for name, value in eight_bit.items()}
    (first, found), (second, expected) = (
        compact.step(compact.state(), batch) for batch in (eight_bit, floating)
    )
    for name, value in expected.items():
        assert math.isclose(found[name], value, rel_tol=1e-6), name
    # The parameters differ by more: Adam's first step makes tiny gradients as large as others.
    means = [
        together(jax.tree.leaves(optax.tree.get(state.opt_state, "mu")))
        for state in (first, second)
    ]
    assert relative_error(*means) < 1e-5


def test_step_consumes_its_state(compact):
    state = compact.state()
    before = jax.tree.leaves(state)
    after, _ = compact.step(state, {"rainy": images(0), "clean": images(1)})
    assert all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_ema_follows_the_parameters_and_a_step_that_is_not_finite_changes_neither(compact):
    good = {"rainy": images(0) / 255, "clean": images(1) / 255}
    bad = {**good, "rainy": good["rainy"].copy()}
    bad["rainy"][0, 0, 0, 0] = np.inf
    state = compact.state()
    average = jax.device_get(state.params)
    rates = []
    for step, batch in enumerate([good, bad, good], 1):
        before = jax.device_get(state)
        state, metrics = compact.step(state, batch)
        after = jax.device_get(state)
        rates.append(float(metrics["learning_rate"]))
        assert after.step == step
        assert after.nonfinite_steps == metrics["nonfinite_steps"] == (step > 1)
        if batch is bad:
            assert not np.isfinite(metrics["loss"])
            for name in ("params", "opt_state", "ema"):
                kept = jax.tree.map(np.array_equal, getattr(after, name), getattr(before, name))
                assert jax.tree.all(kept)
            continue
        average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, after.params)
        for found, value in zip(jax.tree.leaves(after.ema), jax.tree.leaves(average), strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-12, atol=1e-14)
        assert after.best_params is after.ema
    # The schedule counts updates.
    np.testing.assert_allclose(rates, [1 / 8, 2 / 8, 2 / 8], rtol=1e-6)


def test_step_with_a_finite_loss_and_an_infinite_gradient_norm_is_skipped(compact):
    state = compact.state()
    # Gradients of the layers before are proportional to the last kernel: their squares overflow.
    params = jax.device_get(state.params)
    params["output"]["kernel"] = params["output"]["kernel"] * 1e200
    state = compact.state(params)
    before = jax.device_get(state)
    state, metrics = compact.step(state, {"rainy": images(0), "clean": images(1)})
    assert np.isfinite(metrics["loss"])
    assert metrics["grad_norm"] == np.inf
    after = jax.device_get(state)
    assert (after.step, after.nonfinite_steps, metrics["nonfinite_steps"]) == (1, 1, 1)
    for name in ("params", "opt_state", "ema"):
        kept = jax.tree.map(np.array_equal, getattr(after, name), getattr(before, name))
        assert jax.tree.all(kept)

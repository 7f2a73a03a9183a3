"""The training step: pure functions of a state and a batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from drsformer_jax.config import TrainConfig
from drsformer_jax.nn.functional import Params, apply, init_params
from drsformer_jax.optim import learning_rate, transformation
from drsformer_jax.types import Array


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array
    """Updates done, a scalar integer."""
    params: Params
    opt_state: optax.OptState


@functools.partial(jax.jit, static_argnames="config")
def init_state(config: TrainConfig, key: Array) -> TrainState:
    """Initial parameters and optimiser state; the key decides the parameters alone."""
    params = init_params(config.model, key)
    opt_state = transformation(config.optim).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(
    config: TrainConfig, state: TrainState, batch: Mapping[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step on the mean absolute error of the unclamped output.

    Args:
        config: static; another configuration is another program.
        state: consumed.
        batch: "rainy" and "clean", each (b, h, w, 3): uint8, or floating point in [0, 1].

    Returns:
        The new state, and the scalars "loss", "grad_norm" (before clipping) and "learning_rate".
    """
    rainy, clean = _unit(batch["rainy"]), _unit(batch["clean"])
    if config.data.mixup:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        rainy, clean = mixup(key, rainy, clean)

    def loss_of(params: Params) -> Array:
        return jnp.mean(jnp.abs(apply(config.model, params, rainy) - clean))

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    updates, opt_state = transformation(config.optim).update(grads, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(learning_rate(config.optim)(state.step)),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


def mixup(key: Array, rainy: Array, clean: Array) -> tuple[Array, Array]:
    """Blends a batch with a permutation of itself, as the official training program can.

    With probability 1/2 the batch stays as it is. Otherwise each pair becomes s times itself plus
    1 - s times another, with one share s ~ Beta(1.2, 1.2) for the batch ("mixup: Beyond Empirical
    Risk Minimization", ICLR 2018).

    Args:
        key: decides everything.
        rainy: (b, h, w, 3), floating point.
        clean: likewise; blended in the same way.
    """
    use_key, share_key, order_key = jax.random.split(key, 3)
    drawn = jax.random.beta(share_key, 1.2, 1.2)
    share = jnp.where(jax.random.bernoulli(use_key), drawn, 1).astype(rainy.dtype)
    order = jax.random.permutation(order_key, len(rainy))
    return share * rainy + (1 - share) * rainy[order], share * clean + (1 - share) * clean[order]


def _unit(pictures: Array) -> Array:
    """Eight-bit pictures become float32 in [0, 1]; others are in [0, 1] already."""
    return pictures.astype(jnp.float32) / 255 if pictures.dtype == jnp.uint8 else pictures

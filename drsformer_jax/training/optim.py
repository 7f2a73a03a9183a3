"""AdamW, clipping and the learning rate of the official recipe."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from drsformer_jax.config import OptimConfig
from drsformer_jax.types import Array


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Constant, then a cosine to the final value, which stays; the first steps may rise to that.

    The schedule takes the number of updates already done, as the official program's does. Of n
    steps of warm-up the first has 1/n of its learning rate, the last all of it.
    """
    cosine = optax.cosine_decay_schedule(
        config.learning_rate,
        config.cosine_steps,
        alpha=config.final_learning_rate / config.learning_rate,
    )
    constant = optax.constant_schedule(config.learning_rate)
    schedule = optax.join_schedules([constant, cosine], [config.constant_steps])
    if not config.warmup_steps:
        return schedule

    def warmed(updates: Array) -> Array:
        return schedule(updates) * jnp.minimum(1, (updates + 1) / config.warmup_steps)

    return warmed


def transformation(config: OptimConfig) -> optax.GradientTransformation:
    """Clips the norm of the whole gradient, then AdamW (Loshchilov and Hutter, ICLR 2019)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )

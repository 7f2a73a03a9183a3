"""AdamW, gradient clipping and the learning rate schedule of the official recipe."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from drsformer_jax.config import OptimConfig, TrainConfig
from drsformer_jax.types import Array


def lr_schedule(config: OptimConfig) -> optax.Schedule:
    """A constant learning rate, then a cosine decay to the final one, optionally with a warmup.

    The schedule takes the number of updates done before, as that of the official program does. A
    warmup of n steps multiplies the learning rate by 1/n, 2/n, ..., 1.
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


def schedule_warning(config: TrainConfig) -> str:
    """A warning of steps after the end of the learning rate schedule; empty if there are none."""
    optim = config.optim
    end = optim.constant_steps + optim.cosine_steps
    if config.steps <= end:
        return ""
    return (
        f"warning: --steps is {config.steps:,}, and the learning rate schedule ends at step "
        f"{end:,}; all later steps have {optim.final_learning_rate:g} "
        "(--optim.constant-steps and --optim.cosine-steps extend the schedule)"
    )


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Clips the global gradient norm, then AdamW (Loshchilov and Hutter, ICLR 2019)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            lr_schedule(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )

"""AdamW, clipping and the learning rate of the official recipe."""

from __future__ import annotations

import optax

from drsformer_jax.config import OptimConfig


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Constant, then a cosine to the final value, which stays.

    The schedule takes the number of updates already done, as the official program's does.
    """
    cosine = optax.cosine_decay_schedule(
        config.learning_rate,
        config.cosine_steps,
        alpha=config.final_learning_rate / config.learning_rate,
    )
    constant = optax.constant_schedule(config.learning_rate)
    return optax.join_schedules([constant, cosine], [config.constant_steps])


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

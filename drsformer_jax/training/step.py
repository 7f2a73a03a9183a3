"""The training step: pure functions of a state and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from drsformer_jax.config import TrainConfig
from drsformer_jax.nn.functional import Params, abstract_params, apply, init_params
from drsformer_jax.nn.rows import AT_ONCE, Shards
from drsformer_jax.ops.implementations import jit_for
from drsformer_jax.sharding import (
    averaged_over_shards,
    batch_sharding,
    batch_shards,
    replicated,
    state_shardings,
)
from drsformer_jax.training.optim import lr_schedule, make_optimizer
from drsformer_jax.types import Array


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array
    """Steps done, a scalar integer."""
    nonfinite_steps: Array
    """Those of them that were skipped, since loss or gradient was not finite; likewise."""
    params: Params
    opt_state: optax.OptState
    ema: Params | None
    """Exponential moving average (EMA) of the parameters; None if `optim.ema_decay` is 0."""

    @property
    def best_params(self) -> Params:
        """The parameters to restore images with: the EMA if there is one."""
        return self.params if self.ema is None else self.ema


Step = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


def init_state(config: TrainConfig, params: Params) -> TrainState:
    """The train state before the first step: these parameters and an initialized optimizer."""
    zero = jnp.zeros((), jnp.int32)
    ema = params if config.optim.ema_decay else None
    return TrainState(zero, zero, params, make_optimizer(config.optim).init(params), ema)


def abstract_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the train state, as `jax.ShapeDtypeStruct`."""
    shapes = jax.eval_shape(
        lambda params: init_state(config, params), abstract_params(config.model)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh, config.mesh.fsdp_min_size),
    )


def _train_state_shardings(config: TrainConfig, mesh: Mesh) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))


def sharded_state(config: TrainConfig, mesh: Mesh, params: Params | None = None) -> TrainState:
    """The train state before the first step, sharded over a mesh.

    Args:
        config: the run; its seed alone decides the initialized parameters.
        mesh: the devices.
        params: parameters to start from, the same in every process; default: initialized.
    """
    shardings = _train_state_shardings(config, mesh)

    def from_key(key: Array) -> TrainState:
        return init_state(config, init_params(config.model, key))

    def from_params(params: Params) -> TrainState:
        typed = jax.tree.map(
            lambda leaf, like: leaf.astype(like.dtype), params, abstract_params(config.model)
        )
        return init_state(config, typed)

    if params is None:
        return jax.jit(from_key, out_shardings=shardings)(jax.random.key(config.seed))
    return jax.jit(from_params, out_shardings=shardings)(jax.device_get(params))


def compiled_step(config: TrainConfig, mesh: Mesh) -> Step:
    """`train_step` for the mesh's platform, a sharded state and batch; it donates the state.

    Batches of another shape are compiled on their first call. Another configuration or mesh needs
    a new `compiled_step`.
    """
    shardings = _train_state_shardings(config, mesh)

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        return train_step(config, mesh, state, batch)

    return jit_for(
        mesh.devices.flat[0].platform,
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def microbatches(config: TrainConfig, mesh: Mesh, batch: int, side: int) -> int:
    """The number of equal microbatches of a step, whose gradients are accumulated.

    It is the smallest number that `mesh.device_batch`, which limits pixels, allows.

    Args:
        config: the run.
        mesh: the devices.
        batch: images of the global batch.
        side: height and width of its patches.
    """
    if not config.mesh.device_batch:
        return 1
    device_batch = batch // batch_shards(mesh)
    pixels = config.mesh.device_batch * config.data.crop_size**2 * mesh.shape["rows"]
    limit = max(pixels // side**2, 1)
    return next(
        count
        for count in range(1, device_batch + 1)
        if device_batch % count == 0 and device_batch <= limit * count
    )


def train_step(
    config: TrainConfig, mesh: Mesh, state: TrainState, batch: Mapping[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on the L1 loss (mean absolute error) of the unclamped output.

    A step whose loss or gradient norm is not finite is skipped: it changes only the counts.

    Args:
        config: static.
        mesh: the devices that share the batch; static.
        state: the train state before the step.
        batch: "rainy" and "clean", each (b, h, w, 3): uint8, or floating point in [0, 1].

    Returns:
        The new state, and the scalars "loss", "grad_norm" (before clipping), "learning_rate" and
        "nonfinite_steps".
    """
    dtype = jnp.promote_types(jnp.float32, config.model.param_dtype)
    rainy, clean = _unit(batch["rainy"], dtype), _unit(batch["clean"], dtype)
    if config.data.mixup:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        rainy, clean = mixup(key, rainy, clean)
    loss, grads = _loss_and_grads(config, mesh, state.params, rainy, clean)
    norm = optax.tree.norm(grads)
    updates, opt_state = make_optimizer(config.optim).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = optax.incremental_update(params, ema, 1 - config.optim.ema_decay)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updated = (params, opt_state, ema)
    kept = (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), updated, kept
    )
    nonfinite = state.nonfinite_steps + ~finite
    metrics = {
        "loss": loss,
        "grad_norm": norm,
        # The schedule counts updates, which skipped steps are not.
        "learning_rate": jnp.asarray(lr_schedule(config.optim)(state.step - state.nonfinite_steps)),
        "nonfinite_steps": nonfinite,
    }
    return TrainState(state.step + 1, nonfinite, params, opt_state, ema), metrics


def _loss_and_grads(
    config: TrainConfig, mesh: Mesh, params: Params, rainy: Array, clean: Array
) -> tuple[Array, Params]:
    """The L1 loss of a global batch and its gradient, for sharded parameters.

    Each device accumulates the gradient of its own images over microbatches. Then the gradients
    are averaged over the devices, once a step.
    """
    count = microbatches(config, mesh, *rainy.shape[:2])
    devices = mesh.shape["rows"]
    rows = Shards(count=devices) if devices > 1 else AT_ONCE

    def loss_of(params: Params, rainy: Array, clean: Array) -> Array:
        return jnp.mean(jnp.abs(apply(config.model, params, rainy, rows=rows) - clean))

    def accumulated(params: Params, rainy: Array, clean: Array) -> tuple[Array, Params]:
        loss_and_grads = jax.value_and_grad(loss_of)
        if count == 1:
            return loss_and_grads(params, rainy, clean)

        def add(total: tuple[Array, Params], images: tuple[Array, Array]) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, total, loss_and_grads(params, *images)), None

        def split(images: Array) -> Array:
            return images.reshape(count, -1, *images.shape[1:])

        zero = (jnp.zeros((), rainy.dtype), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, (split(rainy), split(clean)))
        return jax.tree.map(lambda leaf: leaf / count, total)

    least = config.mesh.fsdp_min_size
    return averaged_over_shards(accumulated, mesh, least)(params, rainy, clean)


def mixup(key: Array, rainy: Array, clean: Array) -> tuple[Array, Array]:
    """Blends a batch with a permutation of itself, as the official training program can.

    With probability 1/2 the batch is unchanged. Otherwise each pair is blended with another one,
    with a single ratio lambda ~ Beta(1.2, 1.2) for the batch ("mixup: Beyond Empirical Risk
    Minimization", ICLR 2018).

    Args:
        key: the only source of randomness.
        rainy: (b, h, w, 3), floating point.
        clean: likewise; blended in the same way.
    """
    use_key, ratio_key, order_key = jax.random.split(key, 3)
    sampled = jax.random.beta(ratio_key, 1.2, 1.2)
    ratio = jnp.where(jax.random.bernoulli(use_key), sampled, 1).astype(rainy.dtype)
    order = jax.random.permutation(order_key, len(rainy))
    return ratio * rainy + (1 - ratio) * rainy[order], ratio * clean + (1 - ratio) * clean[order]


def _unit(images: Array, dtype: jnp.dtype) -> Array:
    """Converts uint8 images to floating point in [0, 1]; others are in that range already."""
    return images.astype(dtype) / 255 if images.dtype == jnp.uint8 else images

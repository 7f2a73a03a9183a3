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
from drsformer_jax.sharding import (
    averaged_over_shards,
    batch_sharding,
    batch_shards,
    replicated,
    state_sharding,
)
from drsformer_jax.training.optim import learning_rate, transformation
from drsformer_jax.types import Array


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array
    """Steps done, a scalar integer."""
    nonfinite_steps: Array
    """Those of them that were passed over, since loss or gradient was not finite; likewise."""
    params: Params
    opt_state: optax.OptState
    ema: Params | None
    """Moving average of the parameters, where the configuration asks for one."""

    @property
    def best_params(self) -> Params:
        """What to restore images with: the average where there is one."""
        return self.params if self.ema is None else self.ema


Step = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


def init_state(config: TrainConfig, params: Params) -> TrainState:
    """The state before the first step, with these parameters and no history."""
    zero = jnp.zeros((), jnp.int32)
    ema = params if config.optim.ema_decay else None
    return TrainState(zero, zero, params, transformation(config.optim).init(params), ema)


def abstract_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, types and places of a state, as `jax.ShapeDtypeStruct`."""
    shapes = jax.eval_shape(
        lambda params: init_state(config, params), abstract_params(config.model)
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        state_sharding(shapes, mesh),
    )


def _places(config: TrainConfig, mesh: Mesh) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))


def placed_state(config: TrainConfig, mesh: Mesh, params: Params | None = None) -> TrainState:
    """The state before the first step, on a mesh.

    Args:
        config: the run; its seed alone decides on the parameters where none are given.
        mesh: the devices.
        params: given parameters, the same in every process.
    """
    places = _places(config, mesh)

    def drawn(key: Array) -> TrainState:
        return init_state(config, init_params(config.model, key))

    def given(params: Params) -> TrainState:
        typed = jax.tree.map(
            lambda leaf, like: leaf.astype(like.dtype), params, abstract_params(config.model)
        )
        return init_state(config, typed)

    if params is None:
        return jax.jit(drawn, out_shardings=places)(jax.random.key(config.seed))
    return jax.jit(given, out_shardings=places)(jax.device_get(params))


def compiled_step(config: TrainConfig, mesh: Mesh) -> Step:
    """`train_step` for states and batches that lie on a mesh; it consumes the state.

    A batch of another size compiles anew, and so must another configuration or mesh.
    """
    places = _places(config, mesh)

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        return train_step(config, mesh, state, batch)

    return jax.jit(
        step,
        in_shardings=(places, batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )


def parts(config: TrainConfig, mesh: Mesh, batch: int, side: int) -> int:
    """In how many equal parts, one after another, a global batch of patches is computed.

    As few as `mesh.device_batch` allows, which counts pixels.
    """
    share = batch // batch_shards(mesh)
    if not config.mesh.device_batch:
        return 1
    pixels = config.mesh.device_batch * config.data.crop_size**2 * mesh.shape["rows"]
    most = max(pixels // side**2, 1)
    return next(
        count for count in range(1, share + 1) if share % count == 0 and share <= most * count
    )


def train_step(
    config: TrainConfig, mesh: Mesh, state: TrainState, batch: Mapping[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on the mean absolute error of the unclamped output.

    A step whose loss or gradient is not finite changes nothing but the counts.

    Args:
        config: static; another configuration is another program.
        mesh: the devices that share the batch; static too.
        state: what the step starts from.
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
    updates, opt_state = transformation(config.optim).update(grads, state.opt_state, state.params)
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
        # The schedule counts updates.
        "learning_rate": jnp.asarray(
            learning_rate(config.optim)(state.step - state.nonfinite_steps)
        ),
        "nonfinite_steps": nonfinite,
    }
    return TrainState(state.step + 1, nonfinite, params, opt_state, ema), metrics


def _loss_and_grads(
    config: TrainConfig, mesh: Mesh, params: Params, rainy: Array, clean: Array
) -> tuple[Array, Params]:
    """The mean absolute error of a batch and its gradient, for parameters that lie on a mesh.

    Each device computes on its own images, in parts if they are many, and only then do devices
    add up what they have.
    """
    count = parts(config, mesh, *rainy.shape[:2])

    devices = mesh.shape["rows"]
    rows = Shards(count=devices) if devices > 1 else AT_ONCE

    def loss_of(params: Params, rainy: Array, clean: Array) -> Array:
        return jnp.mean(jnp.abs(apply(config.model, params, rainy, rows=rows) - clean))

    def own(params: Params, rainy: Array, clean: Array) -> tuple[Array, Params]:
        if count == 1:
            return jax.value_and_grad(loss_of)(params, rainy, clean)

        def add(total: tuple[Array, Params], part: tuple[Array, Array]) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(params, *part)), None

        def split(images: Array) -> Array:
            return images.reshape(count, -1, *images.shape[1:])

        zero = (jnp.zeros((), rainy.dtype), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, (split(rainy), split(clean)))
        return jax.tree.map(lambda leaf: leaf / count, total)

    return averaged_over_shards(own, mesh)(params, rainy, clean)


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


def _unit(images: Array, dtype: jnp.dtype) -> Array:
    """Eight-bit images become floating point in [0, 1], which others are already."""
    return images.astype(dtype) / 255 if images.dtype == jnp.uint8 else images

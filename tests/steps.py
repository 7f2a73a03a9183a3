"""The training step as train.py runs it, on some of the eight virtual devices of the tests."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drsformer_jax.config import MeshConfig, ModelConfig, TrainConfig
from drsformer_jax.nn.functional import Params
from drsformer_jax.nn.rows import AT_ONCE, Rows
from drsformer_jax.sharding import batch_sharding, global_arrays, make_mesh
from drsformer_jax.training import TrainState, abstract_state, compiled_step, sharded_state, step

OFFICIAL_RATES = {
    0: 0.0003,
    1: 0.0003,
    1000: 0.0003,
    91999: 0.0003,
    92000: 0.0003,
    92001: 0.00029999999998294764,
    100000: 0.00029890997667765903,
    150000: 0.00024621181964914194,
    196000: 0.00015049999999999997,
    250000: 4.1642927395569646e-05,
    299000: 1.0170520271840574e-06,
    299999: 1.0000000170523493e-06,
    300000: 1e-06,
}


def replace_network(patch: pytest.MonkeyPatch) -> Callable[..., jax.Array]:
    """Gives training steps two matrices as their network, which compile in no time.

    Returns:
        `apply` of that network.
    """

    def init_params(config: ModelConfig, key: jax.Array) -> Params:
        hidden, output = jax.random.normal(key, (2, 3, 3), config.param_dtype)
        return {"hidden": {"kernel": hidden}, "output": {"kernel": output}}

    def abstract_params(config: ModelConfig) -> Params:
        return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))

    def apply(config: ModelConfig, params: Params, x: jax.Array, rows: Rows = AT_ONCE) -> jax.Array:
        del config, rows
        return x + jnp.tanh(x @ params["hidden"]["kernel"]) @ params["output"]["kernel"]

    for function in (init_params, abstract_params, apply):
        patch.setattr(step, function.__name__, function)
    return apply


class ShardedStep:
    """The step of a configuration on its mesh; on one device if `mesh.data` is -1."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.mesh = make_mesh(MeshConfig(data=1) if config.mesh.data == -1 else config.mesh)
        self._step = compiled_step(config, self.mesh)

    def state(self, params: Params | None = None) -> TrainState:
        return sharded_state(self.config, self.mesh, params)

    def copied(self, state: TrainState) -> TrainState:
        """A state in the host's memory, on the devices: no step consumes the original.

        Given as it is, the step would be compiled for it again.
        """
        like = abstract_state(self.config, self.mesh)
        return jax.tree.map(lambda leaf, to: jax.device_put(leaf.copy(), to.sharding), state, like)

    def batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return global_arrays(batch, batch_sharding(self.mesh))

    def step(
        self, state: TrainState, batch: Mapping[str, np.ndarray]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        return self._step(state, self.batch(batch))

    def compiled(self, batch: Mapping[str, np.ndarray]) -> jax.stages.Compiled:
        """The compiled step for batches of this shape and the initial sharding of the state."""
        state = abstract_state(self.config, self.mesh)
        return self._step.lower(state, self.batch(batch)).compile()

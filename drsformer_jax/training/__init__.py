"""Training: the step and its state, the optimizer, checkpoints, processes and metrics.

The step is a pure function of pytrees. `checkpoint.Run` is a run on disk, `processes` connects the
processes of a run, `reporting` writes its metrics.
"""

from drsformer_jax.training.optim import lr_schedule, make_optimizer
from drsformer_jax.training.step import (
    TrainState,
    abstract_state,
    compiled_step,
    init_state,
    sharded_state,
    train_step,
)

__all__ = [
    "TrainState",
    "abstract_state",
    "compiled_step",
    "init_state",
    "lr_schedule",
    "make_optimizer",
    "sharded_state",
    "train_step",
]

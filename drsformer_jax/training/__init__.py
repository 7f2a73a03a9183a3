"""What a training run needs: the step, the optimizer, checkpoints, processes and metrics.

The step and its state are pure functions and pytrees; `checkpoint.Run` is a run on disk,
`processes` joins the processes of a pod, `reporting` writes what a run does.
"""

from drsformer_jax.training.optim import learning_rate, transformation
from drsformer_jax.training.step import (
    TrainState,
    abstract_state,
    compiled_step,
    init_state,
    placed_state,
    train_step,
)

__all__ = [
    "TrainState",
    "abstract_state",
    "compiled_step",
    "init_state",
    "learning_rate",
    "placed_state",
    "train_step",
    "transformation",
]

"""Runs on disk: a folder with `config.json` and Orbax checkpoints, the latest and the best."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from drsformer_jax.config import ModelConfig, TrainConfig
from drsformer_jax.config_file import read_config, to_dict, write_config
from drsformer_jax.errors import InputError
from drsformer_jax.nn.functional import Params, abstract_params, use_wide_types
from drsformer_jax.training import TrainState

_METRIC = "psnr"
# Orbax warns that a folder is opened to be read only, which is just what was asked for.
logging.getLogger("absl").addFilter(lambda record: "directory is read only" not in str(record.msg))


class Run:
    """The folder of one training run.

    Saving runs in the background and is atomic: a checkpoint is there whole or not at all.

    Args:
        folder: the run's folder.
        keep: latest checkpoints to keep beside the best one; None to read only, which leaves
            alone what a training program may be writing there.

    Raises:
        InputError: if a file stands in the folder's place.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int | None) -> None:
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{folder} is a file; expected the folder of a run, or a new one")
        writes = keep is not None
        policy = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(get_metric_fn=lambda metrics: metrics[_METRIC], n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy if writes else None,
                best_fn=lambda metrics: metrics[_METRIC],
                cleanup_tmp_directories=writes,
                read_only=not writes,
                save_interval_steps=1 if writes else 0,
                create=writes,
            ),
            item_names=("params", "optimizer"),
        )

    def write_config(self, config: TrainConfig) -> None:
        """Records the configuration."""
        write_config(self.folder, to_dict(config))

    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the best checkpoint; None if there is none."""
        return self._manager.best_step()

    def save(self, state: TrainState, psnr: float | None = None) -> None:
        """Starts to save a state.

        Args:
            state: what to save.
            psnr: mean over the validation pairs, which decides on the best; a state without it
                ranks below all that have one.
        """
        unknown = psnr is None or math.isnan(psnr)
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.opt_state),
            ),
            metrics={_METRIC: -math.inf if unknown else psnr},
            force=True,
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a state.

        Args:
            step: of a checkpoint that is there.
            like: shapes and types of the state, as `jax.ShapeDtypeStruct`.

        Raises:
            InputError: if the checkpoint is damaged.
        """
        items = self._restore(step, params=like.params, optimizer=like.opt_state)
        return TrainState(jnp.asarray(step, like.step.dtype), items.params, items.optimizer)

    def restore_params(self, step: int, config: ModelConfig) -> Params:
        """Reads the parameters alone; raises as `restore` does."""
        return self._restore(step, params=abstract_params(config)).params

    def _restore(self, step: int, **items: Any) -> Any:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def placed(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

        wanted = {
            name: ocp.args.StandardRestore(jax.tree.map(placed, item))
            for name, item in items.items()
        }
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**wanted))
        except Exception as error:  # Orbax and TensorStore let out errors of many kinds
            reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
            raise InputError(
                f"checkpoint {step} of {self.folder} cannot be read ({reason}); expected a whole "
                "one; another step may be"
            ) from error

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()


def check_architecture(found: ModelConfig, expected: ModelConfig, where: Path) -> None:
    """Refuses parameters of another network.

    Raises:
        InputError: names the fields that differ.
    """
    ours, theirs = expected.architecture(), found.architecture()
    differing = [
        f"{name} {theirs[name]} (here {ours[name]})" for name in ours if ours[name] != theirs[name]
    ]
    if differing:
        raise InputError(
            f"{where} holds checkpoints of another architecture: {', '.join(differing)}; "
            "expected the same, or another folder"
        )


def load(folder: str | os.PathLike[str], step: int | None = None) -> tuple[ModelConfig, Params]:
    """Reads the network of a run: its best checkpoint, or that of a given step.

    Raises:
        InputError: if the folder is no run, or has no checkpoint or not that one.
    """
    config = read_config(Path(folder)).model
    use_wide_types(config)
    if not (Path(folder) / "checkpoints").is_dir():
        raise InputError(
            f"{folder} has neither checkpoints/ nor params.safetensors; expected a run that has "
            "saved one, or a model folder"
        )
    with Run(folder, keep=None) as run:
        chosen = run.best_step() if step is None else step
        if chosen is None or chosen not in run.steps():
            found = f"checkpoints of steps {run.steps()}" if run.steps() else "no checkpoint yet"
            raise InputError(f"{folder} has {found}; expected {'one' if step is None else step}")
        return config, run.restore_params(chosen, config)

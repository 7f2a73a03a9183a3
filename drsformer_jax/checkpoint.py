"""Runs on disk: a folder with `config.json` and Orbax checkpoints, the latest and the best."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from drsformer_jax.config import ModelConfig, TrainConfig, from_dict, to_dict
from drsformer_jax.errors import InputError
from drsformer_jax.nn.functional import Params, abstract_params
from drsformer_jax.training import TrainState

_METRIC = "psnr"


class Run:
    """The folder of one training run.

    Saving runs in the background and is atomic: a checkpoint is there whole or not at all.

    Args:
        folder: the run's folder.
        keep: latest checkpoints to keep beside the best one.

    Raises:
        InputError: if a file stands in the folder's place.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 1) -> None:
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{folder} is a file; expected the folder of a run, or a new one")
        policy = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[_METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics[_METRIC],
                cleanup_tmp_directories=True,
            ),
            item_names=("params", "optimizer"),
        )

    def write_config(self, config: TrainConfig) -> None:
        """Records the configuration.

        Raises:
            InputError: if the folder holds checkpoints of another architecture.
        """
        path = self.folder / "config.json"
        if path.exists() and self.latest_step() is not None:
            check_architecture(read_config(self.folder).model, config.model, self.folder)
        unfinished = path.with_name(".config.json.unfinished")
        unfinished.write_text(json.dumps(to_dict(config), indent=2) + "\n")
        os.replace(unfinished, path)

    def steps(self) -> list[int]:
        """Steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the best checkpoint, else of the latest; None if there is none."""
        return self._manager.best_step() or self.latest_step()

    def save(self, state: TrainState, psnr: float | None = None) -> None:
        """Starts to save a state; `psnr` of the validation pairs decides which is the best."""
        scores = None if psnr is None or math.isnan(psnr) else {_METRIC: psnr}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.opt_state),
            ),
            metrics=scores,
            force=True,
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a state of the structure, types and placement of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore(abstract.opt_state),
            ),
        )
        return TrainState(jnp.asarray(step, like.step.dtype), items.params, items.optimizer)

    def restore_params(self, step: int, config: ModelConfig) -> Params:
        """Reads the parameters alone."""
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            abstract_params(config),
        )
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=args).params

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


def read_config(folder: Path) -> TrainConfig:
    """Reads the configuration of a run.

    Raises:
        InputError: if the folder is no run or its `config.json` is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json; expected the folder of a training run")
    try:
        return from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); expected what train.py wrote") from None


def load(folder: str | os.PathLike[str], step: int | None = None) -> tuple[ModelConfig, Params]:
    """Reads the network of a run: its best checkpoint, or that of a given step.

    Raises:
        InputError: if the folder is no run, or has no checkpoint or not that one.
    """
    config = read_config(Path(folder)).model
    if not (Path(folder) / "checkpoints").is_dir():
        raise InputError(f"{folder} has no checkpoints; expected a run that has saved one")
    with Run(folder) as run:
        chosen = run.best_step() if step is None else step
        if chosen is None or chosen not in run.steps():
            found = f"checkpoints of steps {run.steps()}" if run.steps() else "no checkpoint yet"
            raise InputError(f"{folder} has {found}; expected {'one' if step is None else step}")
        return config, run.restore_params(chosen, config)

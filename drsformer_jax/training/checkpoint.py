"""Runs on disk: a folder with `config.json`, scores and Orbax checkpoints, the latest and the best.

A checkpoint holds the parameters, their EMA if there is one, the optimizer state and, as JSON,
everything else that a run resumes from: step, random key, position in the data, the whole
configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers as policies

from drsformer_jax import locks, remote
from drsformer_jax.config import ModelConfig, TrainConfig
from drsformer_jax.config.file import CONFIG_FILE, from_dict, read_config, to_dict, write_config
from drsformer_jax.errors import InputError, is_out_of_memory
from drsformer_jax.files import remove_leftovers
from drsformer_jax.nn.functional import Params, abstract_params, wide_types
from drsformer_jax.training.orbax_quirks import (
    Manager,
    silence_read_only_warning,
    silence_repeated_errors,
    system_reason,
)
from drsformer_jax.training.reporting import METRICS_FILE
from drsformer_jax.training.scores import SCORES_FILE, ValidationScores, pairs_of
from drsformer_jax.training.step import TrainState

_LOCK = ".lock"
_OTHER_STEP = "another step may be"
_STEP_BEFORE = "remove its folder to resume from the step before"


class Run:
    """The folder of one training run.

    Saving is asynchronous and atomic: a checkpoint is complete or absent. In a run of several
    processes all of them make the same calls.

    Of a run in a bucket, what is not a checkpoint is in a local copy of the folder, `folder`, which
    `push` sends; `name` is what the user calls the run.

    Args:
        folder: the run's folder, or its address in a bucket.
        keep: number of latest checkpoints to keep beside the best one; None to open the run
            read-only, beside a training program that may be writing there.

    Raises:
        InputError: if the folder is a file, is locked by another training program, or has a
            damaged `validation.json`; the lock is then free again.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int | None) -> None:
        where = remote.address(folder)
        self._mirror = remote.Mirror(where) if where else None
        self.folder = self._mirror.folder if self._mirror else Path(folder).absolute()
        self.name = remote.shown(folder)
        self._checkpoints = epath.Path(where or self.folder) / "checkpoints"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{folder} is a file; expected the folder of a run, or a new one")
        self._lock: int | None = None
        self._lease: remote.Lease | None = None
        self._trained = self._validated = ""  # Digests of pairs.
        # What helps where a checkpoint is damaged.
        self._way_out = _OTHER_STEP if keep is None else _STEP_BEFORE
        if keep is not None and jax.process_index() == 0:
            if where:
                self._lease = remote.Lease(where, "is being trained")
            else:
                self._lock = _locked(self.folder)
        try:
            with remote.local_names(self._mirror):
                if self._mirror:
                    self._mirror.pull(CONFIG_FILE, METRICS_FILE, SCORES_FILE)
                self._scores = ValidationScores(self.folder / SCORES_FILE)
            # What the scores are of; unknown where it is missing or damaged.
            self._before: TrainConfig | None = None
            with contextlib.suppress(InputError):
                self._before = read_config(self.folder)
            self._manager = self._open(keep)
        except BaseException:
            self._unlock()
            raise

    def _open(self, keep: int | None) -> ocp.CheckpointManager:
        if keep is None:
            silence_read_only_warning()
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, create=False
            )
        else:
            silence_repeated_errors()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), _Best(self._scores)]
                ),
                cleanup_tmp_directories=True,
            )
        return Manager(
            self._checkpoints,
            options=options,
            item_names=("params", "ema", "optimizer", "run"),
        )

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        if self._lease is not None:
            self._lease.release()

    def begin(self, config: TrainConfig, step: int, trained: str = "", validated: str = "") -> None:
        """Records the configuration, and drops scores that do not count any more.

        These are the scores of steps after this one, and all that are of other pairs: the best
        checkpoint is chosen among scores of the same pairs.

        Args:
            config: of the steps that follow.
            step: the last one that was taken.
            trained: digest of the pairs to train on, which checkpoints record; empty if unknown.
            validated: likewise of the pairs to validate on, which scores record.
        """
        self._trained, self._validated = trained, validated
        if validated:
            self._scores.keep(validated)
        if self._before is not None and pairs_of(self._before) != pairs_of(config):
            self._scores.clear()
        self._before = config
        self._scores.clear(after=step)
        if jax.process_index() == 0:
            remove_leftovers(self.folder)
            write_config(self.folder, to_dict(config))
            self._scores.write()
            self.push()

    def push(self, without: str = "") -> None:
        """Sends to the bucket what was written to `folder`; of a local run nothing needs to be.

        Args:
            without: a folder in it that is not sent this time.

        Raises:
            InputError: if the bucket cannot be written, or another program has taken the run.
        """
        if self._lease is not None and self._mirror is not None:
            self._lease.check()
            self._mirror.push(without)

    def steps(self) -> list[int]:
        """Steps of all checkpoints, including one that is being saved."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the best checkpoint by validation PSNR, or the latest if none has a score.

        Raises:
            InputError: if what is being saved, which may be the best, cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
        return self._scores.best(self.steps())

    def is_scored(self, step: int) -> bool:
        """Whether the checkpoint of a step has a score."""
        return step in self._scores

    def config(self, step: int) -> TrainConfig:
        """The configuration that a checkpoint was written with; raises as `restore` does."""
        found = self._restore(step, run=ocp.args.JsonRestore()).run
        try:
            return from_dict(found["config"])
        except InputError as error:
            raise InputError(f"checkpoint {step} of {self.name}: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"checkpoint {step} of {self.name} has no configuration ({error}); expected a "
                f"whole one; {self._way_out}"
            ) from None

    def trained_on(self, step: int) -> str:
        """Digest of the pairs of a checkpoint's steps; empty if unknown; raises as `restore`."""
        found = self._restore(step, run=ocp.args.JsonRestore()).run
        return str(found.get("data", {}).get("pairs", ""))

    def save(self, config: TrainConfig, state: TrainState) -> None:
        """Starts to save a train state, once the one before is saved.

        Raises:
            InputError: if this or the one before cannot be written; complete checkpoints stay.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        if self._lease is not None:
            self._lease.check()
        items = {
            "params": ocp.args.StandardSave(state.params),
            "optimizer": ocp.args.StandardSave(state.opt_state),
            "run": ocp.args.JsonSave(
                {
                    "step": step,
                    "nonfinite_steps": int(state.nonfinite_steps),
                    # The random key of a step is fold_in(key(seed), step).
                    "random_key": {"seed": config.seed, "fold_in": step},
                    "data": {"seed": config.seed, "next_batch": step, "pairs": self._trained},
                    "config": to_dict(config),
                }
            ),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def score(self, step: int, protocol: str, psnr: float, ssim: float) -> None:
        """Records the mean scores over the validation pairs, which decide on the best."""
        self._scores.add(step, protocol, psnr, ssim, self._validated)
        if jax.process_index() == 0:
            self._scores.write()
            self.push()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restores a train state with any sharding, whatever mesh it was saved from.

        Args:
            step: the step of a checkpoint.
            like: shapes, dtypes and shardings of the state, from `abstract_state`. An EMA that the
                checkpoint lacks starts from its parameters.

        Raises:
            InputError: if the checkpoint is damaged.
        """
        items = {"params": like.params, "optimizer": like.opt_state}
        if like.ema is not None and self._has_ema(step):
            items["ema"] = like.ema
        wanted = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        found = self._restore(step, **wanted, run=ocp.args.JsonRestore())
        ema = None
        if like.ema is not None:
            ema = found.ema if "ema" in items else jax.tree.map(jnp.copy, found.params)
        return TrainState(
            _scalar(step, like.step),
            _scalar(found.run["nonfinite_steps"], like.nonfinite_steps),
            found.params,
            found.optimizer,
            ema,
        )

    def restore_params(self, step: int, config: ModelConfig) -> Params:
        """Restores only the parameters, or their EMA if there is one.

        Returns:
            The parameters, unsharded on one device of each process.

        Raises:
            InputError: if the checkpoint is damaged.
        """
        name = "ema" if self._has_ema(step) else "params"
        devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:1]
        replicated = NamedSharding(Mesh(np.array(devices), "all"), PartitionSpec())
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
            abstract_params(config),
        )
        params = self._restore(step, **{name: ocp.args.StandardRestore(like)})[name]
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), params)

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore let out errors of many kinds
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"checkpoint {step} of {self.name} cannot be read ({system_reason(error)}); "
                f"expected a whole one; {self._way_out}"
            ) from error

    def _has_ema(self, step: int) -> bool:
        return self.config(step).optim.ema_decay > 0

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore let out errors of many kinds
            if is_out_of_memory(error):
                raise
            # Not `steps`: the manager lists the one that failed, and not those it was to replace.
            whole = _whole(self._checkpoints)
            raise InputError(
                f"a checkpoint cannot be written to {self.name} ({system_reason(error)}); "
                f"expected room for it; checkpoints of steps {whole} are whole"
            ) from error

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        failures = (InputError, jax.errors.JaxRuntimeError) if kind else ()
        with contextlib.suppress(*failures), self._writing():
            try:
                self._manager.close()
                self.push()
            finally:
                self._unlock()


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Keeps the best checkpoint of a run."""

    scores: ValidationScores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self.scores.best([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]


def _whole(checkpoints: epath.Path) -> list[int]:
    """Steps of the checkpoints that are complete; none where the folder cannot be read."""
    try:
        return sorted(
            int(path.name)
            for path in checkpoints.iterdir()
            if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path)
        )
    except Exception:  # A bucket that cannot be reached, which is being reported.
        return []


def _locked(folder: Path) -> int:
    """Opens a file that keeps a run to one training program until it is closed."""
    locks.check_available("training")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_WRONLY | os.O_CREAT)
    try:
        locks.lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"{folder} is being trained by another process; expected another --workdir, or its end"
        ) from None
    except OSError:
        pass  # Some file systems have no locks.
    return descriptor


def _scalar(value: int, like: Any) -> jax.Array:
    return jax.make_array_from_callback((), like.sharding, lambda _: np.array(value, like.dtype))


def check_architecture(found: ModelConfig, expected: ModelConfig, where: str) -> None:
    """Rejects parameters of another network.

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
    where = remote.address(folder)
    with remote.local(folder, CONFIG_FILE) as local:
        config = read_config(local).model
    if not (epath.Path(where or folder) / "checkpoints").is_dir():
        raise InputError(
            f"{remote.shown(folder)} has neither checkpoints/ nor params.safetensors; expected a "
            "run that has saved one, or a model folder"
        )
    with Run(folder, keep=None) as run:
        chosen = run.best_step() if step is None else step
        if chosen is None or chosen not in run.steps():
            found = f"checkpoints of steps {run.steps()}" if run.steps() else "no checkpoint yet"
            raise InputError(f"{run.name} has {found}; expected {'one' if step is None else step}")
        with wide_types(config):
            return config, run.restore_params(chosen, config)

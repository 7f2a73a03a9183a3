"""What a run does before its first step: it is compared with its checkpoint, and announced."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from clu.parameter_overview import get_parameter_overview
from jax.sharding import Mesh

from drsformer_jax.config import DataConfig, TrainConfig
from drsformer_jax.config.file import changes, changes_learning
from drsformer_jax.errors import InputError
from drsformer_jax.files import write_text
from drsformer_jax.training import processes
from drsformer_jax.training.checkpoint import Run, check_architecture
from drsformer_jax.training.optim import schedule_warning
from drsformer_jax.training.processes import say
from drsformer_jax.training.step import TrainState


def resumed(
    config: TrainConfig, run: Run, latest: int, trained: str, allow_changes: bool
) -> TrainConfig:
    """Compares a run that has begun with its last checkpoint.

    Args:
        config: what the user gave.
        run: the run.
        latest: step of its last checkpoint.
        trained: digest of the pairs to train on; if the checkpoint has another one, a line says so.
        allow_changes: see `check_configuration`.

    Returns:
        The configuration, with what the run has begun from.

    Raises:
        InputError: if the configuration does not fit the checkpoint, which may also be damaged.
    """
    old = run.config(latest)
    if config.init_from and not _is_same(config.init_from, old.init_from):
        if old.init_from:
            raise InputError(
                f"{run.name} has begun from {old.init_from}; expected another --workdir for "
                f"--init-from {config.init_from}, or the command without it"
            )
        # Older versions forgot it when they resumed without it.
        say(f"warning: {run.name} has begun, so --init-from {config.init_from} has no effect")
    config = dataclasses.replace(config, init_from=old.init_from)
    check_configuration(old, config, run.name, allow_changes)
    if run.trained_on(latest) not in ("", trained):
        say(f"warning: the training pairs are not those of the checkpoint of step {latest}")
    return config


def _is_same(first: str, second: str) -> bool:
    """Whether two paths, addresses or names of networks are one."""
    return first == second or Path(first).resolve() == Path(second).resolve()


def check_configuration(
    old: TrainConfig, new: TrainConfig, where: str, allow_changes: bool = False
) -> None:
    """Shows what has changed since a run's last checkpoint, and rejects what is not allowed.

    Args:
        old: the checkpoint's configuration.
        new: the one to go on with.
        where: what the user calls the run.
        allow_changes: whether all but the architecture may change.

    Raises:
        InputError: names what must not change.
    """
    check_architecture(old.model, new.model, where)
    # So newer fields of rain stop no older run on other pairs, for example.
    unused = new.data.unused()
    changed = {
        name: each for name, each in changes(old, new).items() if not name.startswith(unused)
    }
    for name, (before, after) in changed.items():
        say(f"- {name} {before}\n+ {name} {after}")
    rejected = [name for name in changed if changes_learning(name)]
    if rejected and not allow_changes:
        raise InputError(
            f"{where} was trained with another {', '.join(rejected)} (shown above); "
            "expected the same, another --workdir, or --allow-changes"
        )


def announce(
    run: Run, config: TrainConfig, mesh: Mesh, state: TrainState, trained: int, validated: int
) -> None:
    """Prints what a run is about to do, and writes the list of parameters to a file.

    Args:
        run: the run.
        config: its configuration.
        mesh: its devices.
        state: what it starts from.
        trained: number of pairs to train on.
        validated: number of pairs to validate on.
    """
    optim = config.optim
    if processes.is_first():
        path = run.folder / "parameters.txt"
        write_text(path, get_parameter_overview(state.params, include_stats=False) + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    warmup = f" (the first {optim.warmup_steps:,} a warmup)" if optim.warmup_steps else ""
    say(
        f"{count:,} parameters ({run.name}/parameters.txt), {trained} training and "
        f"{validated} validation pairs, "
        f"{mesh.size} {jax.default_backend()} devices of {jax.process_count()} processes\n"
        f"steps {int(state.step)} to {config.steps} in {run.name}; learning rate "
        f"{optim.learning_rate:g} for {optim.constant_steps:,} steps{warmup}, then a cosine "
        f"decay to {optim.final_learning_rate:g} over {optim.cosine_steps:,}\n"
        f"{batches_in_words(config.data)}"
    )
    if warning := schedule_warning(config):
        say(warning)


def batches_in_words(config: DataConfig) -> str:
    """The crops of a step, and where they come from if there are several sources."""
    crops = ", ".join(
        f"{batch} of {side}x{side} pixels" + (f" from step {start:,}" if start else "")
        for start, side, batch in config.stages()
    )
    total = sum(weight for _, weight in config.named())
    shares = [f"{weight / total:.3g} of {name}" for name, weight in config.named()]
    mix = f"; their shares are {', '.join(shares)}" if len(shares) > 1 else ""
    return f"crops of a step: {crops}{mix}"

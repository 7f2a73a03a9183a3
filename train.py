"""Trains a network: python train.py --config configs/quickstart.py [--workdir DIR] [--FLAG VALUE].

Running the same command again continues where the last checkpoint was saved. SIGTERM and Ctrl-C
save one before they end the program.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the rest is imported: no traceback.

import jax
import tyro
from clu.parameter_overview import get_parameter_overview
from jax.sharding import Mesh
from tqdm import tqdm

from drsformer_jax import weights
from drsformer_jax.config import TrainConfig
from drsformer_jax.config.file import changes, changes_learning, load_config
from drsformer_jax.data.pairs import Pairs
from drsformer_jax.data.pipeline import Batch, batches, describe, on_device
from drsformer_jax.data.sources import Source, open_training, open_validation
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import check_writable, write_text
from drsformer_jax.flags import parse
from drsformer_jax.nn.functional import use_wide_types
from drsformer_jax.report.results import Kept, sheet, write_results
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.compile_cache import use_compile_cache
from drsformer_jax.scoring.complexity import training_operations
from drsformer_jax.scoring.evaluation import mean, shared_scores
from drsformer_jax.sharding import batch_sharding, check_batches, gathered, make_mesh
from drsformer_jax.training import (
    TrainState,
    abstract_state,
    compiled_step,
    placed_state,
    processes,
)
from drsformer_jax.training.checkpoint import Run, check_architecture
from drsformer_jax.training.hardware import peak_flops
from drsformer_jax.training.processes import Stop
from drsformer_jax.training.profiling import Profile
from drsformer_jax.training.reporting import MetricsWriter, Progress


@dataclass(frozen=True)
class Command:
    """Trains a network; run again, it continues where the last checkpoint was saved."""

    config: Path
    """Python file whose get_config() returns the TrainConfig; the fields below override it."""
    workdir: Path
    """Folder of the run: checkpoints, metrics, images. Processes on several machines share it."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    allow_changes: bool = False
    """Continue a run with another configuration than the one that it was started with."""
    profile: str | None = None
    """FROM:TO, first and last step to write a trace of, into profile/ of the run's folder."""
    coordinator_address: str | None = None
    """HOST:PORT of the first of several processes; on Cloud TPU pods and under Slurm it is found
    without."""
    num_processes: int | None = None
    """How many processes there are, likewise; 1 for one alone, whatever the environment says."""
    process_id: int | None = None
    """Which of them this one is, from 0, likewise."""


def main() -> None:
    """Parses the command line and trains."""
    started = time.monotonic()
    with processes.ended_together(), one_line_errors():
        command = parse_command(sys.argv[1:])
        use_wide_types(command.train.model)
        use_compile_cache()
        processes.join(command.coordinator_address, command.num_processes, command.process_id)
        train(command, started)


def train(command: Command, started: float) -> None:
    """Trains until `config.steps`, from the last checkpoint where there is one, and reports."""
    config = command.train
    processes.check_equal(repr(config), "the configuration")
    profile = Profile(command.profile, command.workdir / "profile")
    mesh = make_mesh(config.mesh)
    check_batches(config.data, mesh)
    sources = open_training(config.data, config.seed)
    validation = open_validation(config.data, config.seed)
    check_writable(command.workdir)
    with Stop() as stop:
        with Run(command.workdir, config.keep_checkpoints) as run:
            state = starting_state(command, run, mesh)
            start = int(state.step)
            announce(command, state, sources, validation)
            run.begin(config, start)
            with MetricsWriter(run.folder, start, processes.is_first()) as writer:
                training = Training(command, mesh, run, validation, writer, stop, profile)
                end = take_steps(training, state, sources)
            if end >= config.steps:
                report(training, started)
        if not end:
            say("stopped before the first step; the same command begins anew")
        elif end < config.steps:
            say(f"stopped after step {end}, which is saved; the same command continues")


@dataclass(frozen=True)
class Training:
    """What a run works with."""

    command: Command
    mesh: Mesh
    run: Run
    validation: Pairs
    writer: MetricsWriter
    stop: Stop
    profile: Profile

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.command.train


def starting_state(command: Command, run: Run, mesh: Mesh) -> TrainState:
    """The state of the run's last checkpoint; of a new run, one with given or drawn parameters."""
    config, latest = command.train, run.latest_step()
    if latest is not None:
        check_configuration(run.config(latest), command)
        return run.restore(latest, abstract_state(config, mesh))
    if not config.init_from:
        return placed_state(config, mesh)
    model, params = weights.load(config.init_from)
    check_architecture(model, config.model, Path(config.init_from))
    return placed_state(config, mesh, params)


def check_configuration(old: TrainConfig, command: Command) -> None:
    """Shows what has changed since a run's last checkpoint, and refuses what was not allowed."""
    check_architecture(old.model, command.train.model, command.workdir)
    changed = changes(old, command.train)
    for name, (before, after) in changed.items():
        say(f"- {name} {before}\n+ {name} {after}")
    refused = [name for name in changed if changes_learning(name)]
    if refused and not command.allow_changes:
        raise InputError(
            f"{command.workdir} was trained with another {', '.join(refused)} (shown above); "
            "expected the same, another --workdir, or --allow-changes"
        )


def take_steps(training: Training, state: TrainState, sources: Sequence[Source]) -> int:
    """Trains from a state on, until `config.steps` or a stop; returns the last step, saved."""
    config, run, stop = training.config, training.run, training.stop
    step = start = int(state.step)
    step_of = compiled_step(config, training.mesh)
    stream = shared_batches(training, sources, start)
    peak = peak_flops(list(training.mesh.devices.flat))
    if training.profile.misses(start, config.steps):
        say(f"warning: no step of --profile {training.command.profile} is trained; no trace")
    unchecked: deque[tuple[int, Mapping[str, jax.Array], list[str]]] = deque()
    if stop.before(start):
        return start
    if start and is_due(config, start) and not run.is_scored(start):
        validate(training, state)  # The last process was stopped before it had done so.
    if stop.now():
        return start
    with (
        contextlib.closing(stream),
        training.profile as profile,
        Progress(start, config.steps, peak, enabled=processes.is_first()) as progress,
    ):
        for step in range(start + 1, config.steps + 1):
            profile.before(step)
            asked = time.monotonic()
            batch, images = next(stream)
            waited = time.monotonic() - asked
            state, metrics = step_of(state, images)
            profile.after(step, metrics)
            crops, side = images["rainy"].shape[:2]
            progress.update(
                crops, training_operations(config.model, crops, side), waited, batch["skipped"]
            )
            unchecked.append((step, metrics, batch["name"]))
            stopping, evaluating = stop.at(step), is_due(config, step)
            logging = step == config.steps or step % config.log_every == 0
            saving = stopping or evaluating or step % config.checkpoint_every == 0
            # A step is checked while the next one is computed, unless something is done with it.
            while len(unchecked) > (0 if logging or saving else 1):
                values = checked(config, *unchecked.popleft())
            if logging:
                training.writer.scalars(step, progress.log(step, values))
            if saving:
                run.save(config, state)
                if evaluating and not stopping:
                    validate(training, state)
                progress.resume()
            if stopping or (saving and stop.now()):
                break
    return step


def is_due(config: TrainConfig, step: int) -> bool:
    """Whether the validation pairs are scored after a step."""
    return step == config.steps or step % config.eval_every == 0


def shared_batches(
    training: Training, sources: Sequence[Source], start: int
) -> Generator[tuple[Batch, dict[str, jax.Array]]]:
    """Batches on the devices, of which this process reads its share."""
    share = batches(
        sources,
        training.config.data,
        seed=training.config.seed,
        start=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    return on_device(share, batch_sharding(training.mesh))


def checked(
    config: TrainConfig, step: int, metrics: Mapping[str, jax.Array], names: list[str]
) -> dict[str, float]:
    """The metrics of a step; stops the run at more steps that are not finite than it may have."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            found = f"the {name} of step {step} is {values[name]}; the batch was {describe(names)}"
            if values["nonfinite_steps"] > config.optim.nonfinite_steps:
                raise InputError(f"{found}; expected a finite number")
            # In each process, which knows its own images alone.
            tqdm.write(f"warning: {found}; nothing is learned from it")
            break
    return values


def validate(training: Training, state: TrainState) -> None:
    """Scores the current parameters on the validation pairs, unless that is stopped."""
    config, pairs, step = training.config, training.validation, int(state.step)
    params = gathered(state.best_params, training.mesh)
    restorer = Restorer(config.model, params)
    kept = Kept()
    scores = shared_scores(restorer, pairs, config.protocol, training.stop.now, kept.add)
    if scores is None:
        return
    result = mean(scores)
    training.writer.scalars(
        step,
        {
            f"validation/{config.protocol}/psnr": result.restored_psnr,
            f"validation/{config.protocol}/ssim": result.restored_ssim,
        },
    )
    # Last: what has a score is not scored again.
    training.run.score(step, config.protocol, result.restored_psnr, result.restored_ssim)
    if processes.is_first():
        training.writer.image(step, "validation", sheet([kept.examples[0]]))
    say(
        f"step {step}: validation PSNR {result.restored_psnr:.2f} dB, SSIM "
        f"{result.restored_ssim:.4f} ({config.protocol}), rainy {result.rainy_psnr:.2f} dB"
    )


def report(training: Training, started: float) -> None:
    """Scores the best checkpoint, draws images and says what was gained."""
    config, run, pairs = training.config, training.run, training.validation
    best = run.best_step()
    assert best is not None
    restorer = Restorer(config.model, run.restore_params(best, config.model))
    kept = Kept()
    scores = shared_scores(restorer, pairs, config.protocol, training.stop.now, kept.add)
    if scores is None:
        say(f"stopped after step {config.steps}, which is saved; the same command reports")
    if scores is None or not processes.is_first():
        return
    folder = training.command.workdir
    write_results(folder, config, best, restorer, pairs, scores, kept)
    result = mean(scores)
    print(
        f"{folder / 'report.html'} shows the run; images are in {folder / 'validation'} and "
        f"{folder / 'comparison.png'}; scored by protocol {config.protocol}"
    )
    print(
        f"rainy {result.rainy_psnr:.2f} dB, restored {result.restored_psnr:.2f} dB, "
        f"gain {result.gain:.2f} dB, {time.monotonic() - started:.0f} s"
    )


def announce(
    command: Command, state: TrainState, sources: Sequence[Source], validation: Pairs
) -> None:
    """Says what is about to happen, and lists the parameters in a file."""
    config, optim = command.train, command.train.optim
    path = command.workdir / "parameters.txt"
    if processes.is_first():
        write_text(path, get_parameter_overview(state.params, include_stats=False) + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    pairs = sum(len(source.pairs) for source in sources)
    warmup = f" ({optim.warmup_steps:,} of them to rise)" if optim.warmup_steps else ""
    say(
        f"{count:,} parameters ({path}), {pairs} pairs to train on, {len(validation)} to score, "
        f"{jax.device_count()} {jax.default_backend()} devices of {jax.process_count()} processes\n"
        f"steps {int(state.step)} to {config.steps} in {command.workdir}; learning rate "
        f"{optim.learning_rate:g} for {optim.constant_steps:,} steps{warmup}, then by cosine to "
        f"{optim.final_learning_rate:g} over {optim.cosine_steps:,}"
    )


def say(text: str) -> None:
    """Prints, in the first process, above the progress bar."""
    if processes.is_first():
        tqdm.write(text)
        sys.stdout.flush()


def parse_command(arguments: Sequence[str]) -> Command:
    """The command line, with the values of the file that --config names as defaults."""
    path = Path("configs/quickstart.py")
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=False):
        if flag == "--config" or flag.startswith("--config="):
            path = Path(flag.partition("=")[2] or value)
    default = Command(path, Path("runs") / path.stem, load_config(path))
    return parse(
        functools.partial(tyro.cli, Command, default=default), prog="train.py", args=arguments
    )


if __name__ == "__main__":
    main()

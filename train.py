"""Trains a network: python train.py --config configs/quickstart.py [--workdir DIR] [--FLAG VALUE].

On SIGTERM and Ctrl-C it checkpoints and exits cleanly; rerun the command to resume.
"""

from __future__ import annotations

from drsformer_jax.errors import InputError, before_imports, check_device, one_line_errors

if __name__ == "__main__":
    before_imports()

import contextlib
import dataclasses
import functools
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from jax.sharding import Mesh

from drsformer_jax import remote, weights
from drsformer_jax.config import TrainConfig
from drsformer_jax.config.file import load_config
from drsformer_jax.data.pairs import Pairs
from drsformer_jax.data.pipeline import Batch, batches, on_device
from drsformer_jax.data.sources import (
    Source,
    cached,
    decode_validation,
    digest_of,
    find_training,
    open_validation,
    uncached,
)
from drsformer_jax.files import check_writable
from drsformer_jax.flags import local, parse
from drsformer_jax.metrics import cpu_device
from drsformer_jax.nn.functional import is_wide
from drsformer_jax.report.results import Kept, Scored, sheet, write_results
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.compile_cache import use_compile_cache
from drsformer_jax.scoring.complexity import training_operations
from drsformer_jax.scoring.evaluation import mean, shared_scores
from drsformer_jax.sharding import batch_sharding, check_batches, gathered, make_mesh
from drsformer_jax.training import (
    TrainState,
    abstract_state,
    compiled_step,
    processes,
    sharded_state,
)
from drsformer_jax.training.checkpoint import Run, check_architecture
from drsformer_jax.training.hardware import memory_in_one_line, peak_flops
from drsformer_jax.training.processes import Stop, say
from drsformer_jax.training.profiling import Profile
from drsformer_jax.training.reporting import MetricsWriter, Progress, checked
from drsformer_jax.training.starting import announce, resumed
from drsformer_jax.training.watchdog import waits_for

_RESUME = "rerun the command to resume"


@dataclass(frozen=True)
class Command:
    """Trains a network; rerun the command to resume from the last checkpoint."""

    config: Path
    """Python file whose get_config() returns the TrainConfig; the flags below override it."""
    workdir: Path
    """Folder of the run: checkpoints, metrics, images. Processes on several machines share it."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    allow_changes: bool = False
    """Resume a run with another configuration than that of its last checkpoint."""
    profile: str | None = None
    """FROM:TO, first and last step of a trace, which is written to profile/ in the run's folder."""
    coordinator_address: str | None = None
    """HOST:PORT of the first of several processes; default: found on Cloud TPU pods and under
    Slurm, Open MPI and Kubernetes."""
    num_processes: int | None = None
    """Number of processes; default: found as the address is. 1 trains with this process alone."""
    process_id: int | None = None
    """Number of this process, from 0; default: found as the address is."""
    step_timeout: float = 1800
    """Seconds that a batch, a compiled step, an image of an evaluation or a checkpoint may take,
    before the run ends; 0 for any time."""


def main() -> None:
    """Trains as the command line says, from the last checkpoint if there is one."""
    started = time.monotonic()
    with processes.ended_together(), one_line_errors(), memory_in_one_line():
        command = parse_command(sys.argv[1:])
        if __name__ == "__main__":  # Else each of --data.workers would import all of this, too.
            globals().pop("__file__", None)  # The flags' help needed it.
        configure_jax(command)
        with opened(command) as found:
            if found is None:
                return
            training, state = found
            end, scored = take_steps(training, state)
            report(training, end, scored, started)
        say_if_stopped(command, end)


@dataclass(frozen=True)
class Training:
    """What a run works with."""

    command: Command
    mesh: Mesh
    run: Run
    sources: list[Source]
    validation: Pairs
    writer: MetricsWriter
    stop: Stop
    profile: Profile

    @property
    def config(self) -> TrainConfig:
        """The run's configuration."""
        return self.command.train


def configure_jax(command: Command) -> None:
    """Sets what must be set before JAX computes anything, and connects the processes."""
    if is_wide(command.train.model):
        jax.config.update("jax_enable_x64", True)
    use_compile_cache()
    processes.join(command.coordinator_address, command.num_processes, command.process_id)
    check_device(jax.devices)
    cpu_device()  # Which the evaluations need.
    processes.check_equal(repr(command.train), "the configuration")
    processes.check_equal(remote.address(command.workdir), "--workdir")
    processes.watch_steps(command.step_timeout)


@contextlib.contextmanager
def opened(command: Command) -> Iterator[tuple[Training, TrainState] | None]:
    """Checks everything that can be checked before the first step, and opens the run.

    Yields:
        What the run works with, and the train state that it starts from; None of one that is past
        its --steps.
    """
    config = command.train
    profile = Profile(command.profile, enabled=processes.is_first())
    mesh = make_mesh(config.mesh)
    check_batches(config.data, mesh)
    cache = config.data.cache_dir
    if cache and Path(cache).resolve() == command.workdir.resolve():  # Each has a lock.
        raise InputError(f"--data.cache-dir is {cache}, the --workdir; expected another folder")
    found = find_training(config.data, config.seed)
    validation = open_validation(config.data, config.seed)
    if not remote.address(command.workdir):
        check_writable(command.workdir)
        processes.check_shared(command.workdir, "--workdir")
    with Stop() as stop, Run(command.workdir, config.keep_checkpoints) as run:
        latest = run.latest_step() or 0
        if latest > config.steps:
            say(f"{run.name} is at step {latest}, past --steps {config.steps}: nothing is done")
            yield None
            return
        digest = digest_of(found)
        if latest:
            config = resumed(config, run, latest, digest, command.allow_changes)
            command = dataclasses.replace(command, train=config)
        state = initial_state(command, run, mesh)
        if stop.asked():
            sources = uncached(found, config.data)  # Of which no step will read.
        else:
            with stop.suspended():  # It may take hours, so it comes last, and a signal ends it.
                process = jax.process_index(), jax.process_count()
                decode_validation(validation, config.data, *process)
                sources = cached(found, config.data)
                # Machines have caches of their own, which take one longer than another.
                processes.wait_for_all("the caches of all processes")
        processes.check_equal(repr([len(each.pairs) for each in sources]), "the number of pairs")
        validated = digest_of([validation])
        processes.check_equal(f"{digest} {validated}", "the pairs")
        start = int(state.step)
        pairs = sum(len(each.pairs) for each in sources)
        announce(run, config, mesh, state, pairs, len(validation))
        run.begin(config, start, digest, validated)
        with MetricsWriter(run.folder, start, processes.is_first()) as writer:
            yield Training(command, mesh, run, sources, validation, writer, stop, profile), state


def initial_state(command: Command, run: Run, mesh: Mesh) -> TrainState:
    """The train state of the run's last checkpoint; for a new run, an initialized one."""
    config, latest = command.train, run.latest_step()
    if latest is not None:
        return run.restore(latest, abstract_state(config, mesh))
    if not config.init_from:
        return sharded_state(config, mesh)
    model, params = weights.load(config.init_from)
    check_architecture(model, config.model, config.init_from)
    return sharded_state(config, mesh, params)


def take_steps(training: Training, state: TrainState) -> tuple[int, Scored | None]:
    """Trains until the end or a stop; returns the last step, which is saved, and its scores."""
    config, run, stop = training.config, training.run, training.stop
    step = start = int(state.step)
    train_step = compiled_step(config, training.mesh)
    stream = sharded_batches(training, start)
    peak = peak_flops(list(training.mesh.devices.flat))
    if training.profile.misses(start, config.steps):
        say(f"warning: no step of --profile {training.command.profile} is trained; no trace")
    unchecked: deque[tuple[int, Mapping[str, jax.Array], list[str]]] = deque()
    scored, compiled = None, set()
    missed = start and is_due(config, start) and not run.is_scored(start)
    if not stop.asked() and missed:
        scored = validate(training, state)  # The last process was stopped before it had done so.
    if stop.asked():
        return start, scored
    with (
        contextlib.closing(stream),
        training.profile as profile,
        Progress(start, config.steps, peak, enabled=processes.is_first()) as progress,
    ):
        for step in range(start + 1, config.steps + 1):
            profile.before(step, run.folder / "profile")
            asked = time.monotonic()
            waits_for(f"the batch of step {step}")
            batch, images = next(stream)
            waited, shape = time.monotonic() - asked, images["rainy"].shape
            waits_for(f"step {step} on the devices", limited=shape in compiled)
            compiled.add(shape)
            # Whatever a step needs is on the devices: no copy slips in unseen.
            annotated = jax.profiler.StepTraceAnnotation("train", step_num=step)
            with annotated, jax.transfer_guard("disallow"):
                state, metrics = train_step(state, images)
            profile.after(step, metrics)
            operations = training_operations(config.model, *shape[:2])
            progress.update(shape[0], operations, waited, batch["skipped"])
            unchecked.append((step, metrics, batch["name"]))
            stopping, evaluating = stop.asked(), is_due(config, step)
            logging = step == config.steps or step % config.log_every == 0
            saving = stopping or evaluating or step % config.checkpoint_every == 0
            # Checked while the next step is computed, unless this one is logged or saved.
            while len(unchecked) > (0 if logging or saving else 1):
                values = checked(config, *unchecked.popleft())
            if logging:
                training.writer.scalars(step, progress.log(step, values))
                # The file for TensorBoard, which has all images, goes with checkpoints.
                run.push(without="tensorboard")
            if saving:
                waits_for(f"the checkpoint of step {step}")
                run.save(config, state)
                run.push()
                if evaluating and not stopping:
                    found = validate(training, state)
                    scored = found if step == config.steps else None
                progress.resume()
            if stopping or (saving and stop.asked()):
                break
    waits_for(f"what follows step {step}", limited=False)
    return step, scored


def is_due(config: TrainConfig, step: int) -> bool:
    """Whether there is an evaluation after a step."""
    return step == config.steps or step % config.eval_every == 0


def sharded_batches(
    training: Training, start: int
) -> Generator[tuple[Batch, dict[str, jax.Array]]]:
    """Batches from step `start` + 1 on, sharded over the devices; this process reads its part."""
    own = batches(
        training.sources,
        training.config.data,
        seed=training.config.seed,
        start=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    return on_device(own, batch_sharding(training.mesh))


def validate(training: Training, state: TrainState) -> Scored | None:
    """Evaluates the current parameters on the validation pairs; None if the run is stopped."""
    config, step = training.config, int(state.step)
    params = gathered(state.best_params, training.mesh)
    scored = scores_of(training, Restorer(config.model, params))
    if scored is None:
        return None
    scores, kept = scored
    result = mean(scores)
    training.writer.scalars(
        step,
        {
            f"validation/{config.protocol}/psnr": result.restored_psnr,
            f"validation/{config.protocol}/ssim": result.restored_ssim,
        },
    )
    # Last, since a step that has a score is not evaluated again.
    training.run.score(step, config.protocol, result.restored_psnr, result.restored_ssim)
    if processes.is_first():
        training.writer.image(step, "validation", sheet([kept.examples[0]]))
    say(
        f"step {step}: validation PSNR {result.restored_psnr:.2f} dB, SSIM "
        f"{result.restored_ssim:.4f} ({config.protocol}), rainy {result.rainy_psnr:.2f} dB"
    )
    return scored


def scores_of(training: Training, restorer: Restorer) -> Scored | None:
    """Evaluates a network on the validation pairs; None if the run is stopped."""
    kept = Kept()
    scores = shared_scores(
        restorer, training.validation, training.config.protocol, training.stop.asked, kept.add
    )
    return None if scores is None else (scores, kept)


def report(training: Training, end: int, scored: Scored | None, started: float) -> None:
    """After the last step, writes images and the report of the best checkpoint.

    `scored` is the evaluation of the step `end`, if it is at hand.
    """
    config, run = training.config, training.run
    if end < config.steps:
        return
    best = run.best_step()
    assert best is not None
    restorer = Restorer(config.model, run.restore_params(best, config.model))
    if scored is None or best != end:
        scored = scores_of(training, restorer)
    if scored is None:
        say(f"stopped before the report; the checkpoint of step {end} is saved; {_RESUME}")
    if scored is None or not processes.is_first():
        return
    scores, kept = scored
    name = remote.shown(training.command.workdir)
    title = f"{Path(name).absolute().name}, step {best}"
    write_results(run.folder, config, restorer, training.validation, scores, kept, title=title)
    run.push()
    result = mean(scores)
    print(
        f"{name}/report.html shows the run; images are in {name}/validation and "
        f"{name}/comparison.png; scored by protocol {config.protocol}"
    )
    print(
        f"rainy {result.rainy_psnr:.2f} dB, restored {result.restored_psnr:.2f} dB, "
        f"gain {result.gain:.2f} dB, {time.monotonic() - started:.0f} s"
    )


def say_if_stopped(command: Command, end: int) -> None:
    """Says where a run that was stopped resumes, once its last checkpoint is written."""
    if not end:
        say("stopped before the first step; rerun the command to start")
    elif end < command.train.steps:
        say(f"stopped after step {end}; its checkpoint is saved; {_RESUME}")


def parse_command(arguments: list[str]) -> Command:
    """Parses the command line, with the values of the file that --config names as defaults."""
    arguments = local(arguments, "train.py")
    path = Path("configs/quickstart.py")
    if not path.is_file():
        path = Path(__file__).parent / path
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=False):
        if flag == "--config" or flag.startswith("--config="):
            path = Path(flag.partition("=")[2] or value)
    default = Command(path, Path("runs") / path.stem, load_config(path))
    return parse(
        functools.partial(tyro.cli, Command, default=default), prog="train.py", args=arguments
    )


if __name__ == "__main__":
    main()

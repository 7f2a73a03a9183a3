"""Trains a network: python train.py --config configs/quickstart.py [--workdir DIR] [--field value].

Running the same command again continues where the last checkpoint was saved.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from tqdm import tqdm

from drsformer_jax.checkpoint import Run, check_architecture
from drsformer_jax.compile_cache import use_compile_cache
from drsformer_jax.config import TrainConfig
from drsformer_jax.config_file import read_config
from drsformer_jax.data.images import write_picture
from drsformer_jax.data.pairs import Pairs
from drsformer_jax.data.pipeline import Batch, batches, describe, on_device
from drsformer_jax.data.sheets import contact_sheet
from drsformer_jax.data.sources import Source, open_training, open_validation
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.evaluation import Scores, evaluate, mean
from drsformer_jax.flags import parse
from drsformer_jax.nn.functional import use_wide_types
from drsformer_jax.reporting import MetricsWriter, Progress
from drsformer_jax.restore import Restorer
from drsformer_jax.sharding import batch_sharding, data_mesh, replicated
from drsformer_jax.training import TrainState, init_state, train_step

_SHOWN_PICTURES = 8
_TITLES = ("rainy", "restored", "clean")


@dataclass(frozen=True)
class Command:
    """Trains a network; run again, it continues where the last checkpoint was saved."""

    config: Path
    """Python file whose get_config() returns the TrainConfig; the fields below override it."""
    workdir: Path
    """Folder of the run: checkpoints, metrics, pictures."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]


def main() -> None:
    """Parses the command line and trains."""
    started = time.monotonic()
    with one_line_errors():
        command = parse_command(sys.argv[1:])
        use_wide_types(command.train.model)
        use_compile_cache()
        train(command.train, command.workdir, started)


def train(config: TrainConfig, workdir: Path, started: float) -> None:
    """Trains until `config.steps`, from the last checkpoint where there is one, and reports."""
    sources = open_training(config.data, config.seed)
    validation = open_validation(config.data, config.seed)
    with Run(workdir, config.keep_checkpoints) as run:
        mesh = data_mesh(jax.devices()[:1])
        # Where it lies decides, like shapes, which program runs; a step leaves it in this place.
        state = jax.device_put(initial_state(config, run), replicated(mesh))
        run.write_config(config)
        start = int(state.step)
        announce(config, workdir, state, sources, validation)
        stream = on_device(
            batches(sources, config.data, seed=config.seed, start=start),
            batch_sharding(mesh),
        )
        with (
            contextlib.closing(stream),
            MetricsWriter(workdir, start) as writer,
            Progress(start, config.steps) as progress,
        ):
            for step in range(start + 1, config.steps + 1):
                batch, pictures = next(stream)
                state, metrics = train_step(config, state, pictures)
                values = {name: float(x) for name, x in jax.device_get(metrics).items()}
                check_finite(step, values, batch)
                progress.update(len(batch["name"]), batch["skipped"])
                last = step == config.steps
                if last or step % config.log_every == 0:
                    writer.scalars(step, progress.log(step, values))
                psnr = None
                if last or step % config.eval_every == 0:
                    psnr = validate(config, state, validation, writer).restored_psnr
                if psnr is not None or step % config.checkpoint_every == 0:
                    run.save(state, psnr)
                    progress.resume()
    report(config, workdir, validation, started)


def initial_state(config: TrainConfig, run: Run) -> TrainState:
    """The state of the run's last checkpoint, or drawn by the seed where there is none."""
    key = jax.random.key(config.seed)
    latest = run.latest_step()
    if latest is None:
        return init_state(config, key)
    check_architecture(read_config(run.folder).model, config.model, run.folder)
    return run.restore(latest, jax.eval_shape(lambda key: init_state(config, key), key))


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


def load_config(path: Path) -> TrainConfig:
    """Runs get_config() of a Python file."""
    if not path.is_file():
        raise InputError(f"--config {path} is no file; expected one such as configs/quickstart.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config {path} is no Python file; expected one with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # the file is the user's, and may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} fails ({reason}); expected get_config() to work") from error
    if not isinstance(config, TrainConfig):
        raise InputError(f"get_config() of {path} returns {config!r}; expected a TrainConfig")
    return config


def announce(
    config: TrainConfig,
    workdir: Path,
    state: TrainState,
    sources: Sequence[Source],
    validation: Pairs,
) -> None:
    """Says what is about to happen."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    pairs = sum(len(source.pairs) for source in sources)
    optim = config.optim
    print(
        f"{count:,} parameters, {pairs} pairs to train on, {len(validation)} to score, "
        f"{jax.default_backend()}\n"
        f"steps {int(state.step)} to {config.steps} in {workdir}; learning rate "
        f"{optim.learning_rate:g} for {optim.constant_steps:,} steps, then by cosine to "
        f"{optim.final_learning_rate:g} over {optim.cosine_steps:,}",
        flush=True,
    )


def check_finite(step: int, values: dict[str, float], batch: Batch) -> None:
    """Stops the run, before anything of the step is saved, at a loss or gradient not finite."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            raise InputError(
                f"the {name} of step {step} is {values[name]}; expected a finite number; "
                f"the batch was {describe(batch['name'])}"
            )


def validate(
    config: TrainConfig, state: TrainState, validation: Pairs, writer: MetricsWriter
) -> Scores:
    """Scores the current parameters on the validation pairs."""
    step = int(state.step)
    restorer = Restorer(config.model, state.params)
    scores: list[Scores] = []
    for pair, restored, score in evaluate(restorer, validation, config.protocol):
        if not scores:
            sheet = contact_sheet([(pair["rainy"], restored, pair["clean"])], _TITLES)
            writer.picture(step, "validation", sheet)
        scores.append(score)
    result = mean(scores)
    writer.scalars(
        step,
        {
            f"validation/{config.protocol}/psnr": result.restored_psnr,
            f"validation/{config.protocol}/ssim": result.restored_ssim,
        },
    )
    tqdm.write(
        f"step {step}: validation PSNR {result.restored_psnr:.2f} dB, SSIM "
        f"{result.restored_ssim:.4f} ({config.protocol}), rainy {result.rainy_psnr:.2f} dB"
    )
    return result


def report(config: TrainConfig, workdir: Path, validation: Pairs, started: float) -> None:
    """Scores the best checkpoint, writes the first pictures and says what was gained."""
    scores: list[Scores] = []
    rows: list[tuple[np.ndarray, ...]] = []
    results = evaluate(Restorer.load(workdir), validation, config.protocol)
    for pair, restored, score in results:
        scores.append(score)
        if len(rows) < _SHOWN_PICTURES:
            rows.append((pair["rainy"], restored, pair["clean"]))
            for folder, picture in zip(("input", "restored", "target"), rows[-1], strict=True):
                name = Path(pair["name"]).with_suffix(".png")
                write_picture(workdir / "validation" / folder / name, picture)
    write_picture(workdir / "comparison.png", contact_sheet(rows[:4], _TITLES))
    result = mean(scores)
    print(
        f"pictures are in {workdir / 'validation'} and {workdir / 'comparison.png'}; "
        f"scored by protocol {config.protocol}"
    )
    print(
        f"rainy {result.rainy_psnr:.2f} dB, restored {result.restored_psnr:.2f} dB, "
        f"gain {result.gain:.2f} dB, {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()

"""Puts a trained network into the package: weights in 16 bits, and a card with scores and credits.

python tools/ship_pretrained.py RUN --photographs DIR --data Rain100L=DIR ...

`benchmarks/pretrained.py` scores the very weights that are shipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from gather_photographs import LIST, SPLITS, Photograph, credits_text, read_list

from drsformer_jax import weights
from drsformer_jax.config import TrainConfig
from drsformer_jax.data.synthetic import photographs
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import write_text
from drsformer_jax.scoring.complexity import parameters
from drsformer_jax.training.checkpoint import Run
from drsformer_jax.training.reporting import read_metrics

ROOT = Path(__file__).parents[1]
OUT = ROOT / "drsformer_jax" / "pretrained"
MOST_BYTES = 6_000_000
"""Of the folder."""
_NAMES = {"README.md", "config.json", "params.safetensors"}
_DTYPE = "float16"
_CARD = """# The built-in network

{parameters:,} parameters, trained by `configs/pretrained.py`{runs} for {steps:,} steps,
{crops:,} crops in all, {hours:.1f} hours. {decay}No image of a benchmark was trained on: the rain
is synthetic, rendered on {train} photographs, and {validation} others are for validation. But
benchmark images were used to tune the synthetic rain: the ranges of light and heavy rain to the
statistics of the pairs of Rain100L and Rain200H that are scored below, and the form of ragged rain
to rain of Rain100L and of the pairs of Rain200L that are scored below. 40 training pairs of
Rain100L, which are not scored here, were used to select it. Weights are stored and scored in
{dtype}.

## Scores

{scores}
## Limits

![heavy rain on a façade, restored](../../docs/limits.jpg)

*Main entrance of the Palais des Papes (Tognopop, CC0) under heavy synthetic rain, and the
restored image.*

Under heavy rain details are lost: masonry becomes smooth, and streaks remain in the sky. The
training data has no drops on the lens. Fog stays, because the targets of fine rain have it too.
Photographs without rain change little: the two columns "clean" above.

How the network is trained: `docs/pretrained.md`.

## Photographs

{credits}
"""


def main() -> None:
    """Writes the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a training run by configs/pretrained.py")
    add("--step", type=int, help="checkpoint; the best one if not given")
    add("--photographs", default="photographs", help="what it was trained on (%(default)s)")
    add("--data", nargs="+", default=[], metavar="NAME=DIR", help="as of benchmarks/pretrained.py")
    add("--out", type=Path, default=OUT, help="folder to write (%(default)s)")
    arguments = parser.parse_args()
    with one_line_errors():
        ship(arguments.run, arguments.step, arguments.photographs, arguments.data, arguments.out)


def ship(run: Path, step: int | None, source: str, data: list[str], out: Path) -> None:
    """Writes weights and card; what is there stays until both are whole.

    Args:
        run: the training run.
        step: its checkpoint; default: the best one.
        source: folder of the photographs.
        data: sets of pairs to score on, as `benchmarks/pretrained.py` takes them.
        out: the folder.

    Raises:
        InputError: if the run has no such checkpoint or was trained otherwise than the card says,
            a weight is beyond float16, scoring fails, the folder is too large, or `out` holds
            something else.
        OSError: if the file system fails.
    """
    if out.exists() and not {path.name for path in out.iterdir()} <= _NAMES:
        raise InputError(f"{out} holds other files than {', '.join(sorted(_NAMES))}; expected none")
    listed = read_list(LIST)
    with Run(run, keep=None) as opened:
        step = opened.best_step() if step is None else step
        if step is None:
            raise InputError(f"{run} has no checkpoint; expected a run that was trained")
        config = opened.config(step)
    check_training(run, config, source, listed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as work:
        folder = Path(work) / "pretrained"
        # How a program trains best is no matter of those who use its weights.
        model = dataclasses.replace(config.model, unroll=False, remat=False)
        params = weights.stored_as(weights.load(run, step)[1], _DTYPE)
        weights.save(folder, model, params)
        table = scored(folder, source, data)
        write_text(folder / "README.md", card(run, step, config, table, listed))
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > MOST_BYTES:
            raise InputError(f"the folder takes {size:,} bytes; expected at most {MOST_BYTES:,}")
        old = Path(work) / "old"
        if out.exists():
            out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    print(f"{run}, step {step}: {size:,} bytes in {out}")


def check_training(run: Path, config: TrainConfig, source: str, listed: list[Photograph]) -> None:
    """Rejects a run that was trained on something else than the photographs of the list.

    Raises:
        InputError: if it was, or the photographs in `source` are others.
    """
    data = config.data
    if data.sources or (data.train, data.validation) != ("synthetic", "synthetic"):
        raise InputError(f"{run} was trained on {data.sources or data.train}; expected synthetic")
    if data.photographs == "skimage":
        raise InputError(f"{run} was trained on skimage; expected the photographs of {LIST}")
    for split, found in zip(SPLITS, photographs(source), strict=True):
        names = {photograph.name for photograph in found}
        expected = {one.name for one in listed if one.split == split}
        if names != expected:
            other = sorted(names ^ expected)[0]
            raise InputError(f"{source} and {LIST} differ in {split}/{other}.png; expected equal")


def scored(folder: Path, source: str, data: list[str]) -> str:
    """The table of a model folder, as Markdown.

    Raises:
        InputError: if scoring fails.
    """
    with tempfile.TemporaryDirectory() as work:
        table = Path(work) / "scores.md"
        program = str(ROOT / "benchmarks" / "pretrained.py")
        sets = ["--data", *data] if data else []
        command = [sys.executable, program, "--checkpoint", str(folder), "--photographs", source]
        if subprocess.run([*command, *sets, "--markdown", str(table)]).returncode:
            raise InputError("scoring failed, as reported above; expected it to end")
        return table.read_text().replace(str(folder), "the built-in network")


def card(run: Path, step: int, config: TrainConfig, scores: str, listed: list[Photograph]) -> str:
    """The text of the model card."""
    splits = [photograph.split for photograph in listed]
    decay = step - config.optim.constant_steps
    stages = config.data.stages()
    ends = [begin for begin, _, _ in stages[1:]] + [step]
    crops = sum(
        batch * max(0, min(step, end) - begin)
        for (begin, _, batch), end in zip(stages, ends, strict=True)
    )
    begun = " in several runs (see `docs/pretrained.md`), the last one" if config.init_from else ""
    return _CARD.format(
        parameters=parameters(config.model),
        steps=step,
        crops=crops,
        decay=f"The learning rate decays in the last {decay:,} steps. " if decay > 0 else "",
        hours=hours(run, step, config),
        runs=begun,
        train=splits.count("train"),
        validation=splits.count("validation"),
        dtype=_DTYPE,
        scores=scores.rstrip() + "\n",
        credits=credits_text(listed).rstrip(),
    )


def hours(run: Path, step: int, config: TrainConfig) -> float:
    """Hours of training until a step, by the throughput in the metrics; pauses do not count."""
    # Of a step that was taken twice the last counts.
    logged = {
        values["step"]: values["images_per_second"]
        for values in read_metrics(run / "metrics.jsonl")
        if "images_per_second" in values
    }
    spent, last = 0.0, 0
    for now in sorted(each for each in logged if each <= step):
        batch = next(size for begin, _, size in reversed(config.data.stages()) if begin < now)
        spent += batch * (now - last) / logged[now]
        last = now
    return spent / 3600


if __name__ == "__main__":
    main()

"""Puts a trained network into the package: weights in 16 bits, and a card with scores and credits.

python benchmarks/pretrained.py --checkpoint RUN --data ... --photographs DIR --markdown scores.md
python tools/ship_pretrained.py RUN --scores scores.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
from gather_photographs import LIST, credits_text, read_list

from drsformer_jax import weights
from drsformer_jax.checkpoint import Run
from drsformer_jax.complexity import parameters
from drsformer_jax.config import ModelConfig, TrainConfig
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import write_text

OUT = Path(__file__).parents[1] / "drsformer_jax" / "pretrained"
MOST_BYTES = 6_000_000
"""Of the weights."""
_CARD = """# The built-in network

{parameters:,} parameters, trained by `configs/pretrained.py` for {steps:,} steps of
{crops:,} crops together, in {hours:.1f} hours. It has seen no image of any benchmark: its
rain is synthetic, drawn on {train} photographs, and {validation} others chose the step.
Stored in float16.

## Scores

{scores}
How they were made, and how the training goes on: `docs/pretrained.md`.

## Photographs

{credits}
"""


def main() -> None:
    """Writes the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--scores", type=Path, required=True, help="table of the checkpoint")
    parser.add_argument("--step", type=int, help="checkpoint; the best one if not given")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (%(default)s)")
    arguments = parser.parse_args()
    with one_line_errors():
        ship(arguments.run, arguments.step, arguments.scores, arguments.out)


def ship(run: Path, step: int | None, scores: Path, out: Path) -> None:
    """Writes weights and card.

    Raises:
        InputError: if there is no such checkpoint, a weight is beyond float16, or all are too large
            for a package.
    """
    table = scores.read_text()
    with Run(run, keep=None) as opened:
        step = opened.best_step() if step is None else step
        if step is None:
            raise InputError(f"{run} has no checkpoint; expected a run that was trained")
        config = opened.config(step)
    _, params = weights.load(run, step)
    stored = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stored)):
        raise InputError(f"a weight of {run} is beyond float16; expected all below 65504")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    # How a program trains best is no matter of those who use its weights.
    model = dataclasses.replace(config.model, unroll=False, remat=False)
    weights.save(unfinished, model, stored)
    size = sum(path.stat().st_size for path in unfinished.iterdir())
    if size > MOST_BYTES:
        raise InputError(f"the weights take {size:,} bytes; expected at most {MOST_BYTES:,}")
    write_text(unfinished / "README.md", card(run, step, config, model, table))
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    print(f"{run}, step {step}: {size:,} bytes of weights in {out}")


def card(run: Path, step: int, config: TrainConfig, model: ModelConfig, scores: str) -> str:
    """The text of the model card."""
    photographs = read_list(LIST)
    splits = [photograph.split for photograph in photographs]
    # Metrics of a step that was taken twice, after a stop, count once.
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    logged = {line["step"]: line for line in lines if "pictures_per_second" in line}
    crops = seconds = last = 0
    for now in sorted(each for each in logged if each <= step):
        batch = next(size for begin, _, size in reversed(config.data.stages()) if begin < now)
        crops += batch * (now - last)
        seconds += batch * (now - last) / logged[now]["pictures_per_second"]
        last = now
    return _CARD.format(
        parameters=parameters(model),
        steps=step,
        crops=crops,
        hours=seconds / 3600,
        train=splits.count("train"),
        validation=splits.count("validation"),
        scores=scores.rstrip() + "\n",
        credits=credits_text(photographs).rstrip(),
    )


if __name__ == "__main__":
    main()

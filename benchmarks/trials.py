"""Trains networks of several kinds for the same time each, to choose one for a recipe.

python benchmarks/trials.py --seconds 480 [--arms gdfn msfn] [flags of train.py]

Each arm takes as many steps of `configs/pretrained.py` as fit into the seconds at the speed that is
measured before, so that other work during the training does not count. Its learning rate stays
constant, and the average of its parameters is scored. An arm that is finished is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from timing import Table, machine, seconds
from train_step import prepared

from drsformer_jax.config import PRESETS, ModelConfig
from drsformer_jax.config.file import load_config
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import check_writable, write_text
from drsformer_jax.scoring.complexity import parameters
from drsformer_jax.training.reporting import read_metrics

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "pretrained.py"
_GDFN = dataclasses.replace(PRESETS["tiny"], unroll=True)
ARMS: Mapping[str, ModelConfig] = {
    "gdfn": _GDFN,
    "dense": dataclasses.replace(_GDFN, attention="dense"),
    "msfn": dataclasses.replace(_GDFN, dim=12, feed_forward="msfn"),
    "wide": dataclasses.replace(_GDFN, dim=24, blocks=(1, 1, 1, 1)),
    "front": dataclasses.replace(_GDFN, dim=24, blocks=(2, 1, 1, 1), expansion=2.0),
}
"""The networks that are compared, by the names of their folders."""
AVERAGE = 0.99
"""Decay of the average of the parameters, for trainings that are so short."""
_WARM, _TIMED = 2, 5


def main() -> None:
    """Trains the arms that are not finished, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Other flags are those of train.py."
    )
    parser.add_argument("--seconds", type=float, required=True, help="of training for each arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="(all)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/trials"), help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments, flags = parser.parse_known_args()
    with one_line_errors():
        compare(arguments, flags)


def compare(arguments: argparse.Namespace, flags: Sequence[str]) -> None:
    """Trains one arm after another; a row of the table is printed when an arm is finished."""
    if not 0 < arguments.seconds < math.inf:
        raise InputError(f"--seconds is {arguments.seconds}; expected a number above 0")
    if arguments.json:
        check_writable(arguments.json.parent)
    table = Table(
        f"{arguments.seconds:g} s of training each; {machine()}",
        {
            "arm": "<6",
            "parameters": "10,d",
            "feed_forward": "<12",
            "attention": "<9",
            "ms_a_step": "9.0f",
            "steps": "6d",
            "psnr": "6.2f",
            "ssim": "6.4f",
        },
    )
    for arm in arguments.arms:
        model, folder = ARMS[arm], arguments.workdir / arm
        plan = folder / "trial.json"
        if not plan.exists():
            write_text(plan, json.dumps({"seconds_a_step": seconds_a_step(model)}))
        spent = json.loads(plan.read_text())["seconds_a_step"]
        steps = max(1, round(arguments.seconds / spent))
        score = trained(model, steps, folder, flags)
        table.add(
            arm=arm,
            parameters=parameters(model),
            feed_forward=model.feed_forward,
            attention=model.attention,
            ms_a_step=1e3 * spent,
            steps=steps,
            **score,
        )
    table.write(arguments.json)


def seconds_a_step(model: ModelConfig) -> float:
    """Seconds of a training step as the recipe takes it."""
    _, side, batch = load_config(CONFIG).data.stages()[0]
    step, _, _ = prepared(model, side, batch)
    for _ in range(_WARM):
        step()
    return min(seconds(step) for _ in range(_TIMED))


def trained(model: ModelConfig, steps: int, folder: Path, flags: Sequence[str]) -> dict[str, float]:
    """PSNR and SSIM on the validation scenes after some steps at a constant learning rate.

    Raises:
        InputError: if the training fails.
    """
    command = [sys.executable, str(ROOT / "train.py"), *options(model, steps, folder), *flags]
    if subprocess.run(command).returncode:
        raise InputError(f"training of {folder.name} failed, as reported above; expected it to end")
    scores: dict[str, float] = {}
    for values in read_metrics(folder / "metrics.jsonl"):
        scores |= {key.rpartition("/")[2]: values[key] for key in values if "validation/" in key}
    return scores


def options(model: ModelConfig, steps: int, folder: Path) -> list[str]:
    """Arguments of train.py that train a network by the recipe, at a constant learning rate."""
    found = ["--config", str(CONFIG), "--workdir", str(folder)]
    for name in ("--steps", "--eval-every", "--optim.constant-steps"):
        found += [name, str(steps)]
    found += ["--optim.warmup-steps", str(steps // 10), "--optim.ema-decay", str(AVERAGE)]
    for name, value in dataclasses.asdict(model).items():
        found += _flag(f"--model.{name.replace('_', '-')}", value)
    return found


def _flag(name: str, value: object) -> list[str]:
    """A field as arguments of train.py."""
    if isinstance(value, bool):
        return [name if value else name.replace("--model.", "--model.no-")]
    values = value if isinstance(value, tuple) else (value,)
    return [name, *map(str, values)]


if __name__ == "__main__":
    main()

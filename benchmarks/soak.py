"""Trains `tiny` straight through, and again with stops at random: the same, and without a leak?

python benchmarks/soak.py --folder runs/soak [--json soak.json]
python benchmarks/soak.py --folder runs/smoke --steps 40 --stops 2

Ends with status 1 and one line when the two runs differ, when a stop goes wrong, or when the
memory of the straight run grows. JAX_PLATFORMS=cpu makes it a check of the CPU alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drsformer_jax.config.file import read_config
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.files import write_text
from drsformer_jax.images.pixels import write_image
from drsformer_jax.sharding import make_mesh
from drsformer_jax.training import TrainState, abstract_state
from drsformer_jax.training.checkpoint import Run
from drsformer_jax.training.reporting import read_metrics

ROOT = Path(__file__).parents[1]
LEARNED = re.compile("step|loss|grad_norm|learning_rate|nonfinite_steps|validation/.*")
"""Metrics that must be equal; throughput and memory never are."""
LOGGED = re.compile(r"^step (\d+)/", re.MULTILINE)
BEGUN = re.compile(r"^steps (\d+) to ", re.MULTILINE)
LAST_STOP = 0.8  # Of the steps; a later stop might come after the end.
SETTLED = 1000  # Steps; the first quarter of fewer does not fill the pools of the allocators.
PATIENCE = 600  # Seconds for a process to end after SIGTERM.


def main() -> None:
    """Prints the memory of the straight run, the stops of the other and what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new one, for both runs")
    parser.add_argument("--steps", type=int, default=2000, help="of each run (default 2000)")
    parser.add_argument("--stops", type=int, default=10, help="of the second run (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the stops (default 0)")
    parser.add_argument(
        "--growth", type=float, default=5, help="most, in %% after the first quarter (default 5)"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors():
        soak(arguments)


def soak(arguments: argparse.Namespace) -> None:
    """Trains twice and compares; raises InputError for what is wrong."""
    check(arguments)
    folder = arguments.folder.absolute()
    write_pairs(folder / "pairs")
    straight, stopped = folder / "straight", folder / "stopped"
    since = time.monotonic()
    with Attempt(straight, arguments.steps, folder / "straight.txt") as attempt:
        attempt.end(0)
    seconds = time.monotonic() - since
    print(f"{arguments.steps} steps straight through: {seconds:.0f} s", flush=True)
    memory = grown(straight)
    print(f"\n{'memory of the process':24} {'step':>6} {'MiB':>8}")
    for name, (step, mib) in memory["at"].items():
        print(f"{name:24} {step:6} {mib:8.0f}")
    print(
        f"after the first quarter {memory['slope']:+.1f} MiB in 1,000 steps (Theil-Sen), "
        f"{memory['growth']:+.1%} of {memory['median']:.0f} MiB in all",
        flush=True,
    )
    stops = train_with_stops(arguments, stopped, seconds)
    found = differences(straight, stopped)
    figures = {"seconds": seconds, "memory": memory, "stops": stops, "differences": found}
    if arguments.json:
        write_text(arguments.json, json.dumps(figures, indent=2) + "\n")
    if found:
        raise InputError(f"{len(found)} differences, the first: {found[0]}; expected none")
    print("parameters, average, optimizer state, metrics and scores are equal, bit for bit")
    if arguments.steps < SETTLED:
        print(f"memory has not settled in {arguments.steps} steps, and is not judged")
    elif memory["growth"] > arguments.growth / 100:
        raise InputError(
            f"memory grows by {memory['growth']:.1%} after the first quarter; expected at most "
            f"{arguments.growth:g}%"
        )


def check(arguments: argparse.Namespace) -> None:
    """Rejects what makes no soak."""
    folder, steps, stops = arguments.folder, arguments.steps, arguments.stops
    if folder.exists():
        raise InputError(f"{folder} is there already; expected a new folder")
    if steps < 40:
        raise InputError(f"--steps is {steps}; expected 40 or more")
    if not 0 <= stops <= steps // 10:
        raise InputError(f"--stops is {stops}; expected 0 to a tenth of the {steps} steps")


def write_pairs(folder: Path) -> None:
    """Writes two small pairs to score on, which take no time to score."""
    rain = SyntheticRain(photographs("skimage")[1], 1, 0)
    for index in range(2):
        pair = rain[index]
        for part, image in (("input", pair["rainy"]), ("target", pair["clean"])):
            write_image(folder / part / f"{index}.png", image[100:164, 100:164])


class Attempt:
    """A training process, which starts or resumes a run; ended with the block.

    Args:
        run: folder of the run; `pairs` beside it is scored on.
        steps: of the whole run.
        log: file for what the process says.
    """

    def __init__(self, run: Path, steps: int, log: Path) -> None:
        self._log = log
        with log.open("x") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *flags(run, steps)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._since = time.monotonic()

    def logged(self) -> int:
        """The last step whose loss it has logged; 0 before any."""
        return max(map(int, LOGGED.findall(self._log.read_text())), default=0)

    def wait(self, step: int, seconds: float) -> None:
        """Waits until it has logged a step, for so many seconds at most, or until it has ended."""
        end = self._since + seconds
        while self._process.poll() is None and self.logged() < step and time.monotonic() < end:
            time.sleep(0.05)

    def end(self, status: int, by: signal.Signals | None = None) -> dict[str, Any]:
        """Waits for the end, after a signal where one is given.

        Returns:
            The exit status, the seconds that it took, and the steps that it began from (None if it
            was stopped before) and logged last.

        Raises:
            InputError: if it had ended before the signal, or ends with another exit status.
        """
        early = by is not None and self._process.poll() is not None
        if by is not None:
            self._process.send_signal(by)
        try:
            found = self._process.wait(None if by is None else PATIENCE)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"training runs on {PATIENCE} s after {by} ({self._log}); expected an end"
            ) from None
        text = self._log.read_text()
        if early or found != status:
            when = " before it was stopped" if early else ""
            last = next(iter(text.splitlines()[-1:]), "nothing said")
            raise InputError(
                f"training ended with status {found}{when} ({self._log}: {last}); expected {status}"
            )
        begun = BEGUN.search(text)
        return {
            "status": found,
            "seconds": time.monotonic() - self._since,
            "from": int(begun[1]) if begun else None,
            "logged": self.logged(),
        }

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()  # Does nothing after an end.
        self._process.wait()


def flags(run: Path, steps: int) -> list[str]:
    """The flags of train.py: small crops, so that a step takes a moment, and frequent saving."""
    chosen = {
        "config": ROOT / "configs" / "quickstart.py",
        "workdir": run,
        "steps": steps,
        "log-every": max(steps // 200, 1),
        "checkpoint-every": max(steps // 40, 5),
        "eval-every": max(steps // 20, 10),
        "data.crop-size": 32,
        "data.global-batch": 2,
        "data.rains": 4,  # So few that all are in memory after the first steps.
        "data.validation": run.parent / "pairs",
        "optim.constant-steps": max(steps // 2, 1),
        "optim.cosine-steps": max(steps // 2, 1),
        "optim.ema-decay": 0.999,
    }
    return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]


def grown(run: Path) -> dict[str, Any]:
    """Memory of a run at some steps, in MiB, and how it grows after the first quarter."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "host_memory_mib" in line]
    steps, mib = np.array([(line["step"], line["host_memory_mib"]) for line in lines]).T
    parts = {"start": 0.0, "quarter": 0.25, "half": 0.5, "three quarters": 0.75, "end": 1.0}
    places = {name: round(part * (len(steps) - 1)) for name, part in parts.items()}
    x, y = steps[places["quarter"] :], mib[places["quarter"] :]
    # Theil and Sen's: the median slope between any two points, which outliers leave alone.
    first, second = np.triu_indices(len(x), 1)
    slope = np.median((y[second] - y[first]) / (x[second] - x[first]))
    return {
        "at": {name: (int(steps[place]), float(mib[place])) for name, place in places.items()},
        "slope": float(1000 * slope),
        "median": float(np.median(y)),
        "growth": float(slope * (x[-1] - x[0]) / np.median(y)),
    }


def train_with_stops(
    arguments: argparse.Namespace, run: Path, seconds: float
) -> list[dict[str, Any]]:
    """Trains with stops, half of them by SIGTERM and half by SIGKILL, in any order; prints them.

    SIGTERM comes within a second of a random step. SIGKILL comes at a random time, so perhaps
    while the process starts, reads a checkpoint, saves one or scores.

    Args:
        arguments: of the program.
        run: folder of the run.
        seconds: how long a run without stops takes.
    """
    count = arguments.stops
    chance = random.Random(arguments.seed)
    steps = sorted(chance.sample(range(1, int(LAST_STOP * arguments.steps) + 1), count))
    signals = [(signal.SIGTERM, signal.SIGKILL)[number % 2] for number in range(count)]
    chance.shuffle(signals)
    rows = []
    print(f"\n{'stop':>4} {'by':8} {'after':>8} {'from step':>10} {'logged':>10} {'status':>7}")
    for number, (step, by) in enumerate(zip(steps, signals, strict=True), 1):
        kill = by == signal.SIGKILL
        with Attempt(run, arguments.steps, run.parent / f"stopped_{number:02}.txt") as attempt:
            attempt.wait(step, chance.uniform(0, 2 * seconds / (count + 1)) if kill else math.inf)
            time.sleep(chance.uniform(0, 1))
            row = {"by": by.name, **attempt.end(-by if kill else 0, by)}
        shown = ["-" if row[name] is None else row[name] for name in ("from", "logged")]
        print(
            f"{number:4} {by.name:8} {row['seconds']:6.1f} s {shown[0]:>10} {shown[1]:>10} "
            f"{row['status']:7}",
            flush=True,
        )
        rows.append(row)
    with Attempt(run, arguments.steps, run.parent / "stopped_end.txt") as attempt:
        attempt.end(0)
    return rows


def differences(straight: Path, stopped: Path) -> list[str]:
    """What differs between two runs of the same steps; a line each."""
    found = []
    lines = [learned(run) for run in (straight, stopped)]
    for one, other in itertools.zip_longest(*lines):
        if one != other:
            found.append(f"metrics {one} and {other}")
    scores = [json.loads((run / "validation.json").read_text()) for run in (straight, stopped)]
    if scores[0] != scores[1]:
        found.append(f"scores {scores[0]} and {scores[1]}")
    states = [last_state(run) for run in (straight, stopped)]
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    for (path, one), (_, other) in zip(*leaves, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        if one.tobytes() != other.tobytes():
            count = np.count_nonzero(one != other)
            found.append(f"{jax.tree_util.keystr(path)} in {count} of {one.size} numbers")
    print(
        f"\ncompared {len(lines[0])} lines of metrics, {len(scores[0])} scores and "
        f"{len(leaves[0])} arrays of {sum(leaf.size for _, leaf in leaves[0]):,} numbers"
    )
    return found


def learned(run: Path) -> list[dict[str, Any]]:
    """What the lines of metrics say of learning."""
    return [
        {name: value for name, value in line.items() if LEARNED.fullmatch(name)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def last_state(folder: Path) -> TrainState:
    """The state in a run's last checkpoint."""
    config = read_config(folder)
    with Run(folder, keep=None) as run:
        step = run.latest_step()
        if step != config.steps:
            raise InputError(f"{folder} ends with checkpoint {step}; expected {config.steps}")
        return run.restore(step, abstract_state(config, make_mesh(config.mesh)))


if __name__ == "__main__":
    main()

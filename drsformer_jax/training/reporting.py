"""What a run reports: a progress line, and metrics as JSON lines and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from drsformer_jax.config import TrainConfig
from drsformer_jax.errors import InputError, one_line
from drsformer_jax.files import write_text
from drsformer_jax.training import processes
from drsformer_jax.training.hardware import memory_mib

if TYPE_CHECKING:
    from drsformer_jax.training.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"
"""Its name in the folder of a run."""
_LONG_WAIT = 0.1  # A smaller share of the time is not worth a look.

_RENAMED = {
    "pictures_per_second": "images_per_second",
    "input_wait": "data_wait",
    "peak_share": "mfu",
}
"""Names of metrics in older runs, and today's."""


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard files into a folder.

    If TensorBoard's file can no longer be written, it warns once and does without.

    Args:
        folder: the run's folder.
        start: the step that the run resumes from; lines of later steps are dropped.
        enabled: whether to write at all; only the first of a run's processes does.

    Raises:
        OSError: from this and from `scalars`, if `metrics.jsonl` cannot be written.
    """

    def __init__(self, folder: Path, start: int, enabled: bool = True) -> None:
        self._path = folder / METRICS_FILE
        self._board: EventFile | None = None
        if not enabled:
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= start]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        # Slow to import, and most programs write none.
        from drsformer_jax.training.tensorboard import EventFile

        board = folder / "tensorboard"
        board.mkdir(exist_ok=True)
        self._board = EventFile(board, start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step; for TensorBoard without infinite ones and NaN."""
        numbers = finite(values)
        if self._board is not None:
            _append(self._path, json.dumps({"step": step, **numbers}) + "\n")
            self._board.scalars(step, {n: v for n, v in numbers.items() if v is not None})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, uint8 (h, w, 3), for TensorBoard."""
        if self._board is not None:
            self._board.image(step, name, image)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()


def checked(
    config: TrainConfig, step: int, metrics: Mapping[str, jax.Array], names: list[str]
) -> dict[str, float]:
    """The metrics of a step.

    Raises:
        InputError: if loss or gradient is not finite and no more such steps may be skipped.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            found = f"the {name} of step {step} is {values[name]}; the batch was {describe(names)}"
            if values["nonfinite_steps"] > config.optim.nonfinite_steps:
                raise InputError(f"{found}; expected a finite number")
            # In every process: each knows only the images that it read.
            tqdm.write(f"warning: {found}; the step is skipped")
            break
    return values


def describe(names: Sequence[str]) -> str:
    """Names of a batch in one line, each with its number of crops."""
    return ", ".join(
        name if count == 1 else f"{name} ({count} crops)" for name, count in Counter(names).items()
    )


class Progress:
    """A progress bar with throughput and the latest metrics; lines of text without a terminal.

    Args:
        start: steps done before.
        total: steps of the whole run.
        peak_flops: peak FLOP/s of all devices of the run; None if unknown.
        enabled: whether to show more than skipped pairs; only the first of a run's processes does.
    """

    def __init__(
        self, start: int, total: int, peak_flops: float | None = None, enabled: bool = True
    ) -> None:
        # None: tqdm disables the bar if there is no terminal.
        self._bar = tqdm(total=total, initial=start, unit="step", disable=None if enabled else True)
        self._total = total
        self._peak_flops = peak_flops
        self._enabled = enabled
        self._skipped = 0
        self._named: set[str] = set()
        self.resume()

    def update(
        self, images: int, flops: float, data_wait: float, skipped: Sequence[str] = ()
    ) -> None:
        """Counts a step.

        Args:
            images: crops of the global batch.
            flops: FLOPs of the network for them.
            data_wait: seconds that the step waited for its batch.
            skipped: pairs that could not be read, each with the reason; a new one is printed.
        """
        self._bar.update()
        self._steps += 1
        self._images += images
        self._flops += flops
        self._data_wait += data_wait
        self._skipped += len(skipped)
        # In every process: each reads pairs of its own.
        for line in sorted({*skipped} - self._named):
            tqdm.write(one_line(f"skipped: {line}"))
        self._named |= {*skipped}

    def log(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Shows the metrics of a step.

        Returns:
            The metrics, and since the last call: throughput as `images_per_second` and
            `flops_per_second`, `mfu` (model FLOPs utilization, the fraction of the peak; only if
            the peak is known), and `data_wait`, the fraction of the time spent waiting for
            batches, in the process that waited longest. Also the figures of `memory_mib`, and
            `skipped_pairs` of all processes since the start. All processes call it together.
        """
        seconds = time.monotonic() - self._since
        own = np.array([[self._data_wait / seconds, float(self._skipped)]])
        waits, skipped = processes.in_order(own, jax.process_count()).T
        throughput = {
            "images_per_second": self._images / seconds,
            "flops_per_second": self._flops / seconds,
            "data_wait": float(waits.max()),
        }
        if self._peak_flops is not None:
            throughput["mfu"] = throughput["flops_per_second"] / self._peak_flops
        if self._enabled:
            text = _summary(values, throughput)
            self._bar.set_postfix_str(text)
            if self._bar.disable:
                left = (self._total - step) * seconds / self._steps
                print(f"step {step}/{self._total}: {text}, {left / 60:.0f} min left", flush=True)
        self.resume()
        return {**values, **throughput, **memory_mib(), "skipped_pairs": int(skipped.sum())}

    def resume(self) -> None:
        """Restarts the measurement of throughput, after an evaluation or a checkpoint."""
        self._since = time.monotonic()
        self._steps = self._images = 0
        self._flops = self._data_wait = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _summary(values: Mapping[str, float], throughput: Mapping[str, float]) -> str:
    """The metrics to watch during a run, in one short line."""
    parts = [
        f"loss {values['loss']:.4f}",
        f"learning rate {values['learning_rate']:.2e}",
        f"{throughput['images_per_second']:.1f} images/s",
    ]
    if "mfu" in throughput:
        parts.append(f"MFU {throughput['mfu']:.1%}")
    if throughput["data_wait"] > _LONG_WAIT:
        parts.append(f"data wait {throughput['data_wait']:.0%}")
    return ", ".join(parts)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a run's `metrics.jsonl`, one dict with a "step" for each line.

    A line without a step is skipped, such as the half of one that a killed run leaves.

    Args:
        path: the file; no metrics if it does not exist.
    """
    metrics = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            values: dict[str, Any] = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                metrics.append({_RENAMED.get(name, name): each for name, each in values.items()})
    return metrics


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces infinite numbers and NaN, which JSON lacks, by None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _append(path: Path, line: str) -> None:
    """Appends a line to a file; an OSError has the file's name."""
    try:
        with path.open("a") as file:
            file.write(line)
    except OSError as error:
        error.filename = str(path)
        raise

"""What a run leaves for people to read: metrics as JSON lines and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from drsformer_jax.files import write_text


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard files into a folder.

    Args:
        folder: the run's folder.
        start: the step that the run begins at; what an earlier run wrote for later steps goes.
    """

    def __init__(self, folder: Path, start: int) -> None:
        path = folder / "metrics.jsonl"
        write_text(path, "".join(f"{line}\n" for line in _until(path, start)))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers under a step."""
        self._file.write(json.dumps({"step": step, **finite(values)}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Records a picture, uint8 (h, w, 3), for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._board.close()


class Progress:
    """A progress bar with the latest metrics; lines of text where there is no terminal.

    Args:
        start: steps done before.
        total: steps of the whole run.
    """

    def __init__(self, start: int, total: int) -> None:
        self._bar = tqdm(total=total, initial=start, unit="step", disable=None)
        self._total = total
        self._logged = start
        self._skipped = 0
        self._named: set[str] = set()
        self.resume()

    def update(self, pictures: int, skipped: Sequence[str] = ()) -> None:
        """Counts a step on so many pictures, and names those that were skipped."""
        self._bar.update()
        self._pictures += pictures
        self._skipped += len(skipped)
        for line in sorted({*skipped} - self._named):
            tqdm.write(f"skipped: {line}")
        self._named |= {*skipped}

    def log(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Shows metrics of a step.

        Returns:
            The metrics with the pictures per second since the last, and how many pairs were skipped
            since the program started.
        """
        seconds = time.monotonic() - self._since
        rate = self._pictures / seconds
        text = (
            f"loss {values['loss']:.4f}, learning rate {values['learning_rate']:.2e}, "
            f"{rate:.1f} pictures/s"
        )
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            left = (self._total - step) * seconds / (step - self._logged)
            print(f"step {step}/{self._total}: {text}, {left / 60:.0f} min left", flush=True)
        self._logged = step
        self.resume()
        return {**values, "pictures_per_second": rate, "skipped_pairs": self._skipped}

    def resume(self) -> None:
        """Starts to measure the pace anew, after something that is no training."""
        self._since, self._pictures = time.monotonic(), 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None, JSON's null, for infinite numbers and NaN, which JSON lacks."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _until(path: Path, step: int) -> list[str]:
    """The lines up to a step; a killed run may have left half a line at the end."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept

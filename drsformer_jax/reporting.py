"""What a run leaves for people to read: metrics as JSON lines and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard files into a folder.

    Args:
        folder: the run's folder.
        start: the step that the run begins at; what an earlier run wrote for later steps goes.
    """

    def __init__(self, folder: Path, start: int) -> None:
        path = folder / "metrics.jsonl"
        kept = _until(path, start)
        rewritten = path.with_name(".metrics.jsonl.unfinished")
        rewritten.write_text("".join(f"{line}\n" for line in kept))
        os.replace(rewritten, path)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers under a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Records a picture, uint8 (h, w, 3), for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()


def _until(path: Path, step: int) -> list[str]:
    """The lines up to a step; a killed run may have left half a line at the end."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept

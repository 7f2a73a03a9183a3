"""A run's file for TensorBoard. Import it where one is written: tensorboardX takes a while."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    # tensorboardX imports PyTorch where it is installed, which takes longer than all else here. In
    # this process it then knows no tensors of PyTorch, also where a user's code writes with it.
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # What Python takes for missing.
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_torch():
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import image as image_summary
    from tensorboardX.summary import scalar


class EventFile:
    """A new event file; if it can no longer be written, it warns once and writes no more.

    Args:
        folder: an existing folder.
        start: the step that the run resumes from; TensorBoard hides later steps of earlier files.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # tensorboardX's SummaryWriter has a thread. A full disk ends that with a traceback, and
        # then the run waits for it forever. RecordWriter writes synchronously.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer: RecordWriter | None = RecordWriter(str(folder / name))
        mark = SessionLog(status=SessionLog.START)
        self._add(Event(file_version="brain.Event:2"), Event(step=start + 1, session_log=mark))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes finite values of a step."""
        self._add(*(Event(step=step, summary=scalar(*each)) for each in values.items()))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, uint8 (h, w, 3)."""
        self._add(Event(step=step, summary=image_summary(name, image, dataformats="HWC")))

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            # `_add` has flushed every event, or failed.
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _add(self, *events: Event) -> None:
        if self._writer is None:
            return
        try:
            for event in events:
                event.wall_time = time.time()
                self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            self.close()  # First, since a warning may be made an error.
            warnings.warn(f"no more is written for TensorBoard ({error.strerror})", stacklevel=4)

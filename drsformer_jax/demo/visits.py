"""Files of visitors: which visit holds which, so that they are deleted when it ends."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import uuid
from pathlib import Path

_LONGEST = 24 * 3600
"""Seconds that an image may wait."""


class Visits:
    """Folders that visits hold; one that none holds any more is deleted. Thread-safe.

    Equal uploads of several visits share one folder, which Gradio names by their content.

    Args:
        root: the folder of all these folders. What is in it already stays for good.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._kept = set(root.iterdir())
        self._held: dict[str, set[Path]] = {}
        self._asked: dict[str, float] = {}

    def hold(self, visit: str, folder: Path) -> None:
        """Keeps a folder until the visit ends.

        Args:
            visit: any name of it.
            folder: of the root; any other is not ours to delete.
        """
        if folder.parent == self.root:
            with self._lock:
                self._held.setdefault(visit, set()).add(folder)

    def new(self, visit: str) -> Path:
        """Makes a folder that nobody can guess the name of, and keeps it until the visit ends."""
        folder = self.root / uuid.uuid4().hex
        folder.mkdir()
        self.hold(visit, folder)
        return folder

    def keep(self, visit: str) -> None:
        """Keeps a visit's folders from `sweep` until its image is done, or it ends, or for a day.

        An image that waits may never be computed: the queue was full, or the visitor gave it up.
        """
        with self._lock:
            self._asked[visit] = time.monotonic()

    def holds(self, visit: str, folder: Path) -> bool:
        """Whether a visit goes on that holds a folder."""
        with self._lock:
            return folder in self._held.get(visit, ())

    def done(self, visit: str, folder: Path | None = None) -> None:
        """Says that the image of a visit is done, with its result in a folder that `new` made.

        If the visit has ended meanwhile, the folder is deleted.
        """
        with self._lock:
            self._asked.pop(visit, None)
            if folder is not None and folder not in self._held.get(visit, ()):
                shutil.rmtree(folder, ignore_errors=True)

    def end(self, visit: str) -> None:
        """Deletes what this visit alone held."""
        with self._lock:
            self._asked.pop(visit, None)
            folders = self._held.pop(visit, set())
            for folder in folders.difference(self._kept, *self._held.values()):
                shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, age: float) -> None:
        """Deletes what nothing was added to for `age` seconds, but for visits that `keep` names."""
        with self._lock:
            since = time.monotonic() - _LONGEST
            self._asked = {visit: at for visit, at in self._asked.items() if at > since}
            needed = {path for visit in self._asked for path in self._held.get(visit, ())}
            for path in set(self.root.iterdir()) - self._kept - needed:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > age:
                        if path.is_dir():
                            shutil.rmtree(path, ignore_errors=True)
                        else:  # Gradio makes empty files, and leaves parts of broken uploads.
                            path.unlink()
            for visit, folders in list(self._held.items()):
                folders -= {folder for folder in folders if not folder.exists()}
                if not folders:
                    del self._held[visit]

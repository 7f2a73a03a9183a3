"""Files of visitors: which visit holds which, so that they are deleted when it ends."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import uuid
from collections import Counter
from pathlib import Path


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
        self._waiting = Counter[str]()

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
        """Keeps a visit's folders from `sweep` until one more image of it is done, or it ends."""
        with self._lock:
            if visit in self._held:
                self._waiting[visit] += 1

    def done(self, visit: str, folder: Path) -> None:
        """Says that an image of a visit is done, with its result in a folder that `new` made.

        If the visit has ended meanwhile, the folder is deleted.
        """
        with self._lock:
            self._waiting -= Counter([visit])
            if folder not in self._held.get(visit, ()):
                shutil.rmtree(folder, ignore_errors=True)

    def end(self, visit: str) -> None:
        """Deletes what this visit alone held."""
        with self._lock:
            del self._waiting[visit]
            folders = self._held.pop(visit, set())
            for folder in folders.difference(self._kept, *self._held.values()):
                shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, age: float) -> None:
        """Deletes what nothing was added to for `age` seconds, but for visits that `keep` names."""
        with self._lock:
            needed = {path for visit in self._waiting for path in self._held[visit]}
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

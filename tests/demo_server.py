"""A real server of `drsformer demo` for tests."""

from __future__ import annotations

import signal
import socket


class Server:
    """`drsformer demo` in a process and a temporary folder of its own."""

    def __init__(self, run, model, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.folder, self._log = folder, folder / "stderr"
        environment = {**run.environment, "TMPDIR": str(folder)}
        flags = ("--port", self.port, "--max-pixels", 200_000, "--max-megabytes", 1)
        with self._log.open("w") as log:
            self.process = run.start(
                *("drsformer", "demo", "--checkpoint", model, "builtin", *flags),
                environment=environment,
                stderr=log,
            )
        assert self.process.stdout.readline() == f"the page is at {self.url}\n", self.errors()

    def errors(self):
        return self._log.read_text()

    def files(self):
        """Names of the files of visitors and examples; Gradio also makes empty ones."""
        (folder,) = self.folder.glob("drsformer-page-*/files")
        files = [path for path in folder.rglob("*") if path.is_file()]
        return [path.name for path in files if path.stat().st_size]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(60)
        self.process.stdout.close()
        return self.process.returncode

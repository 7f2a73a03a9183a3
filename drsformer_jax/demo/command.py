"""The command `drsformer demo`."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from drsformer_jax.config import DType
from drsformer_jax.config.fields import check
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import MAX_PIXELS
from drsformer_jax.locks import temporary_folder
from drsformer_jax.restoring import Restorer
from drsformer_jax.weights import describe, is_builtin


@dataclass(frozen=True)
class Demo:
    """Serves a page that removes rain from images in the browser."""

    checkpoint: tuple[Path, ...] = (Path("builtin"),)
    """Networks that visitors may choose from, in any form that `drsformer derain` reads; default:
    the one that comes with the package."""
    host: str = "127.0.0.1"
    """Address that the page is served at; 0.0.0.0 for all of this machine's, so that others reach
    it."""
    port: int = 7860
    """Port of that address."""
    share: bool = False
    """Also serve it to the internet for a week, through servers of Gradio that all images pass."""
    max_megabytes: int = 50
    """Largest file that is taken, in MB."""
    max_pixels: int = 2**24
    """Largest image that is taken, in pixels."""
    max_waiting: int = 8
    """Images that wait while one is computed; visitors beyond are told to come back later."""
    dtype: DType | None = None
    """What the networks compute in; default: as they were trained."""

    def run(self) -> None:
        """Serves until it is interrupted.

        Raises:
            InputError: if Gradio is missing, or a flag, a network or the address is wrong.
        """
        check(1 <= self.port <= 65535, "--port", self.port, "1 to 65535")
        check(self.max_megabytes >= 1, "--max-megabytes", self.max_megabytes, "at least 1")
        within = f"1 to {MAX_PIXELS}"
        check(1 <= self.max_pixels <= MAX_PIXELS, "--max-pixels", self.max_pixels, within)
        check(self.max_waiting >= 1, "--max-waiting", self.max_waiting, "at least 1")
        check(len(self.checkpoint) >= 1, "--checkpoint", "empty", "at least one network")
        folder, remove = temporary_folder("drsformer-page-")
        try:
            files = folder / "files"
            files.mkdir()
            # Gradio has no other way to say where files go, and reads it when it is imported.
            os.environ["GRADIO_TEMP_DIR"] = str(files)
            try:
                from drsformer_jax.demo.page import Limits, serve
            except ModuleNotFoundError as error:
                raise InputError(
                    f"the Python package {error.name} is missing; expected it for the page: "
                    "pip install 'drsformer_jax[demo]'"
                ) from error
            self.check_address()
            limits = Limits(self.max_megabytes, self.max_pixels, self.max_waiting)
            networks = self._networks()
            serve(networks, limits, folder, self._address, self.port, share=self.share)
        finally:
            remove()

    @property
    def _address(self) -> str:
        """The host without the brackets that addresses of IPv6 have beside a port."""
        return self.host.removeprefix("[").removesuffix("]")

    def _networks(self) -> dict[str, Restorer]:
        """The networks by the names that visitors see, which say nothing of this machine."""
        networks: dict[str, Restorer] = {}
        for path in self.checkpoint:
            restorer = Restorer.load(path, dtype=self.dtype)
            own = "built-in" if is_builtin(path) else path.name
            name = f"{own}: {describe(restorer.config)}"
            if name in networks:
                name = f"{len(networks) + 1}, {name}"
            networks[name] = restorer
        return networks

    def check_address(self) -> None:
        """Raises InputError if no server can listen there."""
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        try:
            socket.create_server((self._address, self.port), family=family).close()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "errno", None)
            said = os.strerror(reason) if reason and reason > 0 else "no such address"
            raise InputError(
                f"{self.host} port {self.port} cannot be served ({said}); expected a --host of "
                "this machine and a free --port"
            ) from error

"""The `drsformer` command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from drsformer_jax.data.folders import find_pictures
from drsformer_jax.data.images import (
    check_extension,
    read_picture,
    write_picture,
)
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.flags import parse
from drsformer_jax.restore import Restorer


@dataclass(frozen=True)
class Derain:
    """Removes rain from a picture, or from every picture of a folder."""

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """A picture, or a folder of pictures (PNG, JPEG, WebP, BMP, TIFF) of any sizes."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """The file, or the folder where the results go under the same names."""
    checkpoint: Path
    """Folder of a training run."""
    step: int | None = None
    """Checkpoint to take; the best one where it is not given."""

    def run(self) -> None:
        """Restores the pictures; one that cannot be read is reported and the rest goes on.

        Raises:
            InputError: if a folder, the picture or the checkpoint is missing, or pictures failed.
        """
        jobs = self._jobs()
        restorer = Restorer.load(self.checkpoint, self.step)
        failed = 0
        for source, target in tqdm(jobs, unit="picture", disable=None):
            try:
                write_picture(target, restorer(read_picture(source)))
            except InputError as error:
                if not self.input.is_dir():
                    raise
                print(f"error: {error}", file=sys.stderr)
                failed += 1
        print(f"restored {len(jobs) - failed} of {len(jobs)} pictures into {self.output}")
        if failed:
            raise InputError(f"{failed} of {len(jobs)} pictures failed; expected none to")

    def _jobs(self) -> list[tuple[Path, Path]]:
        if not self.input.exists():
            raise InputError(f"{self.input} is missing; expected a picture or a folder of them")
        if self.input.is_dir():
            if self.output.exists() and not self.output.is_dir():
                raise InputError(f"{self.output} is a file; expected a folder, as {self.input} is")
            jobs = [(path, self.output / path.name) for path in find_pictures(self.input)]
        else:
            inside = self.output.is_dir()
            jobs = [(self.input, self.output / self.input.name if inside else self.output)]
        for source, target in jobs:
            check_extension(target)
            if target.resolve() == source.resolve():
                raise InputError(f"{target} is the input itself; expected another place")
        return jobs


def main() -> None:
    """Runs the command line."""
    application = tyro.extras.SubcommandApp()
    application.command(name="derain")(Derain)
    with one_line_errors():
        parse(application.cli, prog="drsformer").run()

"""The `drsformer` command; each of its commands stands in the part that does its work."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import tyro

from drsformer_jax.errors import one_line_errors
from drsformer_jax.flags import parse

COMMANDS = {
    "derain": ("restoring", "Derain", "Removes rain from images, folders of images, or a video."),
    "convert": (
        "weights",
        "Convert",
        "Turns an official checkpoint into a model folder, or any network into an official one.",
    ),
    "build-data": (
        "data",
        "BuildData",
        "Builds a rain dataset for training and scoring from downloaded files.",
    ),
    "show-data": (
        "data",
        "ShowData",
        "Shows pairs of a dataset, and crops as training samples them, on a contact sheet.",
    ),
    "plan": (
        "planning",
        "Plan",
        "Says what training needs on TPUs or GPUs that need not be there: memory, time, "
        "chip-hours.",
    ),
    "export": (
        "exporting",
        "Export",
        "Writes a network as one program that runs without this package, with its weights inside.",
    ),
    "demo": ("demo", "Demo", "Serves a page that removes rain from images in the browser."),
}
"""Of each command: the part with its `command.py`, its class, and the class's docstring.

So the list of all is printed without importing JAX, and a command without what the others need.
"""


def load(name: str) -> Any:
    """The dataclass of a command."""
    part, kind, _ = COMMANDS[name]
    return getattr(importlib.import_module(f"drsformer_jax.{part}.command"), kind)


def main() -> None:
    """Runs the command line."""
    application = tyro.extras.SubcommandApp()
    for name, (_, _, description) in COMMANDS.items():
        application.command(name=name)(load(name) if name in sys.argv else _listed(description))
    with one_line_errors():
        parse(application.cli, prog="drsformer").run()


def _listed(description: str) -> Any:
    """What stands in the list of commands for one that the command line does not name."""

    def command() -> None: ...

    command.__doc__ = description
    return command


if __name__ == "__main__":
    main()

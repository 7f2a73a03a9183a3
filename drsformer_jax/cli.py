"""The `drsformer` command; each of its commands is defined in the subpackage that does its work."""

from __future__ import annotations

import functools
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
        "Estimates memory and time of training or restoring on TPUs or GPUs that you do not have.",
    ),
    "export": (
        "exporting",
        "Export",
        "Writes a network as one program that runs without this package, with its weights inside.",
    ),
    "demo": ("demo", "Demo", "Serves a page that removes rain from images in the browser."),
}
"""Of each command: the subpackage with its `command.py`, its class, and the class's docstring.

So listing the commands imports no JAX, and running one does not import what only others need.
"""


_ABOUT = "`drsformer COMMAND --help` lists a command's flags, `drsformer --version` the version."


def load(name: str) -> Any:
    """The dataclass of a command."""
    part, kind, _ = COMMANDS[name]
    return getattr(importlib.import_module(f"drsformer_jax.{part}.command"), kind)


def main() -> None:
    """Runs the command line."""
    application = tyro.extras.SubcommandApp()
    for name, (_, _, description) in COMMANDS.items():
        chosen = [name] == sys.argv[1:2]
        application.command(name=name)(load(name) if chosen else _listed(description))
    with one_line_errors():
        parse(functools.partial(application.cli, description=_ABOUT), prog="drsformer").run()


def _listed(description: str) -> Any:
    """A stand-in, for the list of commands, of one that is not run."""

    def command() -> None: ...

    command.__doc__ = description
    return command

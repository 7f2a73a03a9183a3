"""The list of commands, which is printed without what they need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from drsformer_jax import cli

ROOT = Path(__file__).parents[1]
HEAVY = {"jax", "flax", "grain", "orbax", "tensorflow_datasets", "matplotlib", "pyvips", "numpy"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_list_of_commands_says_what_the_help_of_each_says(name):
    assert cli.load(name).__doc__ == cli.COMMANDS[name][2]


def test_no_command_is_one_line_that_lists_them():
    command = [sys.executable, "-m", "drsformer_jax"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = ", ".join(cli.COMMANDS)
    assert ended.stderr == f"error: Expected one of {{{names}}} (drsformer --help lists all)\n"
    assert ended.returncode == 2


def test_every_command_is_listed():
    files = sorted((ROOT / "drsformer_jax").glob("*/command.py"))
    classes = {
        (file.parent.name, node.name)
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    assert classes == {(part, kind) for part, kind, _ in cli.COMMANDS.values()}


@pytest.mark.parametrize(
    "line",
    [
        "import drsformer_jax",
        "sys.argv = ['drsformer', '--help']; cli.main()",
        "sys.argv = ['drsformer', '--help', 'plan']; cli.main()",
    ],
)
def test_package_and_list_of_commands_import_nothing_heavy(line):
    code = f"""
import atexit, sys
atexit.register(lambda: print({HEAVY} & sys.modules.keys(), file=sys.stderr))
from drsformer_jax import cli
{line}
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stderr == "set()\n"

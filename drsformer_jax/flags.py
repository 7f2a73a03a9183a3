"""Command lines read with tyro, and one line for what is wrong with them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NoReturn

from drsformer_jax import __version__, remote
from drsformer_jax.errors import InputError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How an address of a bucket begins."""
_IN_BUCKETS = {"workdir", "checkpoint", "init-from", "data-dir"}
"""Last parts of the names of flags and fields that may be an address of a bucket."""
_CONVERTED = "input"
"""The same of `drsformer convert`; of eval.py it is a folder of images."""
_SCHEMES = tuple(f"{scheme}://" for scheme in remote.SCHEMES)
_BOOLEANS = ("True", "False", "true", "false")


def parse(cli: Callable[..., Any], *, prog: str, args: Sequence[str] | None = None) -> Any:
    """Reads the command line; nothing but wrong flags may fail inside, so parse first, then act.

    Args:
        cli: `tyro.cli` with its dataclass, or the `cli` of a `tyro.extras.SubcommandApp`.
        prog: name of the program in the help.
        args: the command line without the program; default: `sys.argv`.

    Raises:
        SystemExit: after the help with status 0; after one line on wrong flags with status 2.
        InputError: if a default, which a file of the user may have set, is in a bucket.
    """
    args = local(sys.argv[1:] if args is None else args, prog)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            command = cli(prog=prog, args=args)
    except SystemExit as end:
        if not end.code:
            raise
        _end(f"{_hint(box.getvalue(), args)} ({prog} --help lists all)")
    _check_empty(args, command)
    for name, value, _ in _leaves(command):
        for text in _paths(value):
            if _SCHEME.match(text) and not _may_be(name, text, prog):
                raise InputError(f"{name} is {text}; {_NO_BUCKETS}")
    return command


def check_unused(command: Any, names: Iterable[str], where: str) -> None:
    """Rejects fields of a command that have no effect and another value than their default.

    Args:
        command: a dataclass.
        names: of its fields.
        where: they have none, such as "for images" or "beside --verify".

    Raises:
        InputError: names the first.
    """
    for name in names:
        if getattr(command, name) != type(command).__dataclass_fields__[name].default:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is given; expected none {where}")


def image_size(flag: str, text: str) -> tuple[int, int]:
    """Width and height of a size such as 3840x2160, in pixels.

    Raises:
        InputError: names the flag, if the text is no such size.
    """
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"{flag} is {text!r}; expected WIDTHxHEIGHT, such as 3840x2160")
    return int(sides[0]), int(sides[1])


def _may_be(name: str, address: str, prog: str) -> bool:
    """Whether a flag or a field may have the address of a bucket."""
    last = name.lstrip("-").replace("_", "-").rpartition(".")[2]
    named = last in _IN_BUCKETS or (prog == "drsformer" and last == _CONVERTED)
    return named and address.startswith(_SCHEMES)


_NO_BUCKETS = "expected a path on this machine, such as a mounted bucket"


def local(args: Sequence[str], prog: str) -> list[str]:
    """The command line with `~` expanded in every value; few flags may name a bucket.

    A shell expands `~` in `--workdir ~/run` but not in `--workdir=~/run`.

    Raises:
        SystemExit: after the version with status 0; after one line on a bucket with status 2.
    """
    if list(args) == ["--version"]:
        print(f"{prog} {__version__}")
        raise SystemExit(0)
    result = []
    for index, (flag, value) in enumerate(map(_split, args)):
        name = _name(args, index) or f"argument {index + 1}"
        # What is no flag is known when the whole line is read.
        positional = name.startswith("argument") and value.startswith(_SCHEMES)
        if _SCHEME.match(value) and not positional and not _may_be(name, value, prog):
            _end(f"{name} is {value}; {_NO_BUCKETS}")
        home = value == "~" or value.startswith("~/")
        result.append(flag + (os.path.expanduser(value) if home else value))
    return result


def _split(argument: str) -> tuple[str, str]:
    """`--flag=` and a value; the first one is empty where it is an argument of its own."""
    flag, equals, value = argument.partition("=")
    return (flag + equals, value) if equals and flag.startswith("--") else ("", argument)


def _name(args: Sequence[str], index: int) -> str:
    """The flag that the value of an argument, which may be the next one, belongs to; or nothing."""
    flag = _split(args[index])[0] or (args[index - 1] if index else "")
    return flag.removesuffix("=") if flag.startswith("--") else ""


def _check_empty(args: Sequence[str], command: Any) -> None:
    """Rejects an empty value, such as of an unset variable of a shell, but where it says "none".

    As a path it would be the current folder.
    """
    empty_by_default = [name for name, _, default in _leaves(command) if default == ""]
    for index, (_, value) in enumerate(map(_split, args)):
        name = _name(args, index).removeprefix("--").replace("_", "-")
        allowed = name and any(f".{each}".endswith(f".{name}") for each in empty_by_default)
        if not value and not allowed:
            _end(f"argument {index + 1} is empty; expected a value")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of each field, also of configurations inside it."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value, field.default


def _paths(value: Any) -> Iterator[str]:
    """What may be a path in a value, as it was written."""
    if isinstance(value, tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, PurePath):  # Of several slashes it keeps one.
        yield re.sub(r"^([^/]{2,}:)/", r"\1//", str(value))
    elif isinstance(value, str):
        yield value


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def _hint(box: str, args: Sequence[str]) -> str:
    """The message of a tyro error; where a switch has a value, how it is spelled."""
    message = _one_line(box)
    value = message.removeprefix("Unrecognized options: ")
    if value != message and value in _BOOLEANS:
        flags = (_name(args, i) for i, arg in enumerate(args) if _split(arg)[1] == value)
        if flag := next(filter(None, flags), ""):
            *parts, name = flag.removeprefix("--").split(".")
            off = ".".join([*parts, f"no-{name}"])
            return f"{flag} is given {value}; expected {flag} alone, or --{off}"
    return message


def _one_line(box: str) -> str:
    """The message of a tyro error: the first part of its box, and the flags that it proposes.

    tyro has no public way to get it otherwise: the events of `tyro._errors` are private, may change
    in any release, and name what was found but not what to say of it.
    """
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    if lines[1:] and lines[1].startswith("---"):  # Where stdout is not UTF-8: a title and a rule.
        lines = lines[2:]
    rules = [index for index, line in enumerate(lines) if line.startswith(("───", "---"))]
    message = " ".join(lines[: rules[0]] if rules else lines)
    message = re.sub(r"\} ?\.$", "}", message)  # Of the list of commands.
    # Of a value that fits none of several types, tyro lists what each type says.
    message = re.sub(
        r"Error parsing (\S+): no type matching (.+?) could be instantiated from \[(.*?)\].*",
        r"\1 is \3; expected \2",
        message,
    )
    similar = [line.split()[0] for line in lines if re.match(r"--\S+ ", line)]
    return f"{message}; perhaps {' or '.join(similar)}" if "Perhaps" in box else message

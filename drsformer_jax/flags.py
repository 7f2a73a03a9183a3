"""Command lines read with tyro, and one line for what is wrong with them."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any


def parse(cli: Callable[..., Any], *, prog: str, args: Sequence[str] | None = None) -> Any:
    """Reads the command line; nothing but wrong flags may fail inside, so parse first, then act.

    Args:
        cli: `tyro.cli` with its dataclass, or the `cli` of a `tyro.extras.SubcommandApp`.
        prog: name of the program in the help.
        args: the command line without the program; `sys.argv` where it is not given.

    Raises:
        SystemExit: after the help with status 0; after one line on wrong flags with status 2.
    """
    args = sys.argv[1:] if args is None else list(args)
    if "" in args:  # An unset variable of a shell; as a path it would be the current folder.
        print(f"error: argument {args.index('') + 1} is empty; expected a value", file=sys.stderr)
        raise SystemExit(2)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return cli(prog=prog, args=args)
    except SystemExit as end:
        if not end.code:
            raise
        print(f"error: {_one_line(box.getvalue())} ({prog} --help lists all)", file=sys.stderr)
        raise SystemExit(2) from None


def _one_line(box: str) -> str:
    """The message of a tyro error: the first part of its box, and the flags that it proposes."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    if lines[1:] and lines[1].startswith("---"):  # Where stdout is not UTF-8: a title and a rule.
        lines = lines[2:]
    rules = [index for index, line in enumerate(lines) if line.startswith(("───", "---"))]
    message = " ".join(lines[: rules[0]] if rules else lines)
    # Of a value that fits none of several types, tyro lists what each type says.
    message = re.sub(
        r"Error parsing (\S+): no type matching (.+?) could be instantiated from \[(.*?)\].*",
        r"\1 is \3; expected \2",
        message,
    )
    similar = [line.split()[0] for line in lines if re.match(r"--\S+ ", line)]
    return f"{message}; perhaps {' or '.join(similar)}" if "Perhaps" in box else message

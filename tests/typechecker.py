"""The tests' type checker: beartype, with an int where a float is asked for, as mypy has it."""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(checked: Any) -> Any:
    """Checks a function or class, but for functions in functions: each call would make them anew.

    That took a tenth of the time of tracing.
    """
    return checked if "<locals>" in checked.__qualname__ else _check(checked)

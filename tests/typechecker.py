"""The tests' type checker: beartype, with an int where a float is asked for, as mypy has it."""

from __future__ import annotations

import re
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_PLAIN = {"Any", "Array", "Callable", "None", "int", "list", "str", "tuple"}
"""Names in annotations without shapes, which mypy checks."""


def check(checked: Any) -> Any:
    """Checks a function or class, but for functions in functions that name no shapes.

    Each call of the outer function would prepare their checks anew: a tenth of the time of tracing.
    """
    if "<locals>" in checked.__qualname__:
        annotations = " ".join(map(str, checked.__annotations__.values()))
        if set(re.findall(r"[A-Za-z]\w*", annotations)) <= _PLAIN:
            return checked
    return _check(checked)

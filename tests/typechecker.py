"""The tests' type checker: beartype, with an int where a float is asked for, as mypy has it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def skip_functions_in_functions() -> None:
    """Leaves out functions in functions that name no shapes.

    Each call of the outer function would prepare their checks anew: a tenth of the time of tracing.
    """
    jaxtyped = jaxtyping.jaxtyped

    def unless_inner(*, typechecker: Any) -> Callable[[Any], Any]:
        decorate = jaxtyped(typechecker=typechecker)

        def decorated(checked: Any) -> Any:
            inner = "<locals>" in checked.__qualname__
            shapes = re.search(r"\[Array, ['\"]", str(checked.__annotations__))
            return checked if inner and not shapes else decorate(checked)

        return decorated

    jaxtyping.jaxtyped = unless_inner  # What the import hook writes above every function.

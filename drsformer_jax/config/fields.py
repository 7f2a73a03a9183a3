"""Checks that every configuration makes of its fields."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from drsformer_jax.errors import InputError


def check_types(config: Any, prefix: str = "") -> None:
    """Rejects values of other types than the fields', which a Python file may hold."""
    for name, kind in get_type_hints(type(config)).items():
        value, flag = getattr(config, name), prefix + name.replace("_", "-")
        check(_fits(value, kind), flag, repr(value), _described(kind))
        check(kind is not float or math.isfinite(value), flag, value, "a finite number")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type as the fields have them."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        first, *others = get_args(kind)
        kinds = [first] * len(value) if others == [...] else [first, *others]
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    number = (int, float) if kind is float else kind
    return isinstance(value, number) and (kind is bool or not isinstance(value, bool))


def _described(kind: Any) -> str:
    """What `_fits` expects, in words."""
    if get_origin(kind) is Literal:
        return f"one of {get_args(kind)}"
    if get_origin(kind) is not tuple:
        return f"a value of type {kind.__name__}"
    first, *others = get_args(kind)
    if others == [...]:
        return f"a tuple of {getattr(first, '__name__', first)}"
    names = [each.__name__ for each in (first, *others)]
    return f"a tuple of {len(names)} {names[0]}" if len(set(names)) == 1 else f"a tuple {names}"


def check(condition: bool, name: str, found: object, expected: str) -> None:
    """Rejects a value in one line.

    Raises:
        InputError: if the condition does not hold.
    """
    if not condition:
        raise InputError(f"{name} is {found}; expected {expected}")

"""The tests' type checker: beartype, with an int where a float is asked for, as mypy has it."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

"""What the chips of a compiled program exchange: how often, how much, along which axes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drsformer_jax.planning import hlo

COLLECTIVES = {
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "collective-broadcast",
}
"""Instructions that exchange data between chips."""


@dataclass(frozen=True)
class Exchange:
    """Data that chips exchange in one instruction of a program."""

    kind: str
    """Such as all-reduce."""
    group: tuple[int, ...]
    """Places in the mesh, counted through all axes, of the first chips that exchange with each
    other; empty for all chips."""
    times: int
    """How often it runs."""
    bytes: int
    """What each chip gets, each time."""


def exchanges(text: str) -> list[Exchange]:
    """All exchanges of data between chips, those of each branch of a condition too."""
    program, entry = hlo.parse(text)
    found = []

    def add(name: str, times: int) -> None:
        by_name = {line.name: line for line in program[name]}
        for line in program[name]:
            kind = line.opcode.removesuffix("-done")
            if kind in COLLECTIVES:
                # Of a start and a done, the latter has what a chip gets, and the former groups.
                grouped = line if line.opcode == kind else by_name[line.operands[0]]
                size = hlo.size(line.shape)[0]
                found.append(Exchange(kind, hlo.group(grouped.line), times, size))
            elif line.opcode == "while":
                add(hlo.called(line, "body"), times * hlo.trips(program, line))
            elif line.opcode in ("call", "async-start", "conditional"):
                for called in hlo.called_by(line):
                    add(called, times)

    add(entry, 1)
    return found


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """How often chips exchange data, and the bytes that each of them gets, by kind."""
    return _added((one.kind, one) for one in exchanges(text))


def exchanged(
    found: Iterable[Exchange], axes: Mapping[str, int]
) -> dict[tuple[str, str], tuple[int, int]]:
    """The same by axes of the mesh, as `along` names them, and kind."""
    return _added(((along(one.group, axes), one.kind), one) for one in found)


def _added(keyed: Iterable[tuple[Any, Exchange]]) -> dict[Any, tuple[int, int]]:
    sums: dict[Any, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for key, one in keyed:
        number, size = sums[key]
        sums[key] = number + one.times, size + one.times * one.bytes
    return dict(sums)


def sent(exchange: Exchange, axes: Mapping[str, int]) -> float:
    """Bytes that each chip sends in all runs of an exchange, in a ring.

    Args:
        exchange: what it is.
        axes: sizes of the mesh's axes.
    """
    chips = len(exchange.group) or math.prod(axes.values())
    ring = (chips - 1) / chips
    share = {
        "all-reduce": 2 * ring,
        "all-gather": ring,
        "reduce-scatter": chips - 1,  # Each chip gets a part of what it gives.
        "all-to-all": ring,
    }.get(exchange.kind, 1.0)
    return share * exchange.bytes * exchange.times


def along(group: Sequence[int], axes: Mapping[str, int]) -> str:
    """The axes of the mesh that chips exchange data along, such as `data` or `data, rows`.

    Args:
        group: places of the chips in the mesh, counted through all axes; empty for all.
        axes: sizes of the mesh's axes, in their order.
    """
    names = [name for name, size in axes.items() if size > 1]
    if group:
        places = [_place(chip, list(axes.values())) for chip in group]
        names = [
            name
            for name, along_axis in zip(axes, zip(*places, strict=True), strict=True)
            if len(set(along_axis)) > 1
        ]
    return ", ".join(names) or "none"


def _place(chip: int, sizes: Sequence[int]) -> list[int]:
    place = []
    for size in reversed(sizes):
        chip, index = divmod(chip, size)
        place.append(index)
    return place[::-1]

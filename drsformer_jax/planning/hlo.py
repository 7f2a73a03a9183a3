"""The text of XLA's optimized programs: instructions, what they call, and shapes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}
"""Bytes of an element where they are not 4."""
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
"""Type, sides and layout of an array in a shape."""
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    line: str


Program = Mapping[str, list[Instruction]]
"""Instructions of each computation, the last of which is what it returns."""


@functools.lru_cache(maxsize=1)  # Several counts are made of one program.
def parse(text: str) -> tuple[Program, str]:
    """Reads the text of a program.

    Returns:
        Its computations, and the name of the one that it starts with.
    """
    program: dict[str, list[Instruction]] = {}
    current = entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            program[current] = []
            entry = current if head[1] else entry
        elif instruction := _instruction(line):
            program[current].append(instruction)
    return program, entry


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
    if not match:
        return None
    rest = match[2]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, call = rest[:end], rest[end:].strip()
    start = call.index("(")
    inner = call[start + 1 : start + _closing(call[start:])]
    return Instruction(match[1], call[:start], shape, tuple(_NAME.findall(inner)), line)


def _closing(text: str) -> int:
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"no closing parenthesis in {text!r}")


def called(line: Instruction, what: str) -> str:
    """The computation that an instruction names as `what`, such as `body` or `calls`."""
    found = re.search(rf"\b{what}=%?([\w.\-]+)", line.line)
    if not found:
        raise ValueError(f"no {what} in {line.line!r}")
    return found[1]


def called_by(line: Instruction) -> list[str]:
    """All computations that an instruction other than a loop may run."""
    branches = _BRANCHES.search(line.line)
    return _CALLED.findall(line.line) + (_NAME.findall(branches[1]) if branches else [])


def trips(program: Program, line: Instruction) -> int:
    """How often a loop runs: scans count from 0 to the number in their condition."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line.line):
        return int(known[1])
    condition = program[called(line, "condition")]
    inner = [
        other
        for call in condition
        if call.opcode == "fusion"
        for other in program[called(call, "calls")]
    ]
    ends = [
        int(found[1])
        for other in [*condition, *inner]
        if (found := re.search(r" s32\[\]\S* constant\((\d+)\)", other.line))
    ]
    if len(ends) != 1:
        raise ValueError(f"the trips of {line.name} are not clear from its condition: {ends}")
    return ends[0]


def elements(shape: str) -> int:
    """Elements of an array."""
    found = ARRAY.search(shape)
    return math.prod(int(side) for side in found[2].split(",") if side) if found else 0


def size(shape: str) -> tuple[int, int]:
    """Bytes of an array or a tuple of arrays, and those of them in the large memory."""
    total = large = 0
    for kind, sides, layout in ARRAY.findall(shape):
        found = _BYTES.get(kind, 4) * math.prod(int(side) for side in sides.split(",") if side)
        total += found
        large += found if not re.search(r"S\([1-9]\)", layout) else 0
    return total, large


def sides(shape: str) -> list[int]:
    """Sides of an array."""
    found = ARRAY.search(shape)
    return [int(side) for side in found[2].split(",") if side] if found else []


def window(line: str) -> dict[str, list[str]]:
    """Size, stride, pad and so on of a convolution along each of its axes."""
    found = re.search(r"window=\{([^}]*)\}", line)
    parts = dict(part.split("=") for part in found[1].split()) if found else {}
    return {key: value.split("x") for key, value in parts.items()}


_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


def group(line: str) -> tuple[int, ...]:
    """The first group of chips that exchange data with each other; empty for all.

    Groups are written one by one, as pairs of a sender and a receiver, or as `[groups, chips]` of a
    sequence of all chips in `<=` these sides, whose axes are in another order after `T`.
    """
    if pair := _PAIRS.search(line):
        return int(pair[1]), int(pair[2])
    if listed := _GROUPS.search(line):
        return tuple(_integers(listed[1]))
    if iota := _IOTA.search(line):
        chips = np.arange(math.prod(_integers(iota[2]))).reshape(_integers(iota[2]))
        if iota[3]:
            chips = chips.transpose(_integers(iota[3]))
        return tuple(chips.reshape(_integers(iota[1]))[0].tolist())
    return ()


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]

"""Counts the cycles of programs for TPUs from the schedules that their compiler writes.

A TPU core is a VLIW machine: it starts one bundle of instructions in each cycle. With `flags`,
libtpu writes the final schedule of each instruction of the optimized program, one line a bundle.
Bundles times the trips of their loops leave out what stalls a core (waits for memory, conflicts,
fetching instructions), so they are a lower bound of its cycles. They repeat exactly, and compare
programs.

The flags and the format are not documented, and are read as libtpu 0.0.42 writes them:

    address label : depth of loops { instructions }

where the label LB begins a loop, and a loop ends where its counter reaches a constant:

    0x89 LB: > { %counter = sphi %first, %next ... }
    0x9a   : > { %next = sadd.s32 1, %counter }
    0x9b   : > { %done = scmp.ge.s32.totalorder %next, 18 /* loop exit test */ }
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:\s*(>*)\s*\{(.*)$")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder (?:\(!?%\w+\), )?%(\w+), (\d+) /\* loop exit test")
_STEP = re.compile(r"%(\w+) = sadd\.s32 (?:\(!?%\w+\), )?(\d+), ")
_PHI = re.compile(r"= sphi %\w+, %(\w+)")
_DELAY = 7
"""Most bundles from a branch to the next one that shows its depth."""
_PIPELINED = "iteration index, stage"
"""In the first bundle of the loop over a Pallas kernel's grid."""
_FILLING = 2
"""Trips of that loop that only load the first blocks, and write the last ones."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Of what this process compiles; removed at its end."""
    return tempfile.TemporaryDirectory(prefix="schedules-")


def flags() -> str:
    """Value of LIBTPU_INIT_ARGS, before JAX is imported, for schedules of all that is compiled."""
    return (
        f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={_folder().name} "
        "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*(final_bundles|dedup).*"
    )


def clear() -> None:
    """Forgets earlier programs, whose instructions have the same names."""
    for path in Path(_folder().name).iterdir():
        path.unlink()


@dataclass(frozen=True)
class Schedule:
    """What one instruction of a program runs.

    Attributes:
        bundles: with loops multiplied out.
        unclear: loops whose trips are not clear, which are counted once.
    """

    bundles: int
    unclear: int = 0


class Schedules:
    """Schedules of a program's instructions, by name.

    Args:
        folder: where they are; default: where `flags` has them written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or Path(_folder().name)
        self._files: dict[str, Path] = {}
        self._same: dict[str, str] = {}
        for path in folder.glob("*-final_bundles.txt"):
            # <time>-<instruction>-<number>-<pass>.txt, and other passes that end like this one.
            if found := re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name):
                self._files[found[1]] = path
        for path in folder.glob("*-deduplication-map.txt"):
            key = ""
            for line in path.read_text().splitlines():
                if line.startswith("key:"):
                    key = line.removeprefix("key:").strip()
                elif line.startswith("  "):
                    self._same[line.strip()] = key

    def __len__(self) -> int:
        return len(self._files)

    @functools.cache  # noqa: B019  One object a program.
    def of(self, name: str, trips: int | None = None) -> Schedule | None:
        """The schedule of an instruction; None where it has none.

        Args:
            name: the instruction's.
            trips: of its outermost loop, if that has no clear end.
        """
        path = self._files.get(self._same.get(name, name))
        return None if path is None else read(path.read_text(errors="replace"), trips)


@dataclass
class _Bundle:
    label: str
    depth: int
    text: str


@dataclass
class _Loop:
    depth: int
    trips: int
    parent: _Loop | None

    @property
    def runs(self) -> int:
        return self.trips * (self.parent.runs if self.parent else 1)


def read(text: str, trips: int | None = None) -> Schedule:
    """Reads one schedule; `trips` as in `Schedules.of`."""
    ends = {found[1]: int(found[2]) for found in _EXIT.finditer(text)}
    steps = {found[1]: int(found[2]) for found in _STEP.finditer(text)}
    total, unclear = 0, 0
    loop: _Loop | None = None
    for bundle in _bundles(text):
        begins = bundle.label == "LB" and bundle.depth > 0
        while loop and loop.depth > bundle.depth - begins:
            loop = loop.parent
        if begins:
            counted = _trips(bundle.text, ends, steps)
            if counted is None and bundle.depth == 1:
                counted = trips
            unclear += counted is None
            loop = _Loop(bundle.depth, counted or 1, loop)
        total += loop.runs if loop else 1
    return Schedule(total, unclear)


def _trips(first: str, ends: dict[str, int], steps: dict[str, int]) -> int | None:
    """How often a loop runs that counts up from zero, by its first bundle."""
    for counter in _PHI.findall(first):
        step = steps.get(counter, 0)
        if counter in ends and 0 < step < 2**31:  # Negative ones are printed as large ones.
            trips = -(-ends[counter] // step)
            return trips - _FILLING if _PIPELINED in first else trips
    if _PIPELINED in first and ends:  # The counter is kept in memory; its loop ends last.
        return list(ends.values())[-1] - _FILLING
    return None


def _bundles(text: str) -> list[_Bundle]:
    bundles: list[_Bundle] = []
    for line in text.splitlines():
        if found := _LINE.match(line):
            bundles.append(_Bundle(found[1] or "", len(found[2]), found[3]))
        elif bundles:
            bundles[-1].text += "\n" + line
    # A branch in a loop or at its end is printed as if it were outside, and with it the bundles
    # that still run behind it: not so where a loop goes on.
    for index in range(1, len(bundles) - 1):
        before, bundle = bundles[index - 1], bundles[index]
        if bundle.text.startswith("}") and not (bundle.depth or bundle.label):
            bundle.depth = before.depth  # An empty one, such as behind a branch, is nowhere.
        if bundle.depth < before.depth and not bundle.label:
            after = bundles[index + 1 : index + _DELAY]
            inside = next((other for other in after if other.depth > bundle.depth), None)
            if inside and inside.label != "LB":
                bundle.depth = min(before.depth, inside.depth)
    return bundles

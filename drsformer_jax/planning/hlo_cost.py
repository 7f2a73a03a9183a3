"""What a compiled program moves and computes, its loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once, whatever the number of its trips, and a
network whose stages are scanned consists of loops. This reads the text of the optimized program
instead: every instruction that a loop runs is counted as many times as the loop runs, by the rules
of that analysis (an arithmetic operation for each element; bytes of what an instruction reads and
writes, of a fusion only what enters and leaves it, of a slice only the slice). With loops counted
once the two agree within some percent, which `cost_once` is there to show.

Only the whole program is exact: stages that are compiled alone fuse, and are laid out in memory, in
other ways than in the whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drsformer_jax.planning import hlo
from drsformer_jax.planning.exchanges import COLLECTIVES

if TYPE_CHECKING:
    from drsformer_jax.planning.bundles import Schedules

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-done", "slice-done", "async-done", "iota", "partition-id", "replica-id", "conditional"),
    *("all-reduce-done", "all-gather-done", "collective-permute-done"),
}
"""Instructions that move nothing themselves, or whose counterpart is counted."""
_SLICES_TOGETHER = 'custom_call_target="ConcatBitcast"'
"""Names slices as one array that copies to a TPU's core have laid one after another."""
_ARITHMETIC = {
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "compare"),
    *("select", "convert", "and", "or", "xor", "not", "clamp", "floor", "ceil", "sign", "power"),
    "remainder",
}
_OF_SCALARS = _ARITHMETIC | {"copy"}
"""What TPUs compute without a schedule if it is one number, such as a loop's counter."""
_MOVES = {
    *("copy", "pad", "transpose", "reshape", "slice", "concatenate", "copy-start", "slice-start"),
    *("dynamic-slice", "dynamic-update-slice", "broadcast", "convert", "bitcast", "fusion"),
    *("parameter", "constant", "tuple", "get-tuple-element"),
}
"""What an instruction that only moves data consists of."""
_LIBRARY = re.compile(r'custom_call_target="__(?:cublas|cudnn)')
"""Products and convolutions that XLA for GPUs leaves to NVIDIA's libraries."""
_BACKWARD = re.compile(r'custom_call_target="__cudnn\$convBackward(Input|Filter)"')
"""Gradients of convolutions in cuDNN, whose text describes the convolution that they are of."""
_SUMMED = re.compile(
    r'lhs_contracting_dims=\{([\d,]*)\}|"lhs_contracting_dimensions":\[([\d,"]*)\]'
)
"""Axes that a product sums over: of XLA's own instruction, and of a call of cuBLAS."""
WIDE = 2**22
"""Bytes of arrays that are counted as large."""


@dataclass(frozen=True)
class Cost:
    """What a program, or a part of it, needs."""

    flops: float = 0.0
    """Arithmetic operations; a multiply-accumulate is two."""
    matrix_flops: float = 0.0
    """Those of them in matrix products and convolutions."""
    bytes: float = 0.0
    """Bytes that instructions read and write, in any memory."""
    hbm_bytes: float = 0.0
    """Those of them that are in the large memory, not in the one on the chip's core."""
    kernels: float = 0.0
    """Instructions that run by themselves: what a GPU launches."""
    bundles: float = 0.0
    """Cycles of a TPU core, as `bundles` counts them."""
    taps: float = 0.0
    """Bundles of sums of shifted images."""
    products: float = 0.0
    """Bundles of matrix products."""
    copies: float = 0.0
    """Bundles of instructions that only move data."""
    wide: float = 0.0
    """Bytes of float32 arrays of at least `WIDE` that are written."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(times * a for a in self._all()))

    def _all(self) -> tuple[float, ...]:
        return dataclasses.astuple(self)


@dataclass(frozen=True)
class Loop:
    """A loop of the program."""

    name: str
    """Of the operation that it came from."""
    trips: int
    """How often it runs."""
    trip: Cost
    """Of one run, its inner loops multiplied out."""


def cost(text: str, schedules: Schedules | None = None) -> Cost:
    """Everything that a program does, loops multiplied out.

    Args:
        text: the optimized program.
        schedules: of its instructions, if it is for a TPU.
    """
    program, entry = hlo.parse(text)
    return _Count(program, multiply=True, schedules=schedules).computation(entry)


def cost_once(text: str) -> Cost:
    """The same with each loop counted once, as XLA's analysis does."""
    program, entry = hlo.parse(text)
    return _Count(program, multiply=False).computation(entry)


def loops(text: str, schedules: Schedules | None = None) -> list[Loop]:
    """The outermost loops of a program, in its order; arguments as of `cost`."""
    program, entry = hlo.parse(text)
    count = _Count(program, multiply=True, schedules=schedules)
    found = []
    for line in program[entry]:
        if line.opcode == "while":
            name = re.search(r'op_name="([^"]*)"', line.line)
            trip = count.computation(hlo.called(line, "body"))
            found.append(Loop(name[1] if name else line.name, hlo.trips(program, line), trip))
    return found


def unclear(text: str, schedules: Schedules) -> dict[str, int]:
    """What `cost` counts too few bundles of, loops of the program multiplied out.

    Args:
        text: the optimized program.
        schedules: of its instructions.

    Returns:
        loops of schedules whose trips are not clear, and instructions that have no schedule, by the
        opcode of their instruction; the most first.
    """
    program, entry = hlo.parse(text)
    count = _Count(program, multiply=True, schedules=schedules)
    found: Counter[str] = Counter()
    for line, times in count.instructions(entry):
        if missing := count.bundles(line)[1]:
            found[line.opcode] += times * missing
    return dict(found.most_common())


def unclear_line(unclear: Mapping[str, int]) -> str:
    """What `unclear` found, in words."""
    listed = ", ".join(f"{times} {opcode}" for opcode, times in unclear.items())
    return f"{sum(unclear.values())} instructions or loops ({listed})"


def short_name(loop: str) -> str:
    """A loop's name without the names of the functions around it."""
    return re.sub(r"jit.[^/]*./|/while$", "", loop)


class _Count:
    """Counts computations, each once however often it is called."""

    def __init__(
        self, program: hlo.Program, *, multiply: bool, schedules: Schedules | None = None
    ) -> None:
        self._program = program
        self._multiply = multiply
        self._schedules = schedules
        self.computation = functools.cache(self._computation)

    def _computation(self, name: str) -> Cost:
        shapes = {line.name: line.shape for line in self._program[name]}
        return sum((self._line(line, shapes) for line in self._program[name]), Cost())

    def _line(self, line: hlo.Instruction, shapes: Mapping[str, str]) -> Cost:
        if (parts := self._parts(line)) is not None:
            return sum((self.computation(part) * times for part, times in parts), Cost())
        if self._is_free(line):
            return Cost()
        flops, matrix = self._flops(line, shapes)
        moved, large = (sum(part) for part in zip(*self._moved(line, shapes), strict=True))
        counted = Cost(flops, matrix, moved, large, kernels=1.0, wide=self._wide(line))
        bundles, _ = self.bundles(line)
        if not bundles:
            return counted
        kind = self._kind(line)
        return dataclasses.replace(counted, bundles=bundles, **({kind: bundles} if kind else {}))

    def _parts(self, line: hlo.Instruction) -> list[tuple[str, int]] | None:
        """Computations that an instruction runs, and how often; None where it works itself."""
        if line.opcode == "while":
            trips = hlo.trips(self._program, line) if self._multiply else 1
            return [(hlo.called(line, "body"), trips)]
        if line.opcode in ("call", "async-start"):
            return [(called, 1) for called in hlo.called_by(line)]
        return None

    @staticmethod
    def _is_free(line: hlo.Instruction) -> bool:
        return line.opcode in _FREE or _SLICES_TOGETHER in line.line

    def instructions(self, name: str, times: int = 1) -> Iterator[tuple[hlo.Instruction, int]]:
        """Instructions of a computation that take time, and how often each of them runs."""
        for line in self._program[name]:
            if (parts := self._parts(line)) is None and not self._is_free(line):
                yield line, times
            for part, inner in parts or []:
                yield from self.instructions(part, times * inner)

    def _wide(self, line: hlo.Instruction) -> float:
        """Bytes of large float32 arrays that an instruction writes."""
        shape = self._update(line) or line.shape
        arrays = (found for found in hlo.ARRAY.finditer(shape) if found[1] == "f32")
        sizes = (hlo.size(found[0])[0] for found in arrays)
        return sum(size for size in sizes if size >= WIDE)

    def bundles(self, line: hlo.Instruction) -> tuple[int, int]:
        """Bundles of an instruction, and what of it is unclear and counts once or not at all."""
        if not self._schedules:
            return 0, 0
        bounds = re.search(r'iteration_bounds":\[([^\]]*)\]', line.line)
        sides = [int(side) for side in re.findall(r"\d+", bounds[1])] if bounds else []
        found = self._schedules.of(line.name, math.prod(sides) if sides else None)
        bundles = found.bundles if found else 0
        if line.opcode.endswith("-start") or line.opcode in COLLECTIVES:
            return bundles, 0  # The time of transfers is not the core's.
        if found:
            return bundles, found.unclear
        if line.opcode in _OF_SCALARS and hlo.elements(line.shape) == 1:
            return 1, 0
        return 0, 1

    def _kind(self, line: hlo.Instruction) -> str:
        """Whether an instruction is mostly taps, products or copies; empty for all others."""
        opcodes = [line.opcode]
        if line.opcode == "fusion":
            opcodes += [other.opcode for other in self._program[hlo.called(line, "calls")]]
        if re.match(r"(correlate|kernel_grad)\d", line.name):
            return "taps"  # Our own kernels.
        multiplies = opcodes.count("multiply")
        # The smallest sum has 9 taps, or 6 where the compiler has split it.
        if "convolution" in opcodes or "dot" in opcodes:
            return "taps" if multiplies >= 9 else "products"
        if multiplies >= 6 or opcodes.count("add") >= 8:
            return "taps"
        return "copies" if set(opcodes) <= _MOVES else ""

    def _flops(self, line: hlo.Instruction, shapes: Mapping[str, str]) -> tuple[float, float]:
        """All operations of an instruction, and those in products."""
        if line.opcode == "fusion":
            inner = self._program[hlo.called(line, "calls")]
            shapes = {other.name: other.shape for other in inner}
            counted = [self._flops(other, shapes) for other in inner]
            return sum(every for every, _ in counted), sum(products for _, products in counted)
        if line.opcode in _ARITHMETIC:
            return hlo.elements(line.shape), 0.0
        if line.opcode == "reduce":
            return hlo.elements(shapes[line.operands[0]]), 0.0
        if line.opcode in ("convolution", "dot") or _LIBRARY.search(line.line):
            products = self._products(line, shapes)
            return products, products
        return 0.0, 0.0

    @staticmethod
    def _products(line: hlo.Instruction, shapes: Mapping[str, str]) -> float:
        """Two operations for each weight that an output element has."""
        if axes := _SUMMED.search(line.line):
            first = hlo.sides(shapes[line.operands[0]])
            summed = [int(axis) for axis in re.findall(r"\d+", axes[1] or axes[2] or "")]
            return 2.0 * hlo.elements(line.shape) * math.prod(first[axis] for axis in summed)
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.line)
        if not labels:
            raise ValueError(f"no dim_labels in {line.line!r}")
        image, kernel = (shapes[operand] for operand in line.operands[:2])
        result = line.shape
        if backward := _BACKWARD.search(line.line):
            if backward[1] == "Input":
                image, result = result, image
            else:
                kernel, result = result, kernel
        kernel_sides = dict(zip(labels[2], hlo.sides(kernel), strict=True))
        given = dict(zip(labels[1], hlo.sides(image), strict=True))
        made = dict(zip(labels[3], hlo.sides(result), strict=True))
        groups = re.search(r"batch_group_count=(\d+)", line.line)
        products = kernel_sides["i"] * made["f"] * given["b"] / int(groups[1] if groups else 1)
        window = hlo.window(line.line)
        for axis in sorted(made.keys() - {"b", "f"}):
            products *= products_along(
                given[axis],
                made[axis],
                {key: values[int(axis)] for key, values in window.items()},
            )
        return 2.0 * products

    def _moved(self, line: hlo.Instruction, shapes: Mapping[str, str]) -> Iterator[tuple[int, int]]:
        if line.opcode in ("copy-start", "slice-start"):
            # Its shape has both ends and a counter, a copy's destination first, a slice's second.
            ends = [found[0] for found in hlo.ARRAY.finditer(line.shape)]
            out = ends[line.opcode == "slice-start"]
            yield hlo.size(out)
            source = hlo.size(shapes[line.operands[0]])
            yield (hlo.size(out)[0], hlo.size(out)[0] if source[1] else 0)
            return
        yield self._written(line)
        for place, operand in enumerate(line.operands):
            yield self._read(line, place, shapes[operand])

    def _update(self, line: hlo.Instruction) -> str | None:
        """Shape of what a fusion writes into one of its operands, if it does so."""
        if line.opcode != "fusion":
            return None
        inner = self._program[hlo.called(line, "calls")]
        if inner[-1].opcode != "dynamic-update-slice":
            return None
        return next(other.shape for other in inner if other.name == inner[-1].operands[1])

    def _written(self, line: hlo.Instruction) -> tuple[int, int]:
        """An update in place writes only the update."""
        if update := self._update(line):
            return _placed(hlo.size(update)[0], line.shape)
        return hlo.size(line.shape)

    def _read(self, line: hlo.Instruction, place: int, shape: str) -> tuple[int, int]:
        """Of an operand that is only sliced, the slices."""
        if line.opcode in ("dynamic-slice", "slice"):
            return _placed(min(hlo.size(line.shape)[0], hlo.size(shape)[0]), shape)
        if line.opcode != "fusion":
            return hlo.size(shape)
        inner = self._program[hlo.called(line, "calls")]
        parameter = next(
            other.name
            for other in inner
            if other.opcode == "parameter" and f"parameter({place})" in other.line
        )
        users = [other for other in inner if parameter in other.operands]
        if all(
            user.opcode == "dynamic-update-slice" and user.operands[0] == parameter
            for user in users
        ):
            return 0, 0  # Updated in place.
        share = min(1.0, self._needed(inner, parameter) / max(1, hlo.elements(shape)))
        return _placed(round(share * hlo.size(shape)[0]), shape)

    @staticmethod
    def _needed(inner: Sequence[hlo.Instruction], name: str) -> float:
        """Elements of an array that a fusion needs, infinite where it is not only sliced."""
        elements = {line.name: hlo.elements(line.shape) for line in inner}

        @functools.cache  # Sums of sums have as many ways as there are subsets of them.
        def needed(name: str) -> float:
            users = [line for line in inner if name in line.operands]
            return sum(map(functools.partial(by, name), users)) if users else math.inf

        def by(name: str, user: hlo.Instruction) -> float:
            if user.opcode in ("dynamic-slice", "slice"):
                return min(elements[user.name], needed(user.name))
            same = elements[user.name] == elements[name]
            through = user.opcode in ("bitcast", "reshape") or user.opcode in _ARITHMETIC
            return needed(user.name) if through and same else math.inf

        return needed(name)


def products_along(given: int, made: int, window: Mapping[str, str]) -> int:
    """Pairs of an output place and a tap that meet in the input, not beyond its borders.

    TPUs write batches of matrix products as axes along which each place meets one tap.
    """
    size = int(window.get("size", 1))
    stride, spread = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    dilation = int(window.get("rhs_dilate", 1))
    before = int(window.get("pad", "0_0").split("_")[0])
    places = (
        place * stride + tap * dilation - before for place in range(made) for tap in range(size)
    )
    return sum(0 <= place < given * spread and place % spread == 0 for place in places)


def _placed(size: int, shape: str) -> tuple[int, int]:
    return size, size if hlo.size(shape)[1] else 0

"""From what a compiled program needs to what a user asks: what fits, how fast at best, how long."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from drsformer_jax.config import TrainConfig
from drsformer_jax.planning.chips import Chip
from drsformer_jax.planning.hlo_cost import Exchange
from drsformer_jax.planning.programs import Compiled


def bounds(program: Compiled, chip: Chip, axes: Mapping[str, int]) -> dict[str, float]:
    """Seconds that a program takes at least, by what binds it.

    - matrix: its products at the published peak in bfloat16, also of a network in float32, which
      takes several times as long.
    - schedule: the cycles of the compiler's own schedule, matrix and vector units together, which
      leave out all waiting; only where the clock is known.
    - memory: the bytes that it moves, at the published bandwidth.
    - network: what its chips exchange, in rings over all links.

    Args:
        program: what was compiled.
        chip: that it was compiled for.
        axes: sizes of the mesh's axes, in their order.
    """
    found = {
        "matrix": program.cost.matrix_flops / chip.matrix,
        "memory": program.cost.hbm_bytes / chip.bandwidth,
        "network": sum(
            sent(one, group_size(one, axes)) * one.times / chip.network for one in program.exchanges
        ),
    }
    if chip.clock and program.cost.bundles:
        found["schedule"] = program.cost.bundles / chip.clock
    return found


def group_size(exchange: Exchange, axes: Mapping[str, int]) -> int:
    """Chips that exchange data with one another."""
    return len(exchange.group) or math.prod(axes.values())


def sent(exchange: Exchange, chips: int) -> float:
    """Bytes that each chip sends in one exchange, in a ring."""
    ring = (chips - 1) / chips
    return exchange.bytes * {
        "all-reduce": 2 * ring,
        "all-gather": ring,
        "reduce-scatter": chips - 1,  # Each chip gets a part of what it gives.
        "all-to-all": ring,
    }.get(exchange.kind, 1.0)


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


def exchanged(
    exchanges: Iterable[Exchange], axes: Mapping[str, int]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Exchanges of a step, and the bytes that a chip gets in them, by axes and kind."""
    found: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for one in exchanges:
        key = along(one.group, axes), one.kind
        number, size = found[key]
        found[key] = number + one.times, size + one.times * one.bytes
    return dict(found)


def whole_run(
    config: TrainConfig, stages: Sequence[tuple[int, int, int]], largest: int, step: float
) -> float:
    """Seconds of all steps of a run.

    A step is taken to cost as its pixels do, compared with those of the compiled one.

    Args:
        config: the run.
        stages: (first step, side, global batch) of each stage.
        largest: pixels of the global batch of the compiled step.
        step: seconds of that step.
    """
    firsts = [first for first, _, _ in stages]
    lasts = [*firsts[1:], config.steps]
    return sum(
        max(min(last, config.steps) - first, 0) * step * batch * side**2 / largest
        for (first, side, batch), last in zip(stages, lasts, strict=True)
    )

"""From what a compiled program needs to what a user asks: what fits, how fast at best, how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drsformer_jax.config import TrainConfig
from drsformer_jax.planning.chips import Chip
from drsformer_jax.planning.exchanges import sent
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
        "network": sum(sent(one, axes) for one in program.exchanges) / chip.network,
    }
    if chip.clock and program.cost.bundles:
        found["schedule"] = program.cost.bundles / chip.clock
    return found


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

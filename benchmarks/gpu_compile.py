"""Compiles for GPUs without one, and says what the programs need.

    python benchmarks/gpu_compile.py --suite
    python benchmarks/gpu_compile.py forward --topology a100
    python benchmarks/gpu_compile.py train --batch 4 --height 128 --width 128 --chips 8
    python benchmarks/gpu_compile.py stages decoder_level1 --gradients --batch 4
    python benchmarks/gpu_compile.py op depthwise5 --channels 510 --gradients

It needs, beside JAX of the same version and no GPU,

    pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12

and knows the GPUs of `drsformer_jax/planning/gpus/`, as XLA describes them. Loops are multiplied
out by `hlo_cost`: "kernels" are launches, "f32 GB" large float32 arrays that are written.
Instructions of a thread and bytes that it spills are those of the longest kernels (`ptx`). Without
a GPU the compiler does not time alternatives, so what it chooses for matrix products and for cuDNN
means nothing here; layouts and fusions do.
"""

from __future__ import annotations

import os

import ptx

os.environ["XLA_FLAGS"] = ptx.flags()

from compiling import Build, Row, Work, command_line, compiled, programs, table

from drsformer_jax.errors import one_line_errors
from drsformer_jax.planning import hlo_cost
from drsformer_jax.planning.exchanges import collectives
from drsformer_jax.planning.programs import prepare

SUITE = [
    Work("forward", 1, 256, 256, topology="h100"),
    Work("train", 4, 128, 128, topology="h100"),
    Work("train", 4, 128, 128, topology="h100", chips=8),
]
"""The rows of the targets."""
LONGEST = 3
"""Kernels that are named below a row."""


def measure(work: Work, build: Build) -> Row:
    """Compiles a program; gives what it needs on one GPU."""
    ptx.clear()
    row, program = compiled(work, build)
    if program is None:
        return row
    text = program.as_text()
    cost = hlo_cost.cost(text)
    row |= {"flops": cost.flops, **_figures(cost)}
    row["collectives"] = collectives(text)
    row["loops"] = [
        {"name": loop.name, "trips": loop.trips, **_figures(loop.trip * loop.trips)}
        for loop in hlo_cost.loops(text)
    ]
    found = ptx.kernels()
    row["longest"] = [vars(kernel) for kernel in found[:LONGEST]]
    if not found:
        print("XLA wrote no PTX: instructions and spills are unknown")
        return row
    row["instructions"] = found[0].instructions
    spilled = [kernel.spilled for kernel in found if kernel.spilled is not None]
    if len(spilled) == len(found):
        row["spilled"] = max(spilled)
    return row


def _figures(cost: hlo_cost.Cost) -> dict[str, float]:
    return {"kernels": cost.kernels, "bytes": cost.bytes, "wide_bytes": cost.wide}


HEADER = (
    f"{'program':42} {'compile s':>9} {'temp GB':>8} {'args GB':>8} {'kernels':>8} {'moved GB':>9} "
    f"{'f32 GB':>8} {'instr.':>7} {'spilled':>8}"
)
BOUNDED = ("temporaries", "kernels", "bytes", "wide_bytes", "instructions", "spilled")
"""Figures that have bounds."""


def line(row: Row) -> str:
    """A row of the table, with its loops, collectives and longest kernels below it."""
    if "error" in row:
        return f"{row['key']:42} {row['error']}"
    parts = [
        f"{row['key']:42} {row['compile_seconds']:9.1f} {row['temporaries'] / 1e9:8.3f} "
        f"{row['arguments'] / 1e9:8.3f} {_columns(row)} {row.get('instructions', '-'):>7} "
        f"{row.get('spilled', '-'):>8}"
    ]
    for loop in row["loops"]:
        name = f"  {loop['trips']} x {hlo_cost.short_name(loop['name'])}"
        parts.append(f"{name[:69]:69} {_columns(loop)}")
    for kind, (number, size) in row["collectives"].items():
        parts.append(f"  {number} x {kind}, {size / 1e6:.1f} MB")
    for kernel in row["longest"]:
        parts.append(
            f"  {kernel['name'][:60]}: {kernel['instructions']} instructions, "
            f"{'unknown' if kernel['spilled'] is None else kernel['spilled']} bytes spilled"
        )
    return "\n".join(parts)


def _columns(row: Row) -> str:
    return f"{row['kernels']:8.0f} {row['bytes'] / 1e9:9.2f} {row['wide_bytes'] / 1e9:8.2f}"


def main() -> None:
    """Prints the table."""
    with one_line_errors():
        arguments = command_line(__doc__, "h100")
        prepare()
        if ptx.assembler() is None:
            print("ptxas is missing (nvidia-cuda-nvcc-cu12): spills are unknown")
        print(HEADER)
        rows = (measure(work, build) for work, build in programs(arguments, SUITE))
        table(arguments, rows, line, "gpu", BOUNDED)


if __name__ == "__main__":
    main()

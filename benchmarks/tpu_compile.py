"""Compiles for TPUs without one, and says what the programs need.

    python benchmarks/tpu_compile.py --suite --check benchmarks/bounds.json
    python benchmarks/tpu_compile.py forward --height 256 --width 256
    python benchmarks/tpu_compile.py forward --height 2160 --width 3840 --strips 128
    python benchmarks/tpu_compile.py train --batch 4 --height 128 --width 128
    python benchmarks/tpu_compile.py stages --gradients
    python benchmarks/tpu_compile.py op depthwise5 grouped5 --channels 254

It needs `pip install "jax[tpu]"`, no TPU. Figures of memory and bytes are the compiler's and repeat
exactly; seconds depend on the machine. Only one such program can run at a time (libtpu holds a
lock). Loops are multiplied out by `hlo_cost`; "once" is what `cost_analysis` returns, which counts
them once, over what `hlo_cost` counts in that way, for FLOPs and bytes: 1 where the rules agree.
"HBM" bytes leave out what the compiler keeps in the core's own memory; "ms" are the bundles of its
schedules (see `bundles`) at a v5e's 1.5 GHz, a lower bound that no chip has confirmed, followed by
the shares of sums of taps, matrix products and copies.
"""

from __future__ import annotations

from compiling import Build, Row, Work, command_line, compiled, programs, table

from drsformer_jax.errors import one_line_errors
from drsformer_jax.planning import bundles, hlo_cost
from drsformer_jax.planning.chips import CHIPS
from drsformer_jax.planning.programs import prepare

HBM = CHIPS["v5e"].memory * CHIPS["v5e"].usable
CLOCK = CHIPS["v5e"].clock or 1.0
SUITE = [
    Work("forward", 1, 256, 256),
    Work("forward", 1, 2160, 3840, strips=128),
    Work("train", 4, 128, 128),
    Work("train", 16, 128, 128),
    Work("train", 4, 128, 128, chips=4),
    Work("train", 4, 128, 128, topology="v5e:16x16", chips=256),
]
"""The rows of the targets."""


def measure(work: Work, build: Build) -> Row:
    """Compiles a program; gives what it needs on one chip."""
    row, program = compiled(work, build)
    if program is None:
        return row
    text = program.as_text()
    once = program.cost_analysis()
    counted = hlo_cost.cost_once(text)
    row["once_flops"] = once.get("flops", 0) / max(counted.flops, 1)
    row["once_bytes"] = once.get("bytes accessed", 0) / max(counted.bytes, 1)
    schedules = bundles.Schedules()
    if not len(schedules):
        print("libtpu wrote no schedules: bundles are unknown")
    row |= _figures(hlo_cost.cost(text, schedules))
    row["unclear"] = hlo_cost.unclear(text, schedules)
    row["loops"] = [
        {"name": loop.name, "trips": loop.trips, **_figures(loop.trip * loop.trips)}
        for loop in hlo_cost.loops(text, schedules)
    ]
    return row


def _figures(cost: hlo_cost.Cost) -> dict[str, float]:
    """Figures of a table's row; without schedules there are no bundles."""
    figures = {"flops": cost.flops, "bytes": cost.bytes, "hbm_bytes": cost.hbm_bytes}
    if cost.bundles:
        names = ("bundles", "taps", "products", "copies")
        figures |= {name: getattr(cost, name) for name in names}
    return figures


HEADER = (
    f"{'program':47} {'compile s':>9} {'CPU s':>6} {'temp GB':>8} {'args GB':>8} {'outs GB':>8} "
    f"{'of HBM':>7} {'moved GB':>9} {'HBM GB':>8} {'GFLOP':>8} {'ms':>8} "
    f"{'taps':>5} {'products':>8} {'copies':>6} {'once':>10}"
)


def line(row: Row) -> str:
    """A row of the table, with those of its loops below it."""
    if "error" in row:
        wanted = f"{row['wanted_bytes'] / 1e9:.2f} GB" if row["wanted_bytes"] else "unknown"
        return f"{row['key']:47} {row['error']}: wanted {wanted}, there are {HBM / 1e9:.2f} GB"
    parts = [
        f"{row['key']:47} {row['compile_seconds']:9.1f} "
        f"{row['compile_cpu_seconds']:6.0f} {row['temporaries'] / 1e9:8.3f} "
        f"{row['arguments'] / 1e9:8.3f} {row['outputs'] / 1e9:8.3f} {row['hbm'] / HBM:7.1%} "
        f"{_line_of_figures(row)} {row['once_flops']:5.2f}{row['once_bytes']:5.2f}"
    ]
    if row["unclear"]:
        parts.append(f"  unclear: {hlo_cost.unclear_line(row['unclear'])}; too few ms")
    for loop in row["loops"]:
        name = f"  {loop['trips']} x {hlo_cost.short_name(loop['name'])}"
        parts.append(f"{name[:98]:98} {_line_of_figures(loop)}")
    return "\n".join(parts)


def _line_of_figures(row: Row) -> str:
    return (
        f"{row['bytes'] / 1e9:9.2f} {row['hbm_bytes'] / 1e9:8.2f} {row['flops'] / 1e9:8.1f} "
        f"{_bundles(row)}"
    )


def _bundles(row: Row) -> str:
    if "bundles" not in row:
        return f"{'-':>8} {'-':>5} {'-':>8} {'-':>6}"
    taps, products, copies = (row[kind] / row["bundles"] for kind in ("taps", "products", "copies"))
    milliseconds = 1e3 * row["bundles"] / CLOCK
    return f"{milliseconds:8.2f} {taps:5.0%} {products:8.0%} {copies:6.0%}"


BOUNDED = ("temporaries", "hbm", "bytes", "hbm_bytes", "bundles")
"""Figures that have bounds: those that repeat exactly."""


def main() -> None:
    """Prints the table."""
    with one_line_errors():
        arguments = command_line(__doc__, "v5e:2x4")
        prepare()
        print(HEADER)
        rows = (measure(work, build) for work, build in programs(arguments, SUITE))
        table(arguments, rows, line, "v5e", BOUNDED)


if __name__ == "__main__":
    main()

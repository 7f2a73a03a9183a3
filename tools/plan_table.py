"""Prints plans that `drsformer plan --json` wrote as the rows of a Markdown table.

python tools/plan_table.py plans/*.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from drsformer_jax.errors import InputError, one_line_errors

HEAD = (
    "| recipe | chips | crops per step | memory per chip | GFLOP per chip | least time of a step, "
    "its bound | hours | chip-hours |\n|---|---|---|---|---|---|---|---|"
)


def row(path: Path) -> str:
    """The row of one plan.

    Raises:
        InputError: if the file is no plan of a training step that fits.
    """
    try:
        plan = json.loads(path.read_text())
        binds = max(plan["bounds"], key=plan["bounds"].get)
        memory = plan["memory"]
        recipe = Path(plan["what"].split(",")[0]).stem
        if "--save-convolutions True" in plan["flags"]:
            recipe += " --model.save-convolutions"
        cells = [
            f"`{recipe}`",
            plan["topology"],
            f"{plan['global_batch']} of {plan['side']}x{plan['side']}",
            f"{memory['total'] / 2**30:.2f} of {memory['available'] / 2**30:.2f} GiB",
            f"{plan['flops'] / 1e9:.0f}",
            f"{1e3 * plan['bound']:.3g} ms, {binds}",
            f"{plan['hours']:.2g}",
            f"{plan['chip_hours']:,.0f}",
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no plan of training; expected one of --json") from error
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table of the files that are named."""
    with one_line_errors():
        rows = [row(Path(name)) for name in sys.argv[1:]]
        if not rows:
            raise InputError("no file is named; expected those of drsformer plan --json")
        print("\n".join([HEAD, *rows]))


if __name__ == "__main__":
    main()

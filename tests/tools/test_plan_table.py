"""tools/plan_table.py: plans as rows of a table."""

from __future__ import annotations

import json

import plan_table
import pytest

from drsformer_jax.errors import InputError

PLAN = {
    "what": "the training step of configs/rain200h.py, bfloat16",
    "flags": "--fsdp 1 --remat False --device-batch 0",
    "side": 128,
    "global_batch": 16,
    "topology": "h100:8",
    "memory": {"total": 3 * 2**29, "available": 56 * 2**30},
    "flops": 711.4e9,
    "bounds": {"matrix": 0.001, "memory": 0.04084},
    "bound": 0.04084,
    "hours": 6.81,
    "chip_hours": 54.46,
}


def test_row_has_the_figures_of_a_plan_in_units_that_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(PLAN))
    row = plan_table.row(tmp_path / "a.json")
    cells = ["`rain200h`", "h100:8", "16 of 128x128", "1.50 of 56.00 GiB", "711"]
    assert row == f"| {' | '.join([*cells, '40.8 ms, memory', '6.8', '54'])} |"
    assert row.count("|") == plan_table.HEAD.partition("\n")[0].count("|")
    saving = {**PLAN, "flags": "--fsdp 1 --remat True --save-convolutions True --device-batch 0"}
    (tmp_path / "b.json").write_text(json.dumps(saving))
    row = plan_table.row(tmp_path / "b.json")
    assert row.startswith("| `rain200h --model.save-convolutions` | h100:8")


@pytest.mark.parametrize("text", ["{", "[]", '{"error": "does not fit"}'])
def test_file_that_is_no_plan_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json is no plan of training; expected one of --json"):
        plan_table.row(tmp_path / "a.json")

"""What a step must exchange by its mesh, and which plans differ from it."""

import dataclasses

import pytest
import scaling
from programs import ROOT
from recipe import SMALL

from drsformer_jax.config import MeshConfig, TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.scoring.complexity import parameters

CONFIG = TrainConfig(model=SMALL, mesh=MeshConfig(fsdp_min_size=0))


def plan(exchanged, fsdp=1, flops=1e9):
    listed = [
        {"axes": axes, "kind": kind, "bytes": size} for (axes, kind), size in exchanged.items()
    ]
    return {"flops": flops, "mesh": {"data": 4, "fsdp": fsdp, "rows": 1}, "exchanged": listed}


def test_without_fsdp_it_is_the_gradient_alone():
    wanted = scaling.expected(CONFIG, {"data": 4, "fsdp": 1, "rows": 1})
    assert wanted == {("data", "all-reduce"): 4 * parameters(SMALL)}


def test_with_fsdp_arrays_are_gathered_and_gradients_scattered():
    wanted = scaling.expected(CONFIG, {"data": 4, "fsdp": 2, "rows": 1})
    gathered, rest = wanted["fsdp", "all-gather"], wanted["data, fsdp", "all-reduce"]
    assert gathered + rest == 4 * parameters(SMALL)
    assert gathered > rest
    assert wanted["fsdp", "reduce-scatter"] == wanted["data", "all-reduce"] == gathered / 2
    whole = dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp_min_size=10**9))
    assert scaling.expected(whole, {"data": 4, "fsdp": 2, "rows": 1}) == {
        ("data, fsdp", "all-reduce"): 4 * parameters(SMALL)
    }


@pytest.mark.parametrize(
    ("found", "flops", "expected"),
    [
        ({("data", "all-reduce"): 101}, 1.01e9, []),
        ({("data", "all-reduce"): 103}, 1e9, ["all-reduce along data has 103 bytes; expected 100"]),
        ({}, 1e9, ["all-reduce along data has 0 bytes; expected 100"]),
        (
            {("data", "all-reduce"): 100, ("data", "all-to-all"): 7},
            1e9,
            ["all-to-all along data has 7 bytes; expected 0"],
        ),
        ({("data", "all-reduce"): 100}, 1.03e9, ["FLOPs a chip are 1.03e+09; expected 1e+09"]),
    ],
)
def test_other_exchanges_and_other_work_are_named(found, flops, expected):
    wanted = {("data", "all-reduce"): 100}
    assert scaling.differences(plan(found, flops=flops), plan({}), wanted) == expected


def test_compiler_may_gather_less_and_sum_what_it_should_scatter():
    wanted = {("fsdp", "all-gather"): 100, ("fsdp", "reduce-scatter"): 50}
    found = {
        ("fsdp", "all-gather"): 50,
        ("fsdp", "reduce-scatter"): 20,
        ("fsdp", "all-reduce"): 60,
    }
    assert scaling.differences(plan(found, fsdp=2), plan({}), wanted) == []
    more = found | {("fsdp", "all-gather"): 103}
    (line,) = scaling.differences(plan(more, fsdp=2), plan({}), wanted)
    assert line == "all-gather along fsdp has 103 bytes; expected 100"


def test_each_wrong_figure_is_a_line_of_its_own(monkeypatch, capsys):
    row = plan({}) | {"topology": "v5e:2x2", "chips": 4, "compile_s": 1, "memory": {"total": 1}}
    rows = iter([row, row | {"flops": 2e9}])
    monkeypatch.setattr(scaling, "planned", lambda options, chips: next(rows))
    config = str(ROOT / "configs" / "quickstart.py")
    with pytest.raises(SystemExit) as ended:
        scaling.main(["--config", config, "--chips", "4", "16"])
    assert [line.partition(" ")[0] for line in ended.value.code.splitlines()] == ["v5e:2x2:"] * 3
    assert capsys.readouterr().out.count("v5e:2x2 ") == 2


@pytest.mark.parametrize("chips", [8, 0, -4])
def test_slices_that_are_no_squares_are_rejected(chips):
    with pytest.raises(InputError, match=f"--chips has {chips}; expected squares"):
        scaling.planned(None, chips)

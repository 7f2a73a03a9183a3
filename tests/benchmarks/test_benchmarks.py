"""What benchmarks compare with, measure by and judge by; their times are no matter of tests."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from types import SimpleNamespace

import check_bounds
import jax
import pytest
import timing
from bounds import uneven

from drsformer_jax.errors import InputError


def test_programs_take_turns_and_the_first_does_not_count(monkeypatch):
    monkeypatch.setattr(timing, "seconds", lambda program: program())
    turns = []
    spent = {"ours": iter([9.0, 1.0, 5.0, 3.0]), "theirs": iter([9.0, 2.0, 2.0, 7.0])}

    def run(name):
        turns.append(name)
        return next(spent[name])

    programs = {name: functools.partial(run, name) for name in spent}
    assert timing.race(programs, runs=3) == {"ours": 3.0, "theirs": 2.0}
    assert turns == ["ours", "theirs"] * 4


def test_table_shows_what_it_writes(tmp_path, capsys):
    table = timing.Table("a title", {"variant": "<6", "pairs_per_s": "8.1f", "target": "4d"})
    table.add(variant="one", pairs_per_s=12.345, target=None, all=[1, 2])
    table.add(variant="long name", pairs_per_s=1.0, target=70)
    assert capsys.readouterr().out.splitlines() == [
        "a title",
        "variant   pairs/s  target",
        "one          12.3       -",
        "long name       1.0      70",
    ]
    table.write(tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == {
        "title": "a title",
        "rows": [
            {"variant": "one", "pairs_per_s": 12.345, "target": None, "all": [1, 2]},
            {"variant": "long name", "pairs_per_s": 1.0, "target": 70},
        ],
    }


FIGURES = {
    "against_torch.py": [{"program": "ours"}, {"ours_float32_over_it": 0.8}],
    "derain_folder.py": [
        {"sizes_compiled": 3, "first_image_s": 50.0},
        {"sizes_compiled": 3, "first_image_s": 6.0},
    ],
}


@pytest.fixture
def bounds(tmp_path, monkeypatch):
    """Checks figures against bounds, without measuring; gives the path of the bounds."""
    monkeypatch.setattr(check_bounds, "BOUNDS", tmp_path / "bounds.json")
    monkeypatch.setattr(check_bounds, "figures", lambda program, *_: FIGURES[program])
    monkeypatch.setattr(check_bounds, "programs_hold", lambda *_: True)
    monkeypatch.setattr(check_bounds.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["check_bounds.py"])
    return tmp_path / "bounds.json"


def test_bounds_that_were_written_hold_and_others_of_the_file_stay(bounds, monkeypatch, capsys):
    bounds.write_text('{"v5e": {"forward": {"bytes": 1}}, "cpu": {"other": {"x": 2}}}')
    monkeypatch.setattr(sys, "argv", ["check_bounds.py", "--write-bounds"])
    check_bounds.main()
    assert json.loads(bounds.read_text()) == {
        "v5e": {"forward": {"bytes": 1}},
        "cpu": {
            "other": {"x": 2},
            "ratio_to_torch": {"drsformer 256x256": 1.0, "drsformer_no_mefc 256x256": 1.0},
            "derain_folder": {"sizes_compiled": 3.75, "second_first_image_s": 7.5},
        },
    }
    monkeypatch.setattr(sys, "argv", ["check_bounds.py"])
    with pytest.raises(SystemExit, match="0"):
        check_bounds.main()
    assert "all bounds of the CPU hold" in capsys.readouterr().out


def test_each_bound_that_is_exceeded_is_a_line_and_the_check_fails(bounds, capsys):
    ratios = {"drsformer 256x256": 0.79, "drsformer_no_mefc 256x256": 0.8}
    most = {"ratio_to_torch": ratios, "derain_folder": {"sizes_compiled": 2}}
    bounds.write_text(json.dumps({"cpu": most}))
    with pytest.raises(SystemExit, match="1"):
        check_bounds.main()
    assert capsys.readouterr().out.splitlines() == [
        "ratio_to_torch: drsformer 256x256 is 0.8; expected at most 0.79",
        "derain_folder: sizes_compiled is 3; expected at most 2",
    ]


def test_check_fails_where_a_compiled_program_does_and_says_what_cannot_be_compiled(
    bounds, monkeypatch, capsys
):
    bounds.write_text('{"cpu": {}}')
    monkeypatch.setattr(check_bounds, "programs_hold", lambda _, program, kernels: kernels == "xla")
    with pytest.raises(SystemExit, match="1"):
        check_bounds.main()
    monkeypatch.undo()
    assert check_bounds.programs_hold("not_installed", "gpu_compile.py", "pallas")
    missing = "not_installed is not installed: gpu_compile.py --kernels pallas is not checked"
    assert missing in capsys.readouterr().out


def test_chips_that_compute_more_than_fewer_of_them_do_are_reported():
    def row(key, **fields):
        work = dict.fromkeys(("what", "height", "width", "preset", "dtype", "strips"))
        return {"key": key, "batch": 4, **work, **fields}

    rows = [
        row("one", flops=1000),
        row("other batch", flops=4000, batch=16),
        row("four", flops=1019),
        row("too large", error="RESOURCE_EXHAUSTED"),
        row("many", flops=1021),
    ]
    assert uneven(rows) == ["many: 1021 operations a chip; expected those of one, 1000, to 2%"]


@pytest.mark.parametrize(
    "program",
    [
        "against_torch",
        "closeness",
        "derain_folder",
        "device_parity",
        "exported",
        "forward",
        "input_pipeline",
        "ops",
        "train_step",
    ],
)
def test_program_shows_its_flags(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{program}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(program).main()
    assert "--json" in capsys.readouterr().out


@pytest.fixture
def compiling(monkeypatch):
    """The module, with the CPUs of this process as the chips."""
    found = importlib.import_module("compiling")
    monkeypatch.setattr(found, "find_slice", lambda _: SimpleNamespace(devices=jax.devices()))
    return found


def asked(compiling, monkeypatch, *arguments):
    """The programs of a command line."""
    monkeypatch.setattr(sys, "argv", ["tpu_compile.py", *arguments, "--preset", "tiny"])
    return list(compiling.programs(compiling.command_line("", "v5e:2x4"), []))


@pytest.mark.parametrize("what", [["forward", "--strips", "16"], ["train"], ["op", "linear"]])
def test_programs_to_compile_are_those_of_the_network(compiling, monkeypatch, what):
    sides = ("--batch", "2", "--height", "32", "--width", "32", "--channels", "6")
    ((work, build),) = asked(compiling, monkeypatch, *what, *sides)
    function, arguments = build(work, compiling.mesh_of(work))
    assert function.eval_shape(*arguments) is not None
    shapes = {leaf.shape[:3] for leaf in jax.tree.leaves(arguments) if hasattr(leaf, "shape")}
    assert (2, 32, 32) in shapes


def test_convolutions_are_saved_where_there_is_a_backward_pass_of_layers(compiling, monkeypatch):
    for what in (["train"], ["stages", "latent", "--gradients"]):
        ((work, _),) = asked(compiling, monkeypatch, *what, "--save-convolutions")
        assert work.config.remat
        assert work.config.save_convolutions
        assert work.key.endswith(" saving")
    for what in (["forward"], ["stages"], ["op", "linear", "--gradients"], ["--suite"]):
        with pytest.raises(InputError, match="--save-convolutions is given; expected it beside"):
            asked(compiling, monkeypatch, *what, "--save-convolutions")


def test_stages_are_those_that_the_network_has(compiling, monkeypatch):
    names = {work.what for work, _ in asked(compiling, monkeypatch, "stages")}
    assert len(names) == 7
    with pytest.raises(InputError, match="the stage is 'refinement'; expected one of encoder_lev"):
        asked(compiling, monkeypatch, "stages", "refinement")

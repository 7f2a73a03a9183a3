"""What plans are made of, without a compiler for accelerators."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import jax
import pytest
from recipe import SMALL

from drsformer_jax.config import MeshConfig, TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.planning import command, exchanges, hlo, plan, programs
from drsformer_jax.planning.chips import CHIPS
from drsformer_jax.planning.exchanges import Exchange
from drsformer_jax.planning.hlo import group
from drsformer_jax.planning.hlo_cost import Cost
from drsformer_jax.restoring.program import compiled_for
from drsformer_jax.scoring.complexity import parameters
from drsformer_jax.sharding import make_mesh

AXES = {"data": 4, "fsdp": 2, "rows": 3}


@pytest.mark.parametrize(
    ("line", "chips"),
    [
        ("all-reduce(%x), replica_groups={{0,3,6},{1,4,7}}, to_apply=%add", (0, 3, 6)),
        ("all-reduce(%x), replica_groups={}, to_apply=%add", ()),
        ("all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}", (0, 1)),
        ("all-gather(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", (0, 2, 4, 6)),
        ("collective-permute(%x), source_target_pairs={{2,5},{5,2}}", (2, 5)),
    ],
)
def test_the_first_group_of_chips_is_read_in_each_spelling(line, chips):
    assert group(line) == chips


@pytest.mark.parametrize(
    ("chips", "axes"),
    [
        ((0, 6, 12, 18), "data"),
        ((0, 3), "fsdp"),
        ((0, 1, 2), "rows"),
        ((0, 3, 6, 9, 12, 15, 18, 21), "data, fsdp"),
        ((), "data, fsdp, rows"),
        ((5,), "none"),
    ],
)
def test_exchanges_belong_to_the_axes_that_their_chips_differ_along(chips, axes):
    assert exchanges.along(chips, AXES) == axes


def test_exchanges_of_the_same_axes_and_kind_are_added():
    found = exchanges.exchanged(
        [
            Exchange("all-reduce", (0, 6, 12, 18), 2, 10),
            Exchange("all-reduce", (1, 7, 13, 19), 1, 5),
            Exchange("all-gather", (0, 3), 3, 7),
        ],
        AXES,
    )
    assert found == {("data", "all-reduce"): (3, 25), ("fsdp", "all-gather"): (3, 21)}


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 3 * 8 / 4),  # In four parts, around the ring twice.
        ("all-gather", 3 * 8 / 4),  # All parts but one's own.
        ("reduce-scatter", 3 * 8),  # As many parts, each as large as what comes out.
        ("all-to-all", 3 * 8 / 4),
        ("collective-permute", 8),
    ],
)
def test_bytes_that_a_chip_sends_are_those_of_a_ring(kind, sent):
    assert exchanges.sent(Exchange(kind, (0, 1, 2, 3), 1, 8), AXES) == sent
    assert exchanges.sent(Exchange(kind, (), 5, 8), {"data": 2, "rows": 2}) == 5 * sent


def compiled(**cost):
    memory = programs.Memory(1 << 20, 2 << 20, 3 << 20, 4 << 30, 5 << 20)
    return programs.Compiled(
        memory, Cost(**cost), {}, [Exchange("all-gather", (), 10, 10**9)], 12.3
    )


def test_bounds_are_what_is_needed_over_the_published_rates():
    program = compiled(matrix_flops=197e12, hbm_bytes=8190e9, bundles=3e9)
    found = plan.bounds(program, CHIPS["v5e"], {"data": 2})
    assert found == {"matrix": 1.0, "memory": 10.0, "schedule": 2.0, "network": 10 * 0.5e9 / 200e9}


def test_without_a_schedule_or_a_clock_nothing_is_said_of_it():
    assert "schedule" not in plan.bounds(compiled(), CHIPS["v5e"], {"data": 2})
    assert "schedule" not in plan.bounds(compiled(bundles=1.0), CHIPS["v6e"], {"data": 2})


def test_a_run_costs_what_the_pixels_of_its_stages_do():
    stages = ((0, 64, 8), (100, 128, 4), (300, 128, 8))
    largest = 128**2 * 8
    config = TrainConfig(steps=400)
    assert plan.whole_run(config, stages, largest, 2.0) == 100 * 0.5 + 200 * 1.0 + 100 * 2.0
    assert plan.whole_run(replace(config, steps=50), stages, largest, 2.0) == 50 * 0.5


class Device:
    """A chip that is not there, as a mesh needs it."""

    process_index = 0

    def __init__(self, number):
        self.id = number


@pytest.fixture
def chips(monkeypatch):
    """Two chips, for which nothing is compiled: gives what each program would need in GiB."""
    needs = {}
    found = programs.Slice("v5e:1x2", CHIPS["v5e"], [Device(0), Device(1)])

    def compile_nothing(function, arguments):
        config, _, batch = arguments
        limit = config.mesh.device_batch or batch
        kept = "all" if not config.model.remat else "some" if config.model.save_convolutions else ""
        size = needs.get((kept, config.mesh.fsdp, limit))
        return compiled(hbm_bytes=819e9) if size is None else programs.TooLarge(int(size * 2**30))

    monkeypatch.setattr(programs, "prepare", lambda: None)
    monkeypatch.setattr(programs, "find_slice", lambda name: found)
    monkeypatch.setattr(programs, "compiled", compile_nothing)
    monkeypatch.setattr(
        programs, "train_step", lambda config, mesh, side, batch: (None, (config, side, batch))
    )
    return needs


@pytest.fixture
def recipe(tmp_path):
    """A recipe of 8 crops of 64x64."""
    path = tmp_path / "recipe.py"
    path.write_text(
        "from drsformer_jax.config import PRESETS, DataConfig, TrainConfig\n"
        "def get_config():\n"
        "    return TrainConfig(\n"
        "        model=PRESETS['tiny'],\n"
        "        data=DataConfig(crop_size=64, global_batch=8),\n"
        "        steps=7200,\n"
        "    )\n"
    )
    return path


def test_plan_says_what_a_step_and_the_recipe_need(chips, recipe, tmp_path, capsys):
    command.Plan(recipe, "v5e:1x2", json=tmp_path / "plan.json").run()
    out = capsys.readouterr().out.splitlines()
    text = {line[:20].strip(): line[21:] for line in out if line[:20].strip()}
    assert text["where"] == "v5e:1x2: 2 chips, 1 host"
    assert text["step"] == "8 crops of 64x64"
    assert text["memory per chip"] == "4.01 GiB of 15.75 GiB"
    assert text["along data"] == "10 all-gathers, 10000.0 MB"
    assert text["takes at least"] == "memory 1000.0 ms, network 25.0 ms, matrix 0.0 ms"
    assert text["steps per second"] == "0.50 at 50% of that bound (projected)"
    assert text["7,200 steps"] == "4.0 hours, 8 chip-hours at 50% of that bound (projected)"
    assert text["input pairs"] == "4 per second, 4 per host"
    row = json.loads((tmp_path / "plan.json").read_text())
    assert (row["hours"], row["chip_hours"], row["global_batch"]) == (4.0, 8.0, 8)
    assert row["memory"]["temporaries"] == 4 << 30


@pytest.mark.parametrize(
    ("mesh", "flags", "shown"),
    [
        ("MeshConfig(data=1, fsdp=-1)", {}, "data 1, fsdp 2, rows 1"),
        ("MeshConfig()", {"fsdp": -1}, "data 1, fsdp 2, rows 1"),
        ("MeshConfig(data=8)", {}, "data 2, fsdp 1, rows 1"),
    ],
)
def test_all_chips_are_along_the_axis_that_takes_the_rest(
    chips, recipe, capsys, mesh, flags, shown
):
    text = recipe.read_text().replace("steps=7200", f"mesh={mesh}, steps=7200")
    recipe.write_text(text.replace("DataConfig,", "DataConfig, MeshConfig,"))
    command.Plan(recipe, "v5e:1x2", **flags).run()
    assert f"mesh                 {shown};" in capsys.readouterr().out


def test_search_over_more_rows_than_chips_is_rejected_in_one_line(chips, recipe):
    text = recipe.read_text().replace("steps=7200", "mesh=MeshConfig(rows=8), steps=7200")
    recipe.write_text(text.replace("DataConfig,", "DataConfig, MeshConfig,"))
    with pytest.raises(InputError, match=r"^(?!mesh\.fsdp is 0).*; expected "):
        command.Plan(recipe, "v5e:1x2", search=True).run()


def test_what_does_not_fit_is_one_line_with_what_would(chips, recipe):
    chips |= {("all", 1, 8): 40, ("", 1, 8): 30, ("", 1, 2): 20}
    with pytest.raises(InputError) as error:
        command.Plan(recipe, "v5e:1x2").run()
    assert str(error.value) == (
        f"the training step of {recipe}, float32 does not fit v5e:1x2: it needs 40.00 GiB of 15.75 "
        "GiB per chip; expected less, such as --fsdp 1 --remat True --save-convolutions False "
        "--device-batch 1, which needs 4.01 GiB"
    )


def test_search_prints_each_try_and_plans_the_fastest_that_fits(chips, recipe, capsys):
    chips |= {("some", 1, 8): 40, ("some", 2, 8): 40, ("some", 2, 2): 40}
    command.Plan(recipe, "v5e:1x2", search=True).run()
    out = capsys.readouterr().out
    saving = "--remat True --save-convolutions True"
    assert f"--fsdp 1 {saving} --device-batch 0: does not fit\n" in out
    assert f"--fsdp 1 {saving} --device-batch 2: 4.01 GiB, 1000.0 ms per step\n" in out
    assert f"--fsdp 2 {saving} --device-batch 1: 4.01 GiB, 1000.0 ms per step\n" in out
    assert f"--fsdp 1 {saving} --device-batch 1:" not in out  # It fitted before.


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"topology": "v9:2x2"}, "the topology is 'v9:2x2'; expected one of v4, v5e, v5p, v6e"),
        ({"topology": "h100:9"}, "the topology is h100:9; expected 1 to 8 GPUs of a machine"),
        ({"topology": "l4:two"}, "the topology is l4:two; expected 1 to 8 GPUs of a machine"),
        ({"efficiency": 2.0}, "--efficiency is 2.0; expected more than 0, at most 1"),
    ],
)
def test_wrong_input_is_one_line(recipe, monkeypatch, flags, line):
    monkeypatch.setattr(programs, "prepare", lambda: None)
    with pytest.raises(InputError, match=re.escape(line)):
        command.Plan(**{"config": recipe, "topology": "v5e:2x2", **flags}).run()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"search": True, "remat": False}, "--remat is given; expected none beside --search"),
        ({"restore": "64x64", "fsdp": 2}, "--fsdp is given; expected none beside --restore"),
        ({"restore": "64x64", "search": True}, "--search is given; expected none beside --restore"),
    ],
)
def test_flags_without_effect_are_rejected(chips, recipe, flags, line):
    with pytest.raises(InputError, match=re.escape(line)):
        command.Plan(recipe, "v5e:1x2", **flags).run()


def test_an_image_to_restore_has_two_sides(chips, recipe):
    with pytest.raises(InputError, match="--restore is '4k'; expected WIDTHxHEIGHT"):
        command.Plan(recipe, "v5e:1x2", restore="4k").run()


def test_what_is_not_installed_is_named(recipe, monkeypatch):
    monkeypatch.setattr(programs, "prepare", lambda: None)
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    for topology, line in (
        ("v5e:2x2", "libtpu is missing"),
        (
            "l4",
            "JAX's plugin for GPUs is missing; expected it, as by: pip install jax-cuda12-plugin==",
        ),
    ):
        with pytest.raises(InputError, match=line):
            command.Plan(recipe, topology).run()


def test_large_images_are_planned_in_the_largest_strips_that_fit(
    chips, recipe, monkeypatch, capsys
):
    def compile_nothing(function, strip):
        return compiled(hbm_bytes=819e9) if 0 < strip <= 256 else programs.TooLarge(20 * 2**30)

    monkeypatch.setattr(programs, "compiled", compile_nothing)
    monkeypatch.setattr(programs, "restoring", lambda *arguments: (None, arguments[4]))
    command.Plan(recipe, "v5e:1x2", restore="3840x2160").run()
    out = capsys.readouterr().out
    assert f"3840x2160 with the network of {recipe}, float32" in out
    assert "v5e:1x2: 1 chip, 1 host" in out
    assert "in strips of 256 rows" in out
    assert "0.50 at 50% of that bound (projected)" in out
    assert "input pairs" not in out


@pytest.mark.parametrize("strip", [0, 16])
def test_restoring_is_planned_by_the_program_that_restores(strip):
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    function, arguments = programs.restoring(SMALL, mesh, 64, 48, strip)
    assert function is compiled_for("cpu")
    found = programs.compiled(function, arguments)
    assert found.memory.parameters == 4 * parameters(SMALL)
    assert found.memory.optimizer == 0
    # 16 bits in and out, the size, and the largest value.
    assert found.memory.images == 2 * (64 * 48 * 3 * 2) + 2 * 4 + 4


def test_networks_of_float64_are_planned_in_float64(recipe, chips, monkeypatch, tmp_path):
    recipe.write_text(
        recipe.read_text()
        .replace(
            "PRESETS['tiny']", "replace(PRESETS['tiny'], dtype='float64', param_dtype='float64')"
        )
        .replace("from drsformer_jax", "from dataclasses import replace\nfrom drsformer_jax", 1)
    )
    wide = []

    def compile_nothing(function, arguments):
        wide.append(jax.numpy.zeros((), "float64").dtype)
        return compiled(hbm_bytes=819e9)

    monkeypatch.setattr(programs, "compiled", compile_nothing)
    command.Plan(recipe, "v5e:1x2").run()
    monkeypatch.setattr(programs, "restoring", lambda *arguments: (None, None))
    command.Plan(recipe, "v5e:1x2", restore="64x64").run()
    assert wide == ["float64", "float64"]
    assert hlo.size("(f64[3,2]{1,0}, f32[5]{0})") == (6 * 8 + 5 * 4, 6 * 8 + 5 * 4)


def test_global_batch_changes_the_stages_in_proportion(recipe, chips, tmp_path):
    text = recipe.read_text().replace(
        "crop_size=64, global_batch=8",
        "crop_size=64, global_batch=4, progressive=((0, 32, 8), (9, 64, 4))",
    )
    recipe.write_text(text)
    command.Plan(recipe, "v5e:1x2", global_batch=8, json=tmp_path / "plan.json").run()
    row = json.loads((tmp_path / "plan.json").read_text())
    assert (row["side"], row["global_batch"]) == (64, 8)
    pixels = (9 * 32**2 * 16 + (7200 - 9) * 64**2 * 8) / (64**2 * 8)
    assert row["hours"] == pytest.approx(2.0 * pixels / 3600)

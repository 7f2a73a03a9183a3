"""Plans by the real compilers for TPUs and GPUs, where these are installed or on PYTHONPATH."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys

import pytest

from drsformer_jax.planning.chips import CHIPS
from drsformer_jax.scoring.complexity import parameters

pytestmark = pytest.mark.slow
RECIPE = """
from drsformer_jax.config import DataConfig, ModelConfig, TrainConfig

def get_config():
    return TrainConfig(
        model=ModelConfig(
            dim=8, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), encoder_level0="none",
            refinement="none", attention="dense", feed_forward="fn", dtype="bfloat16",
        ),
        data=DataConfig(crop_size=32, global_batch=8),
        steps=100,
    )
"""


RINGS = """
from drsformer_jax.config import MeshConfig
from drsformer_jax.planning import programs
from drsformer_jax.sharding import make_mesh

programs.prepare()
for name in ("v5e:2x2", "v5e:4x4", "v5p:2x2x1"):
    mesh = make_mesh(MeshConfig(rows=4), programs.find_slice(name).devices)
    print(name, [[(each.process_index, each.coords) for each in row[0]] for row in mesh.devices])
"""


def needs_compiler(topology):
    """Skips where what compiles for a topology is not here."""
    if CHIPS[topology.partition(":")[0]].platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            pytest.skip("libtpu is not installed (pip install 'jax[tpu]')")
    elif importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("JAX's plugin for GPUs is not installed (pip install jax-cuda12-plugin)")


@pytest.fixture
def planned(run, tmp_path):
    """Plans that recipe; gives the figures."""
    (tmp_path / "recipe.py").write_text(RECIPE)

    def plan(topology, *flags):
        needs_compiler(topology)
        file = tmp_path / "plan.json"
        command = ("--config", tmp_path / "recipe.py", "--topology", topology, "--json", file)
        result = run("drsformer", "plan", *command, *flags, environment=run.environment)
        assert result.returncode == 0, result.stderr
        return json.loads(file.read_text())

    return plan


def weights():
    namespace = {}
    exec(RECIPE, namespace)
    return parameters(namespace["get_config"]().model)


@pytest.mark.parametrize(("topology", "chips"), [("v5e:2x2", 4), ("h100:4", 4)])
def test_four_chips_exchange_the_gradients_once_and_compute_what_one_does(planned, topology, chips):
    many = planned(topology)
    assert (many["chips"], many["hosts"], many["mesh"]["data"]) == (chips, 1, chips)
    # Float32 parameters; two moments of AdamW beside them, and three counts.
    memory, count = many["memory"], weights()
    assert memory["parameters"] == 4 * count
    assert 8 * count <= memory["optimizer"] <= 8 * count + 64
    assert 0 < memory["total"] < memory["available"]
    # The gradients, and a scalar or two, in one exchange or in few that a compiler splits.
    assert {(one["axes"], one["kind"]) for one in many["exchanged"]} == {("data", "all-reduce")}
    exchanged = sum(one["bytes"] for one in many["exchanged"])
    assert 4 * count <= exchanged <= 4 * count + 64
    one = planned(topology.replace("2x2", "1x1").replace(":4", ":1"), "--global-batch", "2")
    assert not one["exchanged"]
    assert many["flops"] == pytest.approx(one["flops"], rel=0.02)


@pytest.mark.parametrize("topology", ["v5e:1x1", "l4"])
def test_restoring_is_planned_for_one_chip(planned, topology):
    row = planned(topology, "--restore", "100x60")
    assert (row["strips"], row["chips"]) == (0, 1)
    assert row["memory"]["parameters"] == 4 * weights()
    assert row["matrix_flops"] < row["flops"]
    assert row["images_per_s"] == pytest.approx(0.5 / row["bound"])


def test_devices_of_a_process_that_share_rows_are_a_ring_of_links(run):
    needs_compiler("v5e")
    command = [sys.executable, "-c", RINGS]
    result = subprocess.run(
        command, env=run.environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    lines = [line.partition(" ") for line in result.stdout.splitlines() if line.startswith("v5")]
    assert [name for name, _, _ in lines] == ["v5e:2x2", "v5e:4x4", "v5p:2x2x1"]
    for _, _, rings in lines:
        for number, ring in enumerate(ast.literal_eval(rings)):
            assert {process for process, _ in ring} == {number}
            places = [coords for _, coords in ring]
            for one, following in zip(places, places[1:] + places[:1], strict=True):
                assert sum(abs(a - b) for a, b in zip(one, following, strict=True)) == 1


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("v5e:1x1", 1, 1), ("v6e:2x4", 8, 1), ("v5e:4x4", 16, 4), ("v4:2x2x1", 4, 1)],
)
def test_slices_have_the_chips_and_hosts_of_the_cloud(run, topology, chips, hosts):
    needs_compiler(topology)
    program = f"""
from drsformer_jax.planning import programs
programs.prepare()
found = programs.find_slice({topology!r})
print(len(found.devices), found.hosts)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, env=run.environment, capture_output=True, text=True, timeout=300
    )
    assert result.stdout == f"{chips} {hosts}\n", result.stderr

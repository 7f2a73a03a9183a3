"""How train.py starts, resumes a run, and shows what it does: real processes."""

from __future__ import annotations

import json
import re
import shutil

import jax
import numpy as np
import pytest
from programs import rejected

from drsformer_jax.config.file import read_config
from drsformer_jax.training import checkpoint

pytestmark = pytest.mark.slow

STILL = ("--optim.learning-rate", "1e-30", "--optim.final-learning-rate", "0", "--steps", 1)


def equal(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.fixture
def copy(trained, place, request):
    """A copy of the trained run, by the name of the test."""
    folder = place / request.node.name
    shutil.copytree(trained[0], folder)
    return folder


def test_changed_configuration_is_shown_and_rejected_unless_allowed(run, copy, place):
    arguments = ("train", "--config", "config.py", "--workdir", copy.name, "--steps", 6)
    changed = ("--optim.learning-rate", "2e-3", "--data.mixup")
    result = run(*arguments, *changed, "--data.cache-dir", "not_written")
    rejected(result, r"was trained with another data\.mixup, optim\.learning-rate \(shown above\)")
    assert list((place / "not_written").iterdir()) == [], "a cache may take hours"
    assert "- optim.learning-rate 0.001\n+ optim.learning-rate 0.002" in result.stdout
    assert "- data.mixup False\n+ data.mixup True" in result.stdout
    assert read_config(copy).optim.learning_rate == 1e-3, "the record is still that of the run"
    assert checkpoint.Run(copy, keep=None).steps() == [2, 4]
    result = run(*arguments, *changed, "--allow-changes")
    assert result.returncode == 0, result.stderr
    assert read_config(copy).optim.learning_rate == 2e-3


def test_changes_of_periods_and_mesh_are_shown_and_taken(run, copy):
    result = run(
        *("train", "--config", "config.py", "--workdir", copy.name, "--steps", 5),
        *("--log-every", 2, "--mesh.device-batch", 1),
    )
    assert result.returncode == 0, result.stderr
    for line in ("- steps 4", "+ steps 5", "+ log-every 2", "+ mesh.device-batch 1"):
        assert line in result.stdout.splitlines()


def test_training_starts_from_another_run_or_an_official_file(run, trained, place):
    folder, _ = trained
    assert run("drsformer", "convert", "--to-torch", folder, "start.pth").returncode == 0
    expected = checkpoint.load(folder)[1]
    for name, source in (("from_run", folder), ("from_file", "start.pth")):
        result = run(
            *("train", "--config", "config.py", "--workdir", name, "--init-from", source, *STILL)
        )
        assert result.returncode == 0, result.stderr
        found = checkpoint.load(place / name)[1]
        for value, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-6)


def test_a_run_that_has_begun_keeps_what_it_began_from(run, trained, place):
    train = ("train", "--config", "config.py", "--workdir", "begun_from", *STILL)
    began = ("--init-from", trained[0])
    for flags in (began, began, ()):
        result = run(*train, *flags)
        assert result.returncode == 0, result.stderr
        assert read_config(place / "begun_from").init_from == str(trained[0])
        assert "init-from" not in result.stdout
    rejected(run(*train, "--init-from", "builtin"), "begun_from has begun from .*/run; expected an")
    assert read_config(place / "begun_from").init_from == str(trained[0])


def test_a_run_that_is_past_its_steps_says_so_and_stays_as_it_is(run, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    result = run("train", "--config", "config.py", "--workdir", copy.name, "--steps", 2)
    assert (result.returncode, result.stderr) == (0, "")
    line = f"{copy.name} is at step 4, past --steps 2: nothing is done\n"
    assert result.stdout == line
    lock = copy / ".lock"
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert before == {path: time for path, time in after.items() if path != lock or lock in before}


def test_start_from_another_architecture_is_rejected(run, trained):
    wrong = ("--init-from", trained[0], "--model.feed-forward", "gdfn", "--workdir", "never_begun")
    result = run("train", "--config", "config.py", *wrong)
    rejected(result, r"run holds .* another architecture: feed_forward fn \(here gdfn\)")


def test_checkpoint_holds_all_that_a_run_resumes_from(trained):
    folder, _ = trained
    saved = json.loads((folder / "checkpoints" / "4" / "run" / "metadata").read_text())
    assert saved["step"] == saved["data"]["next_batch"] == saved["random_key"]["fold_in"] == 4
    assert saved["data"]["seed"] == saved["random_key"]["seed"] == 100
    assert saved["nonfinite_steps"] == 0
    with checkpoint.Run(folder, keep=None) as run:
        assert run.config(4) == read_config(folder)


def test_ema_restores_images_and_is_resumed_after_a_stop(run, trained, place):
    averaged = ("train", "--config", "config.py", "--optim.ema-decay", 0.5, "--workdir")
    # The run without a stop comes last: it is scored once, so that what it restores with is that.
    for name, stops in (("averaged_stopped", (2, 4)), ("averaged", (4,))):
        for steps in stops:
            result = run(*averaged, name, "--steps", steps)
            assert result.returncode == 0, result.stderr
    validated = re.search(r"validation PSNR (\S+) dB", result.stdout)[1]
    assert f"restored {validated} dB" in result.stdout, "scored, saved and read are one average"
    straight, stopped = (place / name for name in ("averaged", "averaged_stopped"))
    average = checkpoint.load(straight, 4)[1]
    assert equal(checkpoint.load(stopped, 4)[1], average)
    assert (straight / "checkpoints" / "4" / "ema").is_dir()
    plain = checkpoint.load(trained[0], 4)[1]
    assert not equal(average, plain), "the run without an average ends with other parameters"
    # As a kill while it is deleted leaves it.
    shutil.rmtree(straight / "checkpoints" / "4" / "ema")
    rejected(
        run("drsformer", "derain", "pairs/input/0.png", "x.png", "--checkpoint", straight),
        "checkpoint 4 of .* cannot be read",
    )


def test_steps_that_are_not_finite_are_skipped_up_to_a_limit(run, place):
    result = run(
        *("train", "--config", "config.py", "--workdir", "skipped"),
        *("--optim.learning-rate", "1e30", "--optim.clip-norm", "1e30"),
        *("--optim.nonfinite-steps", 1),
    )
    assert "warning: the loss of step 2 is" in result.stdout
    assert "the step is skipped" in result.stdout
    rejected(result, r"the loss of step 3 is (nan|inf); the batch was .*; expected a finite number")


def test_damaged_lines_of_metrics_are_dropped_and_a_damaged_checkpoint_is_reported(run, copy):
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'5\n{"step": null}\n\xff\xfe{\n{"step": 4, "lo')
    again = ("train", "--config", "config.py", "--workdir", copy.name, "--steps")
    result = run(*again, 5)
    assert result.returncode == 0, result.stderr
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    (copy / "checkpoints" / "5" / "run" / "metadata").write_text("{}")
    rejected(run(*again, 6), "checkpoint 5 of .* has no configuration .*; remove its folder to")


def test_trace_of_some_steps_is_written(run, place):
    program = ("train", "--config", "config.py", "--workdir", "traced", "--profile", "2:3")
    result = run(*program, environment=run.environment)  # No fork: tracers hook into all threads.
    assert result.returncode == 0, result.stderr
    (trace,) = (place / "traced" / "profile").rglob("*.xplane.pb")
    assert b"step_num" in trace.read_bytes(), "steps can be told apart"


def test_run_leaves_a_report_and_a_table_of_its_parameters(trained):
    folder, _ = trained
    page = (folder / "report.html").read_text()
    assert "validation" in page
    assert "0.png" in page
    table = (folder / "parameters.txt").read_text()
    assert "encoder_level1/layers/attn/qkv/kernel" in table
    assert "Total: 45,719" in table


def test_throughput_and_memory_are_recorded(trained):
    lines = (trained[0] / "metrics.jsonl").read_text().splitlines()
    line = next(json.loads(line) for line in lines if '"loss"' in line)
    assert line["flops_per_second"] > 0
    assert line["host_memory_mib"] > 0
    assert 0 <= line["data_wait"] <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mesh.data 3", r"the mesh is data 3, .*; expected a product of 1, the number of dev"),
        ("--profile 3", "--profile is 3; expected FROM:TO"),
        ("--profile 3:2", "--profile is 3:2; expected FROM:TO"),
        ("--profile 0:2", "--profile is 0:2; expected FROM:TO"),
        ("--init-from nowhere", "nowhere does not exist; expected a run"),
        ("--optim.ema-decay 1", r"optim\.ema-decay is 1\.0; expected at least 0 and below 1"),
    ],
)
def test_wrong_flags_give_one_line_and_no_checkpoint(run, place, flags, message):
    result = run("train", "--config", "config.py", "--workdir", "rejected", *flags.split())
    rejected(result, message)
    assert not list((place / "rejected").glob("checkpoints/[0-9]*"))

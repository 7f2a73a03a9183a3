"""train.py, eval.py and drsformer as users run them: real processes on real files."""

import csv
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import rejected

import drsformer_jax
from drsformer_jax import metrics, weights
from drsformer_jax.images.pixels import read_image
from drsformer_jax.training import checkpoint


def test_training_ends_with_what_was_gained(trained):
    _, output = trained
    match = re.search(r"\nrainy (\S+) dB, restored (\S+) dB, gain (\S+) dB, \d+ s\n$", output)
    assert match, output
    rainy, restored, gain = map(float, match.groups())
    assert gain == pytest.approx(restored - rainy, abs=0.011)


def test_logs_hold_no_warning(run, trained, place):
    result = run("drsformer", "derain", "pairs/input/0.png", "quiet.png", "--checkpoint", "run")
    assert "warning" not in (result.stdout + result.stderr + trained[1]).lower()


def test_training_leaves_metrics_and_images(trained):
    folder, _ = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [1, 2, 3, 4]
    assert any("validation/rain200_spa/psnr" in line for line in lines)
    assert list((folder / "tensorboard").iterdir())
    assert read_image(folder / "comparison.png").shape[1] > 3 * 48
    assert read_image(folder / "validation" / "restored" / "0.png").shape == (40, 48, 3)


@pytest.mark.slow
def test_stopped_and_resumed_run_equals_the_straight_one_bit_for_bit(run, trained, place):
    for steps in (2, 4):
        result = run("train", "--config", "config.py", "--workdir", "resumed", "--steps", steps)
        assert result.returncode == 0, result.stderr
    assert "steps 2 to 4" in result.stdout
    straight, resumed = (
        checkpoint.load(folder, 4)[1] for folder in (trained[0], place / "resumed")
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, straight, resumed))
    lines = (place / "resumed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.slow
def test_run_killed_between_checkpoints_ends_like_the_straight_one(run, trained, place):
    arguments = ("--config", "config.py", "--workdir", "killed")
    with run.start("train", *arguments, "--steps", 400) as process:
        for line in process.stdout:
            if line.startswith("step 3/"):
                process.kill()
    assert process.returncode != 0
    assert run("train", *arguments).returncode == 0
    straight, resumed = (checkpoint.load(folder, 4)[1] for folder in (trained[0], place / "killed"))
    assert jax.tree.all(jax.tree.map(np.array_equal, straight, resumed))


def test_damaged_checkpoint_gives_one_line(run, trained, place):
    shutil.copytree(trained[0], place / "damaged")
    for path in (place / "damaged" / "checkpoints").rglob("*"):
        if path.is_file() and "params" in path.parts:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run("drsformer", "derain", "pairs/input", "never", "--checkpoint", "damaged")
    rejected(result, r"checkpoint 4 of .*damaged cannot be read")
    assert not (place / "never").exists()


def test_reading_a_run_leaves_what_is_being_written_there_alone(trained):
    folder, _ = trained
    unfinished = folder / "checkpoints" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    checkpoint.load(folder)
    assert unfinished.is_dir()
    unfinished.rmdir()


def test_scores_are_those_of_the_saved_images(run, trained, place):
    folder, _ = trained
    pairs = place / "pairs"
    where = ["--input", pairs / "input", "--target", pairs / "target"]
    result = run("eval", "--checkpoint", folder, *where, "--save", "saved", "--protocol", "did_ddn")
    assert result.returncode == 0, result.stderr
    assert "did_ddn" in result.stdout.splitlines()[0]
    document = json.loads((folder / "evaluation" / "did_ddn" / "scores.json").read_text())
    assert document["protocol"] == "did_ddn"
    lines = (folder / "evaluation" / "did_ddn" / "scores.csv").read_text().splitlines()
    table = list(csv.DictReader(lines))
    assert [row["image"] for row in table] == ["0.png", "1.png"]
    for row in table:
        restored = read_image(place / "saved" / row["image"])
        target = read_image(pairs / "target" / row["image"])
        psnr = metrics.psnr(restored, target, protocol="did_ddn")
        assert float(row["restored_psnr"]) == pytest.approx(psnr, abs=1e-9)
    mean = np.mean([float(row["restored_psnr"]) for row in table])
    assert document["mean"]["restored_psnr"] == pytest.approx(mean, abs=1e-9)


def test_run_becomes_an_official_file_and_a_model_folder_and_both_restore_alike(
    run, trained, place
):
    folder, _ = trained
    assert run("drsformer", "convert", "--to-torch", folder, "net.pth").returncode == 0
    result = run("drsformer", "convert", "net.pth", "model")
    assert re.search(r"net\.pth is \w+, .*dim 4, .* parameters; written to model\n", result.stdout)
    for checkpoint_, output in ((folder, "a"), ("net.pth", "b"), ("model", "c")):
        arguments = ("pairs/input/0.png", f"{output}.png", "--checkpoint", checkpoint_)
        assert run("drsformer", "derain", *arguments).returncode == 0
    images = [read_image(place / f"{name}.png") for name in "abc"]
    np.testing.assert_array_equal(images[1], images[0])
    np.testing.assert_array_equal(images[2], images[0])
    rejected(run("drsformer", "convert", "net.pth", "model"), "model is there already")
    rejected(run("drsformer", "convert", "net.pth", "x.pth"), r"'\.pth'; expected --to-torch")
    assert run("drsformer", "convert", "net.pth", "half", "--dtype", "float16").returncode == 0
    sizes = [(place / name / "params.safetensors").stat().st_size for name in ("half", "model")]
    assert sizes[0] < 0.6 * sizes[1]
    whole, half = (weights.load(place / name)[1] for name in ("model", "half"))
    for leaf, stored in zip(jax.tree.leaves(whole), jax.tree.leaves(half), strict=True):
        assert stored.dtype == leaf.dtype
        np.testing.assert_array_equal(stored, np.float16(leaf).astype(leaf.dtype))


def test_compiled_programs_are_kept_in_the_users_cache_folder(run, trained, place):
    home = {"HOME": str(place / "home"), "XDG_CACHE_HOME": str(place / "home" / "cache")}
    arguments = ("--checkpoint", trained[0], "pairs/input/0.png")
    environment = {**run.environment, **home}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        environment.pop(name, None)
    for start, output in ((run, "first.png"), (run.forked, "second.png")):
        result = start("drsformer", "derain", *arguments, output, environment=environment)
        assert result.returncode == 0, result.stderr
        kept = list((place / "home" / "cache" / "drsformer_jax").glob("jit_restore_batch-*-cache"))
        assert len(kept) == 1


def test_another_architecture_is_rejected_by_naming_what_differs(run, trained):
    result = run(
        "train", "--config", "config.py", "--workdir", trained[0], "--model.feed-forward", "gdfn"
    )
    rejected(result, r"another architecture: feed_forward fn \(here gdfn\)")


def test_loss_that_is_not_finite_stops_the_run_with_step_and_files(run, place):
    result = run(
        *("train", "--config", "config.py", "--workdir", "diverged"),
        *("--optim.learning-rate", "1e30", "--optim.clip-norm", "1e30"),
    )
    rejected(result, r"the loss of step 2 is (nan|inf); the batch was [01]\.png.*; expected")
    assert not list((place / "diverged" / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --config configs/quickstart.py", r"configs/quickstart\.py is no file; expected"),
        ("train --workdir=https://a.b/x", r"--workdir is https://a\.b/x; expected a path on this"),
        ("train --data.train s3://bucket/x", r"--data\.train is s3://bucket/x; expected a path"),
        ("train --data.sources s3://bucket/x 1", r"--data\.sources is s3://bucket/x; expected"),
        ("train --config gs://bucket/x.py", r"--config is gs://bucket/x\.py; expected a path"),
        ("train --config bucket.py", r"train\.data\.sources is gs://bucket/x; expected a path"),
        ("train --workdir=", "argument 1 is empty"),
        ("train --data.train ''", "argument 2 is empty"),
        (
            "train --config config.py --model.remat True",
            r"error: --model\.remat is given True; expected --model\.remat alone, or --model\.no-r",
        ),
        (
            "train --config config.py --optim.lr=1 --model.unroll=false",
            "--optim.lr",
        ),
        (
            "train --config config.py --model.unroll=false",
            r"unroll is given false; expected --model\.unroll alone, or --model\.no-unroll",
        ),
        (
            "eval --checkpoint https://a.b/net.pth --data x",
            r"--checkpoint is https://a\.b/net\.pth; expected a path on this machine",
        ),
        ("drsformer convert run gs://b/out", r"^error: output is gs://b/out; expected a path"),
        ("drsformer derain gs://b/in out", r"^error: paths is gs://b/in; expected a path"),
        (
            "drsformer build-data rain100l --manual-dir=gs://b/x",
            r"--manual-dir is gs://b/x; expected a path",
        ),
        (
            "drsformer derain pairs/input out --checkpoint=~/none.pth",
            r"error: /home/of/me/none\.pth does not exist",
        ),
        ("train --config none.py", r"none\.py is no file; expected"),
        ("train --config pairs/input/0.png", r"0\.png is no Python file"),
        ("train --config config.py --steps 0", "steps is 0; expected at least 1"),
        ("train --config config.py --optim.lr 1", "--optim.lr"),
        ("train --config config.py --steps many", "--steps.*many"),
        ("train --config config.py --model.attention none", "topk.*dense"),
        (
            "train --config config.py --data.train nowhere --workdir unmade",
            "nowhere is no folder and no dataset in",
        ),
        ("eval --checkpoint pairs --input a --target b", "a is no folder|a "),
        ("drsformer derain pairs/input out --checkpoint pairs", "config.json"),
        ("drsformer derain none.png out --checkpoint run", r"none\.png is missing"),
        ("drsformer derain config.py out.png --checkpoint run", "is no image"),
        ("drsformer derain pairs/input config.py --checkpoint run", "is a file"),
        ("drsformer derain pairs --checkpoint run", "1 paths are given"),
        ("drsformer derain '' out --checkpoint run", "argument 2 is empty"),
        (
            "drsformer derain pairs out --checkpoint run --tile abc",
            r"error: --tile is 'abc'; expected INT\|\{auto\} \(drsformer",
        ),
        (
            "drsformer derain pairs/input/0.png config.py/a.png --checkpoint run",
            r"config\.py is no folder; expected one for a\.png",
        ),
        (
            "drsformer derain pairs out --checkpoint run --quality 0",
            "--quality is 0; expected 1 to 100",
        ),
        (
            "drsformer derain pairs out --checkpoint run --crf 9",
            "--crf is given; expected none for images",
        ),
        (
            "drsformer derain pairs out --checkpoint run --tile 30",
            "the tile is 30; expected a multiple of 8",
        ),
        (
            "drsformer derain pairs/input out --checkpoint run --step 3",
            r"checkpoints of steps \[2, 4\]; expected 3",
        ),
    ],
)
def test_wrong_input_gives_one_line(run, trained, place, command, message):
    (place / "bucket.py").write_text(
        "from drsformer_jax.config import DataConfig, TrainConfig\n"
        "def get_config():\n"
        "    return TrainConfig(data=DataConfig(sources=(('gs://bucket/x', 1.0),)))\n"
    )
    environment = {**run.environment, "HOME": "/home/of/me"}
    rejected(run.forked(*shlex.split(command), environment=environment), message)
    assert not (place / "unmade").exists()
    assert not (place / "out").exists()


@pytest.mark.parametrize("program", ["drsformer", "train", "eval"])
def test_programs_say_their_version_and_help_from_any_folder(run, tmp_path, program):
    with run.start(program, "--version", cwd=tmp_path) as process:
        output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert drsformer_jax.__version__ in output
    helped = run(program, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: " in helped.stdout


def test_flags_of_train_have_their_help_in_a_process_of_its_own(run, tmp_path):
    with run.start("train", "--help", cwd=tmp_path) as process:
        output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert "Folder of the run" in output


def test_empty_value_is_accepted_where_it_means_none_and_home_is_expanded(monkeypatch, place):
    monkeypatch.setenv("HOME", "/home/of/me")
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    parse_command = importlib.import_module("train").parse_command
    flags = f"--config {place / 'config.py'} --workdir=~/runs/x --data.cache_dir= --data.data-dir"
    command = parse_command([*flags.split(), "", "--data.train", "~/pairs", "--init-from="])
    assert command.workdir == Path("/home/of/me/runs/x")
    assert command.train.data.train == "/home/of/me/pairs"
    data = command.train.data
    assert (data.cache_dir, data.data_dir, command.train.init_from) == ("", "", "")


def test_scores_of_one_checkpoint_go_to_its_run(run, trained, place):
    checkpoint = trained[0] / "checkpoints" / "2"
    result = run("eval", "--checkpoint", checkpoint, "--data", "pairs", "--protocol", "did_ddn")
    assert result.returncode == 0, result.stderr
    assert f"scores are in {trained[0] / 'evaluation' / 'did_ddn'}" in result.stdout
    assert not (checkpoint / "evaluation").exists()

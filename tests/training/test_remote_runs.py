"""Runs in a bucket: real programs, each of which could be on another machine."""

import json
import re
import signal

import numpy as np
import pytest
from bucket_server import environment, objects, served
from programs import rejected

from drsformer_jax.images.pixels import read_image

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")
pytestmark = pytest.mark.slow
TRAIN = ("train", "--config", "config.py", "--steps", 6, "--eval-every", 3, "--checkpoint-every", 1)


@pytest.fixture(scope="module")
def cloud(run):
    """Runs a program that sees the bucket; `files` has the bucket's content."""

    class Cloud:
        def __call__(self, *command, **options):
            return run(*command, environment=self.environment, **options)

    with served() as port:
        found = Cloud()
        found.environment = run.environment | environment(port)
        found.files = lambda: objects(port)
        yield found


@pytest.fixture(scope="module")
def killed(cloud, run):
    """Address of a run that was killed at step 4 and resumed."""
    where = "gs://runs/killed"
    with run.start(*TRAIN, "--workdir", where, environment=cloud.environment) as process:
        for line in process.stdout:
            if line.startswith("step 4/6"):
                break
        else:
            raise AssertionError(process.stderr.read())
        process.send_signal(signal.SIGKILL)
        process.communicate()
    result = cloud(*TRAIN, "--workdir", where)
    assert result.returncode == 0, result.stderr
    assert re.search(r"gs://runs/killed is locked by .*; waiting", result.stderr)
    assert re.search(r"^steps [234] to 6 in gs://runs/killed;", result.stdout, re.MULTILINE)
    return where


def test_a_run_in_a_bucket_that_was_killed_ends_like_a_local_one_that_was_not(
    cloud, run, killed, place
):
    assert run(*TRAIN, "--workdir", "straight-local").returncode == 0
    files = {
        name.removeprefix("killed/"): content
        for name, content in cloud.files().items()
        if name.startswith("killed/")
    }
    local = place / "straight-local"

    def losses(text):
        lines = map(json.loads, text.splitlines())
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    metrics = (local / "metrics.jsonl").read_text()
    assert losses(files["metrics.jsonl"].decode()) == losses(metrics)
    scores = (local / "validation.json").read_text()
    assert json.loads(files["validation.json"]) == json.loads(scores)
    for path in local.rglob("*"):
        name = path.relative_to(local).as_posix()
        others = (".lock", "checkpoints", "tensorboard")
        assert not path.is_file() or name.startswith(others) or name in files
    assert any(name.startswith("tensorboard/") for name in files)
    assert ".lock" not in files


def test_a_run_in_a_bucket_is_evaluated_converted_and_restores(cloud, killed, run, place):
    result = cloud("eval", "--checkpoint", killed, "--data", "pairs", "--output", "cloud.csv")
    assert result.returncode == 0, result.stderr
    assert "mean of 2" in result.stdout
    result = cloud("drsformer", "convert", killed, "from-bucket")
    assert result.returncode == 0, result.stderr
    derain = ("drsformer", "derain", "pairs/input/0.png")
    for checkpoint, target in ((killed, "remote.png"), ("from-bucket", "local.png")):
        result = cloud(*derain, target, "--checkpoint", checkpoint)
        assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(read_image(place / "remote.png"), read_image(place / "local.png"))
    result = cloud(*derain, "last.png", "--checkpoint", f"{killed}/checkpoints/6")
    assert result.returncode == 0, result.stderr


def test_a_second_program_is_kept_out_of_a_run_in_a_bucket(cloud, run, place):
    where = "gs://runs/shared"
    with run.start(
        *TRAIN, "--steps", 100000, "--workdir", where, environment=cloud.environment
    ) as process:
        for line in process.stdout:
            if line.startswith("step 1/"):
                break
        rejected(cloud(*TRAIN, "--workdir", where), "is being trained by another process")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 0
        process.communicate()
    assert "shared/.lock" not in cloud.files()


def test_what_is_wrong_with_a_bucket_is_one_line(cloud):
    rejected(cloud(*TRAIN, "--workdir", "gs://no-such-bucket/run"), "no-such-bucket.* cannot be ")
    rejected(
        cloud(
            "drsformer", "derain", "pairs/input/0.png", "x.png", "--checkpoint", "gs://runs/none"
        ),
        r"gs://runs/none has no config\.json; expected one",
    )
    rejected(
        cloud("drsformer", "derain", "gs://runs/none/a.png", "x.png"),
        r"gs://runs/none/a\.png; expected a path on this machine",
    )

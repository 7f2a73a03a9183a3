"""The progress line of a run, and how it keeps its metrics."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from drsformer_jax.training import processes, reporting
from drsformer_jax.training.profiling import Profile
from drsformer_jax.training.reporting import MetricsWriter, Progress, describe, read_metrics

VALUES = {"loss": 0.25, "learning_rate": 3e-4}


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    monkeypatch.setattr(reporting, "memory_mib", lambda: {"host_memory_mib": 7.0})
    return clock


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> list[Event]:
    """The events of all files of a folder, in order, read by the format's description."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def shown(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]


def test_throughput_is_counted_since_the_last_line(clock):
    with Progress(10, 20, peak_flops=1000.0) as progress:
        progress.update(8, 600.0, 0.5)
        clock.now += 1
        progress.update(8, 600.0, 0.75, ["a.png is no image"])
        clock.now += 1
        values = progress.log(12, VALUES)
        assert values == {
            **VALUES,
            "images_per_second": 8.0,
            "flops_per_second": 600.0,
            "mfu": 0.6,
            "data_wait": 0.625,
            "host_memory_mib": 7.0,
            "skipped_pairs": 1,
        }
        progress.update(2, 100.0, 0.0)
        clock.now += 4
        values = progress.log(13, VALUES)
    assert [values[name] for name in ("images_per_second", "flops_per_second")] == [0.5, 25.0]
    assert (values["data_wait"], values["skipped_pairs"]) == (0, 1)


def test_mfu_of_an_unknown_peak_is_left_out(clock):
    with Progress(0, 2) as progress:
        progress.update(1, 1.0, 0.0)
        clock.now += 1
        assert "mfu" not in progress.log(1, VALUES)


def test_evaluations_do_not_count_in_throughput(clock, capsys):
    with Progress(0, 600) as progress:
        progress.update(4, 10.0, 0.25)
        clock.now += 1000  # A validation.
        progress.resume()
        for _ in range(2):
            progress.update(4, 10.0, 0.25)
            clock.now += 2
        values = progress.log(3, VALUES)
    assert (values["images_per_second"], values["data_wait"]) == (2, 0.125)
    # 597 steps of 2 seconds.
    assert capsys.readouterr().out.endswith(", 20 min left\n")


@pytest.mark.parametrize(
    ("peak", "wait", "expected"),
    [
        (None, 0.2, "8.0 images/s"),
        (1600.0, 0.2, "8.0 images/s, MFU 12.5%"),
        (None, 0.5, "8.0 images/s, data wait 25%"),
        (1600.0, 0.5, "8.0 images/s, MFU 12.5%, data wait 25%"),
    ],
)
def test_line_shows_mfu_if_known_and_a_long_data_wait(clock, capsys, peak, wait, expected):
    with Progress(0, 61, peak) as progress:
        progress.update(16, 400.0, wait)
        clock.now += 2
        progress.log(1, VALUES)
    assert capsys.readouterr().out == (
        f"step 1/61: loss 0.2500, learning rate 3.00e-04, {expected}, 2 min left\n"
    )


def test_terminal_shows_the_same_in_a_bar(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(0, 10) as progress:
        progress.update(16, 400.0, 0.0)
        clock.now += 2
        progress.log(1, VALUES)
    assert "loss 0.2500, learning rate 3.00e-04, 8.0 images/s]" in terminal.getvalue()


def test_a_skipped_pair_is_named_once_and_counted_always(clock, capsys):
    with Progress(0, 3) as progress:
        progress.update(1, 1.0, 0.0, ["b\n.png", "a.png"])
        progress.update(1, 1.0, 0.0, ["a.png"])
        clock.now += 1
        assert progress.log(2, VALUES)["skipped_pairs"] == 3
    assert capsys.readouterr().out.startswith("skipped: a.png\nskipped: b\\n.png\nstep 2/3")


def test_all_processes_are_counted_and_the_longest_wait(clock, monkeypatch):
    """Of three, in the order of their numbers."""
    monkeypatch.setattr(
        processes, "in_order", lambda own, total: np.array([[0.1, 2.0], *own, [0.75, 0.0]])
    )
    with Progress(0, 3) as progress:
        progress.update(1, 1.0, 0.5, ["a.png"])
        clock.now += 1
        values = progress.log(1, VALUES)
    assert (values["data_wait"], values["skipped_pairs"]) == (0.75, 3)


def test_one_process_of_a_run_writes_the_trace(tmp_path):
    profile = Profile("1:2", enabled=False)
    with profile:
        profile.before(1, tmp_path)
        profile.after(2, None)
    assert list(tmp_path.iterdir()) == []


def test_other_processes_show_what_they_skip_alone_and_write_nothing(
    clock, capfd, monkeypatch, tmp_path
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with (
        Progress(0, 2, enabled=False) as progress,
        MetricsWriter(tmp_path, 0, enabled=False) as writer,
    ):
        progress.update(4, 8.0, 0.0, ["a.png is no image"])
        clock.now += 2
        values = progress.log(1, VALUES)
        writer.scalars(1, values)
        writer.image(1, "validation", np.zeros((8, 8, 3), np.uint8))
    assert values["images_per_second"] == 2
    assert values["skipped_pairs"] == 1
    assert capfd.readouterr() == ("skipped: a.png is no image\n", "")
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_a_line_each_and_in_tensorboard_at_once(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"loss": 0.5, "skipped_pairs": 0})
        assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "skipped_pairs": 0}]
        assert shown(tmp_path) == [(1, "loss", 0.5), (1, "skipped_pairs", 0.0)]


def test_tensorboard_does_without_numbers_that_are_not_finite(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG), MetricsWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"psnr": float("inf"), "ssim": 1.0, "loss": float("nan")})
    assert caplog.records == []
    assert lines(tmp_path) == [{"step": 1, "psnr": None, "ssim": 1.0, "loss": None}]
    assert shown(tmp_path) == [(1, "ssim", 1.0)]


def test_image_in_tensorboard_is_the_one_given(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with MetricsWriter(tmp_path, 0) as writer:
        writer.image(3, "validation", image)
    (value,) = events(tmp_path)[-1].summary.value
    assert value.tag == "validation"
    content = io.BytesIO(value.image.encoded_image_string)
    np.testing.assert_array_equal(Image.open(content), image)


def test_continued_run_replaces_what_came_after_its_start(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # A kill.
    with MetricsWriter(tmp_path, 2) as writer:
        writer.scalars(3, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 1), (3, 2)]
    marks = [
        event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START
    ]
    assert marks == [1, 3]


def test_full_disk_names_the_metrics(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
        with full_disk(30), pytest.raises(OSError, match="too large") as caught:
            writer.scalars(2, {"loss": 1.0})
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n{"ste'
    with MetricsWriter(tmp_path, 1):
        assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_run_goes_on_without_tensorboard_on_a_full_disk(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with MetricsWriter(tmp_path, 0) as writer:
        with (
            full_disk(2000),
            pytest.warns(UserWarning, match=r"^no more is written for TensorBoard \(File too"),
        ):
            writer.image(1, "validation", image)
        # Once: a second warning would be an error here.
        for step in range(2, 30):
            writer.image(step, "validation", image)
            writer.scalars(step, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == list(range(2, 30))


def test_a_writer_starts_no_thread(tmp_path):
    before = threading.active_count()
    with MetricsWriter(tmp_path, 0) as writer:
        writer.scalars(1, {"loss": 1.0})
        assert threading.active_count() == before


def test_metrics_of_older_runs_have_todays_names(tmp_path):
    line = {"step": 1, "pictures_per_second": 8.0, "input_wait": 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    now = {"step": 1, "images_per_second": 8.0, "data_wait": 0.25}
    assert read_metrics(tmp_path / "metrics.jsonl") == [now]


def test_metrics_are_read_without_the_half_line_of_a_killed_run(tmp_path):
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 3, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == lines
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_programs_and_tensorboard_files_need_no_pytorch_even_where_it_is_installed(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    program = (
        "import sys, pathlib, train, eval\n"
        "from drsformer_jax import cli\n"
        "for command in cli.COMMANDS: cli.load(command)\n"
        "from drsformer_jax.training.reporting import MetricsWriter\n"
        "with MetricsWriter(pathlib.Path(sys.argv[1]), 0) as writer: writer.scalars(1, {'a': 2})\n"
        "assert 'torch' not in sys.modules"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    ended = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_batch_is_described_by_its_names_in_one_line():
    assert describe(["a.png", "b.png", "a.png"]) == "a.png (2 crops), b.png"

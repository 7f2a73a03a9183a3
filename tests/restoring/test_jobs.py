"""Images are found in files, folders and patterns; each result has its place, and none is lost."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from drsformer_jax.errors import InputError
from drsformer_jax.images.formats import FORMATS
from drsformer_jax.images.pixels import write_image
from drsformer_jax.restoring import jobs
from drsformer_jax.restoring.command import Derain
from drsformer_jax.restoring.jobs import Job, ignores_case, plan_jobs


def images(folder: Path, *names: str) -> Path:
    for name in names:
        write_image(folder / name, np.zeros((4, 6, 3), np.uint8))
    return folder


def jobs_of(*inputs: Path, output: Path, **options: Any) -> list[Job]:
    """The jobs of inputs that hold nothing but images."""
    jobs, left_out = plan_jobs(inputs, output, **options)
    assert left_out == []
    return jobs


def targets(jobs: list[Job], folder: Path) -> dict[str, str]:
    return {job.source.name: job.target.relative_to(folder).as_posix() for job in jobs}


def test_subfolders_are_kept_and_hidden_ones_left_out(tmp_path):
    images(tmp_path / "in", "10.png", "2.jpg", "deep/er/3.bmp", ".hidden/4.png", "deep/.5.png")
    jobs = jobs_of(tmp_path / "in", output=tmp_path / "out")
    assert [job.source.name for job in jobs] == ["2.jpg", "10.png", "3.bmp"]
    assert targets(jobs, tmp_path / "out") == {
        "10.png": "10.png",
        "2.jpg": "2.jpg",
        "3.bmp": "deep/er/3.bmp",
    }


def test_pattern_keeps_what_stands_below_its_plain_part(tmp_path):
    images(tmp_path / "in", "a/1.png", "a/b/2.png", "a/b/3.jpg", "c/4.png")
    jobs = jobs_of(tmp_path / "in" / "a" / "**" / "*.png", output=tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == {"1.png": "1.png", "2.png": "b/2.png"}


def test_pattern_tells_what_it_leaves_out(tmp_path):
    images(tmp_path, "1.png", "trip/2.png", ".hidden.png")
    (tmp_path / "Thumbs.db").touch()
    jobs, left_out = plan_jobs([tmp_path / "*"], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["1.png"]
    assert left_out == [tmp_path / "Thumbs.db", tmp_path / "trip"]
    jobs, left_out = plan_jobs([tmp_path / "**" / "*"], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["1.png", "2.png"]
    assert left_out == [tmp_path / "Thumbs.db"], "the folder's images are taken"


def test_folder_tells_what_it_leaves_out(tmp_path):
    images(tmp_path / "in", "1.png", "deep/2.png")
    for name in ("a.txt", "deep/b.heic", "deep/.c.heic"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "loop").symlink_to("..")
    (tmp_path / "in" / "self.png").symlink_to("self.png")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "out")
    (tmp_path / "out").mkdir()
    jobs, left_out = plan_jobs([tmp_path / "in"], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["1.png", "2.png"]
    assert [path.name for path in left_out] == ["a.txt", "b.heic", "loop", "self.png"]


@pytest.mark.parametrize(
    ("name", "target"),
    [("1.jfif", "1.jfif"), ("1.jpe", "1.jpe"), ("1.JIF", "1.JIF"), ("1.gif", "1.png")],
)
def test_images_of_rare_names_keep_them_if_the_format_can_be_written(tmp_path, name, target):
    images(tmp_path, "1.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "1.jpg").rename(tmp_path / "in" / name)
    jobs = jobs_of(tmp_path / "in", output=tmp_path / "out", compare=tmp_path / "both")
    assert jobs == [
        Job(tmp_path / "in" / name, tmp_path / "out" / target, tmp_path / "both" / target)
    ]
    (job,) = jobs_of(tmp_path / "in", output=tmp_path / "out", extension=".png")
    assert job.target.name == "1.png"


def test_pattern_does_not_follow_links_to_folders(tmp_path):
    images(tmp_path, "a/1.png")
    (tmp_path / "a" / "loop").symlink_to("..")
    jobs = jobs_of(tmp_path / "**" / "*.png", output=tmp_path / "out")
    assert [job.source.name for job in jobs] == ["1.png"]


def test_pattern_tells_of_links_to_folders_that_it_leaves_out(tmp_path):
    images(tmp_path, "a/1.png")
    (tmp_path / "link").symlink_to("a")
    jobs, left_out = plan_jobs([tmp_path / "*" / "*.png"], tmp_path / "out")
    assert [job.source for job in jobs] == [tmp_path / "a" / "1.png"]
    assert left_out == [tmp_path / "link"]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 takes it as *.png")
def test_pattern_that_pathlib_rejects_is_reported_in_one_line(tmp_path):
    images(tmp_path, "1.png")
    with pytest.raises(
        InputError, match=r"\*\*\.png is no pattern \(.*\); expected one such as 'ph"
    ):
        plan_jobs([tmp_path / "**.png"], tmp_path / "out")


@pytest.mark.parametrize("pattern", ["in", "in/*.png"])
def test_folder_or_pattern_may_be_restored_into_the_folder_above(tmp_path, pattern):
    images(tmp_path, "in/1.png", "in/2.png")
    jobs = jobs_of(tmp_path / pattern, output=tmp_path)
    assert targets(jobs, tmp_path) == {"1.png": "1.png", "2.png": "2.png"}


def test_several_inputs_go_into_one_folder(tmp_path):
    images(tmp_path, "a/1.png", "b/2.png", "3.png")
    inputs = [tmp_path / "a", tmp_path / "b" / "2.png", tmp_path / "3.png"]
    jobs = jobs_of(*inputs, output=tmp_path / "out", extension=".jpg", compare=tmp_path / "both")
    assert targets(jobs, tmp_path / "out") == {"1.png": "1.jpg", "2.png": "2.jpg", "3.png": "3.jpg"}
    assert jobs[0].comparison == tmp_path / "both" / "1.jpg"


def test_one_image_goes_to_a_file_or_into_a_folder(tmp_path):
    source = images(tmp_path, "1.png") / "1.png"
    (tmp_path / "folder.png").mkdir()
    for output, place in (
        ("x.jpg", "x.jpg"),
        ("new", "new/1.png"),
        ("folder.png", "folder.png/1.png"),
    ):
        assert jobs_of(source, output=tmp_path / output)[0].target == tmp_path / place


def test_results_inside_the_input_are_no_input_of_the_next_run(tmp_path):
    images(tmp_path, "1.png", "out/1.png", "out/2.png")
    assert targets(jobs_of(tmp_path, output=tmp_path / "out"), tmp_path / "out") == {
        "1.png": "1.png"
    }
    jobs = jobs_of(tmp_path / "**" / "*.png", output=tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == {"1.png": "1.png"}


@pytest.mark.parametrize(
    ("output", "extension"),
    [("x.PNG", ".png"), ("x.jpeg", ".jpg"), ("x.JPG", ".jpg"), ("x.tiff", ".tif"), ("x.png", None)],
)
def test_format_of_a_file_may_be_spelled_in_any_way(tmp_path, output, extension):
    source = images(tmp_path, "1.png") / "1.png"
    (job,) = jobs_of(source, output=tmp_path / output, extension=extension)
    assert job.target == tmp_path / output


def test_name_of_a_folder_may_hold_a_dot(tmp_path):
    source = images(tmp_path, "1.png") / "1.png"
    output = tmp_path / "results_v1.0"
    with pytest.raises(InputError, match=r"'\.0'; expected one of .*, or a slash behind the name"):
        plan_jobs([source], output)
    assert jobs_of(source, output=output, is_folder=True)[0].target == output / "1.png"
    assert jobs_of(source, source, output=output)[0].target == output / "1.png"
    output.mkdir()
    assert jobs_of(source, output=output)[0].target == output / "1.png"
    with pytest.raises(InputError, match=r"1\.png is a file; expected a folder for 1 images"):
        plan_jobs([images(tmp_path, "2.png") / "2.png"], source, is_folder=True)


def test_comparisons_inside_the_input_are_no_input_of_the_next_run(tmp_path):
    images(tmp_path, "1.png", "cmp/1.png", "cmp/deep/2.png")
    (tmp_path / "cmp" / "notes.txt").touch()
    (job,) = jobs_of(tmp_path, output=tmp_path / "out", compare=tmp_path / "cmp")
    assert (job.source, job.comparison) == (tmp_path / "1.png", tmp_path / "cmp" / "1.png")


def test_an_image_that_is_named_twice_is_restored_once(tmp_path):
    images(tmp_path, "in/1.png", "in/2.png")
    inputs = [tmp_path / "in", tmp_path / "in" / "1.png", tmp_path / "in" / "*.png"]
    assert len(jobs_of(*inputs, output=tmp_path / "out")) == 2


def test_names_of_any_length_are_planned(tmp_path):
    """A file system says what it cannot hold when it is written, and of that file alone."""
    name = f"{250 * 'a'}.bmp"
    (job,) = jobs_of(images(tmp_path, name), output=tmp_path / "out", extension=".webp")
    assert job.target.name == f"{250 * 'a'}.webp"


@pytest.mark.parametrize(
    ("inputs", "output", "flags", "message"),
    [
        (
            ["none.png"],
            "out",
            {},
            r"none\.png is missing or no image; expected images",
        ),
        (["x/*.gif"], "out", {}, r"x/\*\.gif is missing"),
        (["x"], "x", {}, r"1\.png is an input itself; expected another place"),
        (["x"], "1.txt", {}, r"1\.txt is a file; expected a folder for 2 images"),
        (["x/1.png"], "out.gif", {}, r"out\.gif has the extension '\.gif'; expected one of"),
        (["x", "y"], "out", {}, r"x/1\.png and .*y/1\.png would both be written to .*out/1\.png"),
        (["z"], "out", {"extension": ".png"}, r"a\.jpg and .*a\.png would both be written to"),
        (["empty"], "out", {}, "empty holds no image"),
        (["x"], "out", {"compare": "x"}, r"x/1\.png is an input itself; expected another place"),
        (["x"], "out", {"compare": "out"}, r"out/1\.png is result and comparison; expected ano"),
        (["d/x/1.png", "d/x"], "d/x/new/..", {}, r"1\.png is an input itself"),
        (["p", "q/sub/2.png"], "q", {}, r"q/sub/2\.png is an input itself"),
        (["x/1.png"], "o.jpg", {"extension": ".png"}, r"o\.jpg ends in '\.jpg'; expected \.png as"),
    ],
)
def test_impossible_places_are_reported_in_one_line(tmp_path, inputs, output, flags, message):
    images(tmp_path, "x/1.png", "x/2.png", "y/1.png", "z/a.png", "z/a.jpg", "d/x/1.png")
    images(tmp_path, "p/sub/2.png", "q/sub/2.png")
    flags = {name: tmp_path / flag if name == "compare" else flag for name, flag in flags.items()}
    (tmp_path / "1.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as error:
        plan_jobs([tmp_path / each for each in inputs], tmp_path / output, **flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "output", "flags", "message"),
    [
        (["Photos"], "photos", {}, r"photos/a\.png is an input itself"),
        (["Photos/a.png"], "photos/A.PNG", {}, r"A\.PNG is an input itself"),
        (["two"], "out", {"extension": ".png"}, r"IMG\.jpg and .*img\.png would both be written"),
        (["two"], "out", {"compare": "OUT"}, r"out/IMG\.jpg is result and comparison"),
    ],
)
def test_names_that_differ_in_case_are_one_file_where_the_disk_says_so(
    tmp_path, monkeypatch, inputs, output, flags, message
):
    images(tmp_path, "Photos/a.png", "two/IMG.jpg", "two/img.png")
    flags = {name: tmp_path / flag if name == "compare" else flag for name, flag in flags.items()}
    arguments = [tmp_path / each for each in inputs], tmp_path / output
    assert plan_jobs(*arguments, **flags)
    monkeypatch.setattr(jobs, "ignores_case", lambda folder: True)
    with pytest.raises(InputError, match=message):
        plan_jobs(*arguments, **flags)


def test_earlier_results_are_known_by_any_case_where_the_disk_says_so(tmp_path, monkeypatch):
    images(tmp_path, "Photos/a.png", "Photos/Out/a.png")
    monkeypatch.setattr(jobs, "ignores_case", lambda folder: True)
    found, _ = plan_jobs([tmp_path / "Photos"], tmp_path / "photos" / "out")
    assert [job.source for job in found] == [tmp_path / "Photos" / "a.png"]


def test_a_folder_is_asked_whether_it_ignores_case(tmp_path, monkeypatch):
    images(tmp_path, "in/\u00df.png", "in/1/a.png")
    (tmp_path / "in" / "b").symlink_to("nowhere")
    monkeypatch.setattr(
        os.path, "samefile", lambda *paths: len({*map(str.lower, map(str, paths))}) == 1
    )
    assert ignores_case(tmp_path / "in")
    assert ignores_case(tmp_path / "in" / "new" / "deeper")
    monkeypatch.undo()
    if sys.platform == "linux":
        assert not ignores_case(tmp_path / "in")
        assert not ignores_case(tmp_path / "in" / "new" / "deeper")


def test_every_format_that_can_be_written_can_be_asked_for():
    written = {format.extensions[0] for format in FORMATS if format.options is not None}
    (choices, _) = get_args(get_type_hints(Derain)["format"])
    assert {f".{name}" for name in get_args(choices)} == written

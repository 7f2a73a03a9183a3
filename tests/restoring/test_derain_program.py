"""drsformer derain as users run it: real processes on real files."""

import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from programs import rejected

import drsformer_jax
from drsformer_jax.data.folders import find_images
from drsformer_jax.images.pixels import read_image, write_image


def test_derain_restores_a_folder_of_any_sizes_and_reports_a_bad_file(run, trained, place):
    folder, _ = trained
    source = place / "rainy"
    image = read_image(place / "pairs" / "input" / "0.png")
    write_image(source / "whole.png", image)
    write_image(source / "odd.jpg", image[:37, :45])
    write_image(source / "one.bmp", image[:1, :1])
    (source / "bad.png").write_text("no image")
    result = run("drsformer", "derain", source, "clear", "--checkpoint", folder)
    assert "restored 3 of 4 images" in result.stdout
    assert re.search(r"error: .*bad\.png is no image", result.stderr)
    rejected(result, "1 of 4 images failed")
    assert sorted(path.name for path in (place / "clear").iterdir()) == [
        "odd.jpg",
        "one.bmp",
        "whole.png",
    ]
    assert read_image(place / "clear" / "odd.jpg").shape == (37, 45, 3)
    assert read_image(place / "clear" / "one.bmp").shape == (1, 1, 3)
    in_training = read_image(folder / "validation" / "restored" / "0.png")
    np.testing.assert_array_equal(read_image(place / "clear" / "whole.png"), in_training)


def test_processes_share_a_folder_and_each_looks_at_its_own_results(run, trained, place):
    image = read_image(place / "pairs" / "input" / "0.png")
    for index in range(5):
        write_image(place / "shared" / f"{index}.png", image)
    arguments = ("derain", "shared", "shares", "--checkpoint", trained[0], "--num-processes", 3)
    running = [run.start("drsformer", *arguments, "--process-id", index) for index in (0, 1)]
    for index, process in enumerate(running):
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert f"process {index} of 3: 2 of 5 images\n" in output
        assert "restored 2 of 2 images into shares" in output
    names = sorted(path.name for path in (place / "shares").iterdir())
    assert names == ["0.png", "1.png", "3.png", "4.png"]
    result = run("drsformer", *arguments, "--process-id", 2)
    assert "restored 1 of 1 images" in result.stdout, result.stderr
    result = run("drsformer", *arguments, "--process-id", 2)
    rejected(result, "shares/2.png is there already .1 of 1 results are.")
    rejected(run("drsformer", *arguments, "--process-id", 3), "--process-id is 3; expected 0 to 2")
    one = ("drsformer", "derain", "shared/0.png", "alone.png", "--num-processes", 2)
    result = run(*one, "--process-id", 1)
    assert (result.returncode, result.stdout) == (0, "process 1 of 2: 0 of 1 images\n")


def test_derain_restores_one_file(run, trained, place):
    source = place / "pairs" / "input" / "1.png"
    result = run("drsformer", "derain", source, "one.png", "--checkpoint", trained[0])
    assert result.returncode == 0, result.stderr
    assert read_image(place / "one.png").shape == read_image(source).shape


def test_derain_without_a_checkpoint_restores_with_the_built_in_network(run, place):
    rainy = read_image(place / "pairs" / "input" / "0.png")[:16, :16]
    write_image(place / "small.png", rainy)
    result = run("drsformer", "derain", "small.png", "built-in.png")
    assert result.returncode == 0, result.stderr
    line, _ = result.stdout.splitlines()
    assert line == "using the built-in network; --checkpoint selects another"
    difference = read_image(place / "built-in.png").astype(int) - drsformer_jax.load()(rainy)
    assert abs(difference).max() <= 1  # Of programs that are optimized less here.


def test_results_are_neither_overwritten_nor_made_again_unasked(run, trained, place):
    arguments = ("drsformer", "derain", "pairs/input", "once", "--checkpoint", trained[0])
    assert run(*arguments).returncode == 0
    (place / "once" / "1.png").unlink()
    rejected(run(*arguments), r"0\.png is there already \(1 of 2 results are\); expected")
    kept = (place / "once" / "0.png").stat().st_mtime_ns
    result = run(*arguments, "--resume")
    assert "restored 1 of 2 images" in result.stdout
    assert (place / "once" / "0.png").stat().st_mtime_ns == kept
    result = run(*arguments, "--overwrite")
    assert "restored 2 of 2 images" in result.stdout
    assert (place / "once" / "0.png").stat().st_mtime_ns > kept


def test_comparisons_inside_the_input_are_made_once_and_never_overwritten_unasked(
    run, trained, place
):
    shutil.copytree(place / "pairs" / "input", place / "album")
    (place / "album" / "a.svg").touch()
    own = place / "album" / "cmp" / "1.png"
    write_image(own, np.zeros((4, 4, 3), np.uint8))
    before = own.read_bytes()
    arguments = ("drsformer", "derain", "album", "album-out", "--compare", "album/cmp")
    arguments += ("--checkpoint", trained[0])
    rejected(run(*arguments), r"cmp/1\.png is there already \(1 of 4 results are\); expected")
    assert own.read_bytes() == before
    assert not (place / "album-out").exists()
    result = run(*arguments, "--resume")
    assert "restored 2 of 2 images" in result.stdout, result.stderr
    assert "1 file is left out: a.svg\n" in result.stderr
    assert own.read_bytes() == before
    assert "2 were there already" in run(*arguments, "--resume").stdout
    assert "restored 2 of 2 images" in run(*arguments, "--overwrite").stdout
    assert own.read_bytes() != before


def test_output_that_ends_in_a_slash_is_a_folder(run, trained, place):
    arguments = ("drsformer", "derain", "pairs/input/1.png", "results_v1.0/", "--checkpoint")
    assert run(*arguments, trained[0]).returncode == 0
    assert find_images(place / "results_v1.0") == [place / "results_v1.0" / "1.png"]


@pytest.mark.slow
def test_killed_derain_leaves_no_half_image_and_resumes(run, trained, place):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for index in range(40):
        write_image(place / "many" / f"{index}.png", noise)
    arguments = ("derain", "many", "killed-out", "--checkpoint", trained[0])
    with run.start("drsformer", *arguments) as process:
        while len(list((place / "killed-out").glob("*.png"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    done = find_images(place / "killed-out")
    assert 3 <= len(done) < 40
    for path in done:
        assert read_image(path).shape == (300, 400, 3)
    result = run("drsformer", *arguments, "--resume")
    assert f"restored {40 - len(done)} of 40 images" in result.stdout


def test_terminated_derain_leaves_nothing_unfinished(run, trained, place):
    for index in range(40):
        write_image(place / "some" / f"{index}.png", np.full((200, 300, 3), index, np.uint8))
    arguments = ("derain", "some", "ended", "--checkpoint", trained[0])
    with run.start("drsformer", *arguments) as process:
        while not list((place / "ended").glob("*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        process.communicate()
    assert process.returncode == 143
    assert not [path for path in (place / "ended").iterdir() if path.suffix != ".png"]


def test_every_flag_of_derain_does_what_it_says(run, trained, place):
    rgba = np.zeros((40, 48, 4), np.uint8)
    rgba[:, :24, 3] = 255
    (place / "flags").mkdir()
    Image.fromarray(rgba).save(place / "flags" / "clear.png")
    result = run(
        *("drsformer", "derain", "flags", "flagged", "--checkpoint", trained[0], "--step", 2),
        *("--format", "jpg", "--quality", 40, "--background", 255, 0, 0, "--compare", "compared"),
        *("--tile", 32, "--overlap", 16, "--workers", 1, "--kernels", "pallas"),
    )
    assert result.returncode == 0, result.stderr
    assert "clear.jpg: transparency is laid on the color (255, 0, 0)" in result.stderr
    assert "sizes compiled: 1, pixels added by padding and overlaps: 113%" in result.stdout
    with Image.open(place / "flagged" / "clear.jpg") as image:
        assert image.quantization[0][0] > 15, "of quality 40"
        red, green, _ = image.getpixel((40, 20))
    assert red > 200 > 100 > green
    assert read_image(place / "compared" / "clear.jpg").shape[1] > 96


def test_video_is_restored_frame_by_frame(run, trained, place):
    video_files = pytest.importorskip("video_files")
    frames = video_files.gray(48, 40)
    video_files.write(place / "rain.mp4", frames)
    video_files.write(place / "rain.vob", frames, codec="mpeg2video", muxer="vob")
    for source, target in (("rain.mp4", "clear.mp4"), ("rain.vob", "vob.mkv")):
        result = run("drsformer", "derain", source, target, "--checkpoint", trained[0])
        assert f"restored 12 frames into {target}" in result.stdout, result.stderr
        assert video_files.read(place / target).shape == (12, 40, 48, 3)
    assert run("drsformer", "derain", "rain.mp4", "films/").returncode == 0
    assert video_files.read(place / "films" / "rain.mp4").shape == (12, 40, 48, 3)
    rejected(run("drsformer", "derain", "rain.mp4", ".", "--checkpoint", "run"), "the input itself")
    wrong = run("drsformer", "derain", "rain.mp4", "rain.vob", "x", "--checkpoint", "run")
    rejected(wrong, r"rain\.mp4 is a video, beside 1 other inputs; expected each video alone")
    wrong = run("drsformer", "derain", "rain.mp4", "x.mp4", "--checkpoint", "run", "--quality", 95)
    rejected(wrong, "--quality is given; expected none for a video")
    wrong = run("drsformer", "derain", "rain.vob", "x.gif", "--checkpoint", trained[0])
    rejected(wrong, r"x\.gif has the extension '\.gif'; expected \.mp4 \.m4v")
    for images in ("pairs/input", "pairs/input/0.png"):
        wrong = run("drsformer", "derain", images, "x.mp4", "--checkpoint", "run")
        rejected(wrong, rf"x\.mp4 is the name of a video, and {images} is none; expected a video")
    assert not (place / "x.mp4").exists()


def test_video_that_is_there_is_neither_written_over_nor_restored_again(run, trained, place):
    video_files = pytest.importorskip("video_files")
    video_files.write(place / "again.mp4", video_files.gray(48, 40))
    (place / "there.mp4").write_bytes(b"old")
    command = ("drsformer", "derain", "again.mp4", "there.mp4", "--checkpoint", trained[0])
    rejected(run(*command), r"there\.mp4 is there already .*; expected --overwrite or --resume")
    resumed = run(*command, "--resume")
    assert (resumed.returncode, resumed.stdout) == (0, "there.mp4 was there already\n")
    assert (place / "there.mp4").read_bytes() == b"old"
    assert run(*command, "--overwrite").returncode == 0
    assert video_files.read(place / "there.mp4").shape == (12, 40, 48, 3)

"""Folders of images of every kind are restored, each to its place, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from drsformer_jax.errors import InputError
from drsformer_jax.images import formats
from drsformer_jax.images.image import LoadedImage, load_image, save_image
from drsformer_jax.images.pixels import image_size, read_image, to_8_bits, write_image
from drsformer_jax.restoring import Restorer, files
from drsformer_jax.restoring.files import restore_file, restore_files
from drsformer_jax.restoring.jobs import Job, plan_jobs
from drsformer_jax.restoring.memory import forward_bytes


def noise(h: int, w: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(h * w).integers(0, np.iinfo(dtype).max, (h, w, 3), dtype)


def images(folder: Path, *names: str) -> Path:
    for name in names:
        write_image(folder / name, noise(4, 6))
    return folder


@pytest.fixture(scope="module")
def restorer(network):
    restorer = Restorer(*network)
    restorer.plan([(32, 32)])
    return restorer


BUCKETS = [(32, 80), (72, 48), (56, 64)]
"""Of twenty sizes. Other tests use them too, so that less is compiled."""


def test_twenty_sizes_take_three_programs(network, tmp_path):
    for index in range(20):
        write_image(tmp_path / "in" / f"{index}.png", noise(9 + 3 * index, 80 - 2 * index))
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")[0]
    restorer = Restorer(*network)
    assert restore_files(jobs, restorer, workers=2).programs <= 3
    assert restorer.programs.keys() == {(1, bucket) for bucket in BUCKETS}


KINDS = st.sampled_from(["L", "LA", "RGB", "RGBA", "P", "1", "deep", "deep gray"])
FORMATS = st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tif", ".avif"])
HEIGHTS, WIDTHS = st.integers(1, 16), st.integers(1, 8)  # Two sizes when padded: few programs.


def save_any(path: Path, kind: str, size: tuple[int, int]) -> None:
    """Writes an image of a kind, as far as its format can."""
    if kind.startswith("deep"):
        save_image(path, LoadedImage(noise(*size, np.uint16), gray="gray" in kind))
        return
    image = Image.fromarray(noise(*size)).convert(kind)
    plain = {".jpg": ("L", "RGB"), ".bmp": ("L", "RGB", "P", "1"), ".webp": ("RGB", "RGBA")}
    image.convert(kind if kind in plain.get(path.suffix, kind) else "RGB").save(path)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(KINDS, FORMATS, HEIGHTS, WIDTHS), min_size=1, max_size=12), FORMATS)
def test_images_of_any_kind_size_and_format_are_restored(restorer, images, extension):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, (kind, suffix, *size) in enumerate(images):
            save_any(folder / f"{index}{suffix}", kind, (size[0], size[1]))
        jobs = plan_jobs([folder], folder / "out", extension=extension)[0]
        jobs += [Job(job.source, folder / "same" / job.source.name) for job in jobs]
        summary = restore_files(jobs, restorer, workers=2)
        assert (summary.restored, summary.failed) == (len(jobs), 0)
        for job in jobs:
            before, after = load_image(job.source), load_image(job.target)
            assert after.rgb.shape == before.rgb.shape
            assert after.gray == (before.gray and job.target.suffix not in (".webp", ".avif"))
            if job.target.suffix in (".png", ".tif"):
                assert after.rgb.dtype == before.rgb.dtype
                assert (after.alpha is None) == (before.alpha is None)
                expected = restorer(before.rgb)
                if not before.gray:
                    np.testing.assert_array_equal(after.rgb, expected)


def test_bad_files_are_reported_and_the_rest_goes_on(restorer, tmp_path, capsys):
    images(tmp_path / "in", "1.png", "3.png")
    (tmp_path / "in" / "2.png").write_text("no image")
    data = (tmp_path / "in" / "1.png").read_bytes()
    (tmp_path / "in" / "4.png").write_bytes(data[: len(data) - 30])
    summary = restore_files(plan_jobs([tmp_path / "in"], tmp_path / "out")[0], restorer, workers=2)
    assert (summary.restored, summary.failed) == (2, 2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1.png", "3.png"}
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 2
    assert any("2.png is no image" in line for line in lines)


def test_resumed_run_skips_what_is_done_and_uses_the_same_buckets(network, tmp_path):
    for index, size in enumerate([(24, 80), *BUCKETS]):
        write_image(tmp_path / "in" / f"{index}.png", noise(*size))
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")[0]
    first = Restorer(*network)
    restore_files(jobs, first, workers=1)
    (tmp_path / "out" / "0.png").unlink()
    kept = (tmp_path / "out" / "1.png").stat().st_mtime_ns
    second = Restorer(*network)
    summary = restore_files(jobs, second, workers=1, resume=True)
    assert (summary.restored, summary.skipped) == (1, 3)
    assert first.programs.keys() == {(1, bucket) for bucket in BUCKETS}
    assert second.programs.keys() == {(1, (32, 80))}
    assert (tmp_path / "out" / "1.png").stat().st_mtime_ns == kept


def test_image_alone_is_restored_as_among_one(network, tmp_path):
    save_image(tmp_path / "deep.png", LoadedImage(noise(30, 77, np.uint16)))
    alone, among = (Job(tmp_path / "deep.png", tmp_path / name) for name in ("a.jpg", "b.jpg"))
    assert restore_file(alone, Restorer(*network)) == ["16 bits become 8"]
    restore_files([among], Restorer(*network), workers=1)
    assert alone.target.read_bytes() == among.target.read_bytes()
    (tmp_path / "deep.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"deep\.png is no image"):
        restore_file(alone, Restorer(*network))


def test_comparison_shows_rainy_and_restored_side_by_side(restorer, tmp_path):
    deep = LoadedImage(noise(20, 30, np.uint16))
    save_image(tmp_path / "in.png", deep)
    job = Job(tmp_path / "in.png", tmp_path / "out.png", tmp_path / "both.png")
    restore_files([job], restorer, workers=1)
    sheet = read_image(tmp_path / "both.png")
    np.testing.assert_array_equal(sheet[32:52, 8:38], to_8_bits(deep.rgb))
    restored = load_image(tmp_path / "out.png").rgb
    assert any(
        np.array_equal(sheet[32:52, left : left + 30], to_8_bits(restored))
        for left in range(38, sheet.shape[1] - 30)
    )


@pytest.mark.parametrize("shape", [(3, 60, 3), (60, 3, 3)])
def test_comparison_is_made_smaller_where_the_format_has_no_room(shape):
    sheet = files._side_by_side(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), 50)
    assert max(sheet.shape) == 50
    assert sheet.dtype == np.uint8


def test_wide_image_is_restored_and_compared(restorer, tmp_path, monkeypatch):
    narrow = [each._replace(largest_side=100) for each in formats.FORMATS]
    monkeypatch.setattr(formats, "FORMATS", narrow)
    write_image(tmp_path / "in.webp", noise(30, 77))
    job = Job(tmp_path / "in.webp", tmp_path / "out.webp", tmp_path / "both.webp")
    assert restore_files([job], restorer, workers=1).failed == 0
    assert image_size(job.target) == (30, 77)
    assert image_size(job.comparison)[1] == 100


def test_files_beyond_memory_are_reported_and_the_rest_goes_on(
    restorer, tmp_path, capsys, monkeypatch
):
    """One has holes and a terabyte; for another Python finds no memory."""
    images(tmp_path / "in", "1.png", "2.bmp", "3.png", "4.png")
    with open(tmp_path / "in" / "2.bmp", "ab") as file:
        file.truncate(2**40)

    def load(path: Path) -> LoadedImage:
        if path.name == "3.png":
            raise MemoryError
        return load_image(path)

    monkeypatch.setattr(files, "load_image", load)
    summary = restore_files(plan_jobs([tmp_path / "in"], tmp_path / "out")[0], restorer, workers=1)
    assert (summary.restored, summary.failed) == (2, 2)
    printed = capsys.readouterr().err
    line = r"^error: .*3\.png does not fit into memory; expected a smaller image$"
    assert re.search(line, printed, re.M)
    assert re.search(r"^error: .*2\.bmp is no .*1,099,511,627,776 bytes exceed", printed, re.M)


def test_images_that_wait_are_not_computed_after_the_run_was_stopped(
    restorer, tmp_path, monkeypatch
):
    images(tmp_path / "in", *(f"{index}.png" for index in range(6)))
    stop, stopped, computed = files._Files.stop, threading.Event(), []

    def load(path: Path) -> LoadedImage:
        assert stopped.wait(60)
        return load_image(path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files._Files, "stop", lambda self: (stop(self), stopped.set()))
    monkeypatch.setattr(files, "load_image", load)
    monkeypatch.setattr(files, "_report", interrupt)
    monkeypatch.setattr(restorer, "batch", lambda *images: computed.append(images))
    found = plan_jobs([tmp_path / "in"], tmp_path / "out")[0]
    with pytest.raises(KeyboardInterrupt):
        restore_files(found, restorer, workers=3)
    assert not computed
    assert not (tmp_path / "out").exists()


def test_lines_about_files_whose_names_hold_line_breaks_are_single(restorer, tmp_path, capsys):
    images(tmp_path / "in", "1.png")
    (tmp_path / "in" / "a\nb.png").write_text("no image")
    save_image(tmp_path / "in" / "c\nd.png", LoadedImage(noise(4, 6, np.uint16)))
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out", extension=".jpg")[0]
    assert restore_files(jobs, restorer, workers=1).failed == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(
        re.fullmatch(r"error: .*a\\nb\.png is no image that can be read .*", x) for x in lines
    )
    assert f"{tmp_path}/out/c\\nd.jpg: 16 bits become 8" in lines


def test_pixels_that_were_computed_for_nothing_are_no_padding(restorer, tmp_path):
    images(tmp_path / "in", "1.png")
    (tmp_path / "out" / "1.png").mkdir(parents=True)
    jobs = [Job(tmp_path / "in" / "1.png", tmp_path / "out" / name) for name in ("1.png", "2.png")]
    summary = restore_files(jobs, restorer, workers=1)
    assert (summary.restored, summary.failed) == (1, 1)
    assert summary.waste == pytest.approx(64 / 24 - 1)


def test_further_pages_are_reported(restorer, tmp_path, capsys):
    pages = [Image.fromarray(noise(8, 8)) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    restore_files(plan_jobs([tmp_path / "a.tif"], tmp_path / "b.png")[0], restorer, workers=1)
    assert "b.png: only the first of 3 images is kept" in capsys.readouterr().err


def test_16_bit_gray_image_with_alpha_is_restored_and_counted(restorer, tmp_path):
    gray = noise(8, 16, np.uint16)[..., 0]
    pixels = np.dstack([gray, np.full_like(gray, 65535)])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", extrasamples=[2])
    write_image(tmp_path / "b.png", noise(8, 8))
    summary = restore_files(plan_jobs([tmp_path], tmp_path / "out")[0], restorer, workers=1)
    assert (summary.restored, summary.failed, summary.waste) == (2, 0, 0)


def test_resumed_run_leaves_a_comparison_that_is_there(restorer, tmp_path):
    images(tmp_path, "in/1.png")
    images(tmp_path, "both/1.png")
    before = (tmp_path / "both" / "1.png").read_bytes()
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out", compare=tmp_path / "both")[0]
    assert restore_files(jobs, restorer, workers=1, resume=True).restored == 1
    assert (tmp_path / "both" / "1.png").read_bytes() == before


def test_resumed_run_makes_comparisons_that_are_missing_and_leaves_the_results(restorer, tmp_path):
    images(tmp_path, "in/1.png", "in/2.png", "out/1.png", "both/2.png")
    found = [tmp_path / "out" / "1.png", tmp_path / "both" / "2.png"]
    before = [path.read_bytes() for path in found]
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out", compare=tmp_path / "both")[0]
    summary = restore_files(jobs, restorer, workers=1, resume=True)
    assert (summary.restored, summary.skipped) == (2, 0)
    assert [path.read_bytes() for path in found] == before
    assert all(path.exists() for job in jobs for path in job.outputs())
    assert restore_files(jobs, restorer, workers=1, resume=True).skipped == 2


def test_what_a_format_cannot_keep_is_reported(restorer, tmp_path, capsys):
    rgba = np.dstack([noise(8, 8), np.full((8, 8), 100, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    jobs = [Job(tmp_path / "a.png", tmp_path / "a.jpg")]
    restore_files(jobs, restorer, workers=1, background=(255, 0, 0))
    assert "a.jpg: transparency is laid on the color (255, 0, 0)" in capsys.readouterr().err


def test_tiles_that_were_asked_for_are_counted(network, tmp_path, capsys):
    images(tmp_path, "1.png")
    write_image(tmp_path / "2.png", noise(40, 30))
    restorer = Restorer(*network, tile=32, overlap=8)
    summary = restore_files(plan_jobs([tmp_path], tmp_path / "out")[0], restorer, workers=1)
    printed = capsys.readouterr().err
    assert "tiles" not in printed, "they were asked for"
    assert summary.waste == pytest.approx((64 + 2 * 24 * 32) / (24 + 1200) - 1)


def test_image_beyond_memory_is_reported_and_the_rest_goes_on(network, tmp_path, capsys):
    images(tmp_path, "1.png")
    write_image(tmp_path / "2.png", noise(400, 400))
    restorer = Restorer(*network, memory=forward_bytes(network[0], 24, 32))
    summary = restore_files(plan_jobs([tmp_path], tmp_path / "out")[0], restorer, workers=1)
    assert (summary.restored, summary.failed) == (1, 1)
    printed = capsys.readouterr().err
    assert re.search(r"^error: .*2\.png: 400x400 pixels do not fit into", printed, re.M)


def test_images_are_computed_in_batches_and_one_that_fails_spoils_no_other(
    restorer, tmp_path, capsys
):
    names = [f"{i}.png" for i in range(7)]
    images(tmp_path / "in", *names)
    (tmp_path / "in" / "3.png").write_bytes((tmp_path / "in" / "3.png").read_bytes()[:-30])
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")[0]
    before = Counter(restorer.programs)
    summary = restore_files(jobs, restorer, workers=2, batch=3)
    assert (summary.restored, summary.failed) == (6, 1)
    assert restorer.programs - before == {(3, (8, 8)): 3}
    assert re.search(r"^error: .*3\.png", capsys.readouterr().err, re.M)
    alone = restorer(read_image(tmp_path / "in" / "5.png"))
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "5.png"), alone)


def test_summary_of_nothing_to_do_wastes_nothing(restorer, tmp_path):
    images(tmp_path / "in", "1.png")
    images(tmp_path / "out", "1.png")
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")[0]
    assert restore_files(jobs, restorer, workers=1, resume=True).waste == 0


def test_name_that_the_file_system_cannot_hold_is_reported_and_the_rest_goes_on(
    restorer, tmp_path, capsys
):
    long = f"{251 * 'a'}.bmp"
    images(tmp_path / "in", "1.png", long, "b.png")
    jobs, _ = plan_jobs([tmp_path / "in"], tmp_path / "out", extension=".webp")
    for resume in (False, True):
        summary = restore_files(jobs, restorer, workers=2, resume=resume)
        assert (summary.restored + summary.skipped, summary.failed) == (2, 1)
        printed = capsys.readouterr().err
        assert re.search(
            r"^error: .*aaa\.webp cannot be written \(File name too long\); ", printed, re.M
        )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1.webp", "b.webp"}


def test_size_of_each_image_is_read_once_and_by_several_threads(restorer, tmp_path, monkeypatch):
    read: list[Path] = []
    together = threading.Barrier(2, timeout=60)

    def size(path: Path) -> tuple[int, int]:
        together.wait()
        read.append(path)
        return image_size(path)

    monkeypatch.setattr(files, "image_size", size)
    names = [f"{index}.png" for index in range(6)]
    jobs, _ = plan_jobs([images(tmp_path / "in", *names)], tmp_path / "out")
    assert restore_files(jobs, restorer, workers=2).restored == 6
    assert sorted(read) == [tmp_path / "in" / name for name in names]


def test_batches_of_a_bucket_keep_the_order_of_the_images(restorer, tmp_path, capsys):
    for index in range(6):
        write_image(tmp_path / "in" / f"{index}.png", noise(*((4, 6), (20, 30))[index % 2]))
        shutil.copy(tmp_path / "in" / f"{index}.png", tmp_path / "in" / f"{index}.webp")
    jobs, _ = plan_jobs([tmp_path / "in"], tmp_path / "out")
    for path in (tmp_path / "in").glob("*.webp"):
        path.write_bytes(path.read_bytes()[:-30])
    restore_files(jobs, restorer, workers=1, batch=2)
    assert re.findall(r"in/(\d)\.webp", capsys.readouterr().err) == list("012345")

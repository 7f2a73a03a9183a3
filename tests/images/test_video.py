"""Videos keep their frames, times, shape, colors and sound; only the images change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import video_files
from video_files import LEVELS, NTSC, av, first, gray, kinds, noise, packets, read, smooth, times

from drsformer_jax.images import video

ROOT = Path(__file__).parents[2]


def psnr(frames: np.ndarray, others: np.ndarray) -> float:
    assert frames.shape == others.shape
    error = np.square(frames.astype(float) - others).mean()
    return 10 * np.log10(255**2 / error)


def same(frames: np.ndarray) -> np.ndarray:
    return frames


def keeping(seen: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A `restore` that changes nothing and notes what it is given."""
    return lambda frames: (seen.append(frames), frames)[1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """12 frames of distinct gray at 30000/1001 a second, with sound."""
    return video_files.write(
        tmp_path_factory.mktemp("clip") / "clip.mp4", gray(), sound=Fraction(0)
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv", ".webm"])
def test_frames_their_order_size_and_exact_rate_are_kept(tmp_path, suffix):
    source = video_files.write(tmp_path / "a.mp4", gray())
    target = tmp_path / "deeper" / f"b{suffix}"
    assert video.restore_video(source, target, same, batch=5) == (12, [])
    assert first(target)["rate"] == NTSC
    frames = read(target)
    assert frames.shape == (12, 48, 64, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), LEVELS, atol=2)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_gray_frames_which_have_no_color_matrix_are_restored(tmp_path):
    source = video_files.write(tmp_path / "a.mov", gray(), codec="png", kind="gray")
    assert first(source)["tags"][0] == 0, "which says RGB"
    assert video.restore_video(source, tmp_path / "b.mov", same, batch=5) == (12, [])
    frames = read(tmp_path / "b.mov", full=True)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), LEVELS, atol=2)


def test_each_frame_is_restored_once_in_batches_of_one_size(tmp_path, clip):
    seen, done = [], []

    def invert(frames: np.ndarray) -> np.ndarray:
        assert frames.dtype == np.uint8
        seen.append(frames[..., 0].mean((1, 2)))
        return 255 - frames

    target = tmp_path / "b.mp4"
    video.restore_video(clip, target, invert, batch=5, progress=lambda *now: done.append(now))
    assert [len(levels) for levels in seen] == [5, 5, 5]
    np.testing.assert_allclose(np.concatenate(seen), [*LEVELS, *LEVELS[-1:].repeat(3)], atol=2)
    assert [now for now in done if now != (12, 12)] == [(5, 12), (10, 12)]
    assert done[-1] == (12, 12)
    frames = read(target)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 255 - LEVELS, atol=2)
    assert frames.std((1, 2, 3)).max() < 2


def test_a_short_last_batch_and_one_larger_than_the_video_are_filled(tmp_path, clip):
    target = tmp_path / "b.mp4"
    for batch in (1, 4, 12, 20):
        seen: list[np.ndarray] = []
        assert video.restore_video(clip, target, keeping(seen), batch=batch)[0] == 12
        assert {frames.shape for frames in seen} == {(batch, 48, 64, 3)}
        assert len(times(target)) == 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied_packet_by_packet(tmp_path, clip, suffix):
    target = tmp_path / f"b{suffix}"
    assert video.restore_video(clip, target, lambda frames: 255 - frames, batch=5) == (12, [])
    assert packets(target, "audio") == packets(clip, "audio")
    assert len(packets(clip, "audio")) > 15


def test_sound_that_goes_on_after_the_last_frame_is_whole(tmp_path, clip, monkeypatch):
    assert len(video._take(iter(range(10**6)), 4)) == video._MOST_ITEMS, "else memory fills up"
    monkeypatch.setattr(video, "_MOST_ITEMS", 3)
    video.restore_video(clip, tmp_path / "b.mkv", same, batch=5)
    assert packets(tmp_path / "b.mkv", "audio") == packets(clip, "audio")
    assert len(times(tmp_path / "b.mkv")) == 12


def test_subtitles_are_copied_and_reported_where_they_cannot_be(tmp_path):
    source = video_files.write(tmp_path / "a.mkv", gray(), subtitle="rain")
    assert video.restore_video(source, tmp_path / "b.mkv", same, batch=5) == (12, [])
    assert packets(tmp_path / "b.mkv", "subtitle") == [b"rain"]
    assert times(tmp_path / "b.mkv", "subtitle") == [Fraction(1, 10)]
    _, notes = video.restore_video(source, tmp_path / "b.mp4", same, batch=5)
    assert notes == ["the subtitle srt of the source is left out"]
    assert kinds(tmp_path / "b.mp4") == ["video"]


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".ts"])
@pytest.mark.parametrize("late", ["video", "audio"])
def test_sound_and_images_stay_together(tmp_path, suffix, late):
    offset = Fraction(123, 1000)
    start, sound = (offset, Fraction(0)) if late == "video" else (Fraction(0), offset)
    source = video_files.write(tmp_path / f"b{suffix}", gray(), start=start, sound=sound)
    target = tmp_path / "c.mp4"
    video.restore_video(source, target, same, batch=5)
    before, after = (times(path)[0] - times(path, "audio")[0] for path in (source, target))
    assert abs(after - before) <= 0.002
    np.testing.assert_allclose(np.diff(times(target)).astype(float), float(1 / NTSC), atol=1e-4)


def test_a_late_start_is_kept(tmp_path):
    start = Fraction(2)
    source = video_files.write(tmp_path / "a.mkv", gray(), start=start, sound=start)
    assert times(source)[0] >= start
    for name in ("b.mkv", "b.mp4"):
        video.restore_video(source, tmp_path / name, same, batch=5)
        assert times(tmp_path / name)[0] == times(source)[0]


def test_a_constant_rate_survives_a_container_that_counts_milliseconds(tmp_path):
    source = video_files.write(tmp_path / "a.mkv", gray())
    assert len(set(np.diff(times(source)))) > 1
    video.restore_video(source, tmp_path / "b.mp4", same, batch=5)
    assert times(tmp_path / "b.mp4") == [index / NTSC for index in range(12)]


def test_times_of_a_variable_rate_are_kept(tmp_path):
    expected = [Fraction(3000 * n + 300 * n * n, 90000) for n in range(12)]
    source = video_files.write(tmp_path / "a.mp4", gray(), times=expected)
    assert times(source) == expected
    video.restore_video(source, tmp_path / "b.mp4", same, batch=5)
    assert times(tmp_path / "b.mp4") == expected
    video.restore_video(source, tmp_path / "b.mkv", same, batch=5)
    assert times(tmp_path / "b.mkv") == [Fraction(round(1000 * time), 1000) for time in expected]
    video.restore_video(tmp_path / "b.mkv", tmp_path / "c.mkv", same, batch=5)
    assert times(tmp_path / "c.mkv") == times(tmp_path / "b.mkv")
    np.testing.assert_allclose(read(tmp_path / "c.mkv").mean((1, 2, 3)), LEVELS, atol=2)
    lasting = [first(tmp_path / name)["duration"] / 1e6 for name in ("b.mp4", "b.mkv")]
    assert lasting[0] > expected[-1], "else players drop frames"
    assert lasting[1] == pytest.approx(lasting[0], abs=1e-3)


def test_a_clock_that_jumps_back_runs_on(tmp_path):
    """Two MPEG streams, one after the other, as recorders write them."""
    part = video_files.write(tmp_path / "part.ts", gray(), sound=Fraction(0))
    source = tmp_path / "a.ts"
    source.write_bytes(part.read_bytes() * 2)
    video.restore_video(source, tmp_path / "b.mp4", same, batch=5)
    shown = np.array(times(tmp_path / "b.mp4"), float)
    assert len(shown) == 24
    np.testing.assert_allclose(np.diff(shown), float(1 / NTSC), atol=0.03)
    assert len(packets(tmp_path / "b.mp4", "audio")) == 2 * len(packets(part, "audio"))
    assert np.diff(np.array(times(tmp_path / "b.mp4", "audio"), float)).max() < 0.06
    assert abs(shown[-1] - float(times(tmp_path / "b.mp4", "audio")[-1])) < 0.1


def test_titles_languages_chapters_and_attachments_are_kept(tmp_path, clip):
    chapters = [
        {"id": id, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {}}
        for id, start, end in ((1, 0, 100), (2, 100, 300))
    ]
    chapters[1]["metadata"] = {"title": "shower"}
    with av.open(str(clip)) as file, av.open(str(tmp_path / "a.mkv"), "w") as output:
        streams = [output.add_stream_from_template(each, opaque=True) for each in file.streams]
        for stream in streams:
            stream.metadata["language"] = "deu"
        output.add_attachment("font.ttf", "font/ttf", b"curves")
        output.metadata["title"] = "Rain"
        output.set_chapters(chapters)
        for packet in file.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    for name in ("b.mkv", "b.mp4"):
        _, notes = video.restore_video(tmp_path / "a.mkv", tmp_path / name, same, batch=5)
        with av.open(str(tmp_path / name)) as file:
            assert file.metadata["title"] == "Rain"
            _, found = file.chapters()
            assert found["start"] * found["time_base"] == Fraction(1, 10)
            assert found["metadata"] == {"title": "shower"}
            assert [file.streams[index].language for index in (0, 1)] == ["deu", "deu"]
            assert [each.data for each in file.streams if each.type == "attachment"] == (
                [b"curves"] if name == "b.mkv" else []
            )
        left_out = [] if name == "b.mkv" else ["the attachment font.ttf of the source is left out"]
        assert notes == left_out


def test_odd_sizes_are_kept(tmp_path):
    source = video_files.write(tmp_path / "a.mp4", gray(63, 47), kind="yuv444p")
    target = tmp_path / "b.mp4"
    video.restore_video(source, target, same, batch=5)
    frames = read(target)
    assert frames.shape == (12, 47, 63, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), LEVELS, atol=2)


ONE, LAST = 1 << 16, 1 << 30


@pytest.mark.parametrize(
    ("terms", "turn"),
    [
        ((1, 0, 0, 1), lambda frames: frames),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, (1, 2))),
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, (1, 2))),
        ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, (1, 2))),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
    ],
    ids=["upright", "left", "right", "down", "mirrored", "transposed"],
)
def test_turned_videos_come_out_upright_and_are_not_turned_again(tmp_path, terms, turn):
    a, b, c, d = (term * ONE for term in terms)
    display = (a, b, 0, c, d, 0, 0, 0, LAST)
    source = video_files.write(
        tmp_path / "b.mp4", smooth(), display=display, sample_aspect_ratio=Fraction(4, 3)
    )
    seen: list[np.ndarray] = []
    target = tmp_path / "c.mp4"
    video.restore_video(source, target, keeping(seen), batch=4)
    expected = turn(read(source))
    np.testing.assert_allclose(seen[0], expected, atol=1)
    assert first(target)["rotation"] == 0
    assert psnr(read(target), expected) > 40
    assert first(target)["aspect"] == (Fraction(3, 4) if abs(b) else Fraction(4, 3))


@pytest.mark.parametrize(
    ("size", "matrix", "color_range", "tagged", "expected"),
    [
        ((96, 64), 6, None, False, [6, 1]),
        ((96, 64), 1, None, True, [1, 1]),
        ((96, 64), 6, 2, True, [6, 2]),
        ((64, 578), 1, None, False, [1, 1]),
        ((1280, 64), 1, None, False, [1, 1]),
        ((1280, 64), 6, None, True, [6, 1]),
    ],
    ids=["small", "small-bt709", "small-full", "high", "wide", "wide-bt601"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colors_and_their_tags_are_kept(
    tmp_path, size, matrix, color_range, tagged, expected, suffix
):
    source = video_files.write(
        tmp_path / "a.mp4",
        smooth(*size),
        matrix=matrix,
        matrix_tag=matrix if tagged else 2,
        color_range=color_range,
        color_primaries=9,
        color_trc=14,
    )
    target = tmp_path / f"b{suffix}"
    seen: list[np.ndarray] = []
    video.restore_video(source, target, keeping(seen), batch=4)
    before = read(source, matrix, full=color_range == 2)
    np.testing.assert_allclose(seen[0], before, atol=2)
    assert np.abs(seen[0] - before.astype(float)).mean() < 0.5
    assert psnr(before, smooth(*size)) > 40
    assert first(target)["tags"] == [*expected, 9, 14]
    assert psnr(read(target, matrix, full=color_range == 2), before) > 40


def test_ten_bits_stay_ten_bits(tmp_path):
    source = video_files.write(
        tmp_path / "a.mkv", smooth(), codec="libx265", kind="yuv420p10le", color_trc=16, matrix=9
    )
    seen: list[np.ndarray] = []
    for name in ("b.mp4", "b.mkv"):
        seen.clear()
        assert video.restore_video(source, tmp_path / name, keeping(seen), batch=4) == (4, [])
        assert (seen[0].dtype, seen[0].max() > 50_000) == (np.uint16, True)
        written = first(tmp_path / name)
        assert (written["kind"], written["codec"]) == ("yuv420p10le", "hevc")
        assert written["tags"] == [9, 1, 2, 16]
        assert psnr(read(tmp_path / name), read(source)) > 40
    _, notes = video.restore_video(source, tmp_path / "b.webm", same, batch=4)
    assert notes == ["10 bits a channel are written as 8"]
    assert first(tmp_path / "b.webm")["kind"] == "yuv420p"


def test_quality_is_the_encoders_constant_rate_factor(tmp_path):
    source = video_files.write(tmp_path / "a.mp4", noise())
    sizes = []
    for quality, noted in ((1, b"crf=1.0"), (None, b"crf=16.0"), (40, b"crf=40.0")):
        video.restore_video(source, tmp_path / "b.mp4", same, batch=4, quality=quality)
        content = (tmp_path / "b.mp4").read_bytes()
        assert noted in content, "x264 writes its settings into the stream"
        sizes.append(len(content))
    assert sizes[0] > sizes[1] > 2 * sizes[2]


@pytest.mark.parametrize(
    "name", ["-i.mp4", "a %d.mp4", "http:a.mp4", "concat:a|b.mp4", "a\n'b.mp4", "\N{SNOWMAN}.mp4"]
)
def test_file_names_are_taken_literally(tmp_path, monkeypatch, clip, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, name)
    target = Path("http:out") / name
    assert video.restore_video(Path(name), target, same, batch=12)[0] == 12
    assert target.is_file()

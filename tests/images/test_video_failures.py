"""What is no video, and what becomes of damaged ones and of failures."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import video_files
from video_files import LEVELS, NTSC, gray, noise, packets, read, times

from drsformer_jax.errors import InputError
from drsformer_jax.images import video
from drsformer_jax.images.pixels import write_image

ROOT = Path(__file__).parents[2]


def same(frames: np.ndarray) -> np.ndarray:
    return frames


def not_called(frames: np.ndarray) -> np.ndarray:
    raise AssertionError("a source that cannot be read was restored")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """12 frames of distinct gray at 30000/1001 a second, with sound."""
    return video_files.write(
        tmp_path_factory.mktemp("clip") / "clip.mp4", gray(), sound=Fraction(0)
    )


@pytest.mark.parametrize("muxer", ["mpeg", "mpegts", "avi", "flv", "asf", "mp4", "matroska"])
def test_a_video_is_known_by_its_content(tmp_path, muxer):
    codec = {"mpeg": "mpeg2video", "asf": "mpeg4"}.get(muxer, "libx264")
    video_files.write(tmp_path / "a.bin", gray(), codec=codec, muxer=muxer)
    assert video.is_video(tmp_path / "a.bin")
    assert video.restore_video(tmp_path / "a.bin", tmp_path / "b.mp4", same, batch=5) == (12, [])
    np.testing.assert_allclose(read(tmp_path / "b.mp4").mean((1, 2, 3)), LEVELS, atol=6)
    np.testing.assert_allclose(
        np.diff(np.array(times(tmp_path / "b.mp4"), float)), float(1 / NTSC), atol=1e-3
    )


@pytest.mark.parametrize(
    ("codec", "muxer", "name"),
    [
        ("libx264", "h264", "a.bin"),
        ("libx265", "hevc", "a.bin"),
        ("mpeg2video", "mpeg2video", "a.bin"),
        ("mjpeg", "mjpeg", "a.mjpeg"),  # Which is an image by its content.
        ("libsvtav1", "obu", "a.bin"),
    ],
)
def test_a_stream_of_nothing_but_frames_is_a_video_too(tmp_path, codec, muxer, name):
    kind = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    video_files.write(tmp_path / name, gray(), codec=codec, muxer=muxer, kind=kind)
    assert video.is_video(tmp_path / name)
    assert video.restore_video(tmp_path / name, tmp_path / "b.mp4", same, batch=5)[0] == 12


@pytest.mark.parametrize(("codec", "muxer"), [("libx264", "matroska"), ("libvpx", "webm")])
def test_a_recorded_live_stream_is_a_video_though_it_has_no_duration(tmp_path, codec, muxer):
    live = {"live": "1"}
    video_files.write(tmp_path / "a.bin", gray(), codec=codec, muxer=muxer, options=live)
    assert video_files.first(tmp_path / "a.bin")["duration"] is None
    assert video.is_video(tmp_path / "a.bin")


def test_what_is_no_video(tmp_path, clip):
    write_image(tmp_path / "image.png", gray()[0])
    shutil.copy(tmp_path / "image.png", tmp_path / "image.mp4")
    (tmp_path / "broken.png").write_bytes((tmp_path / "image.png").read_bytes()[:30] + b"x" * 99)
    (tmp_path / "text.txt").write_text("rain " * 999)
    (tmp_path / "folder.mp4").mkdir()
    gif = io.BytesIO()
    first, *rest = map(PIL.Image.fromarray, noise())
    first.save(gif, "GIF", save_all=True, append_images=rest, duration=100)
    (tmp_path / "cut.gif").write_bytes(gif.getvalue()[: len(gif.getvalue()) * 2 // 3])
    names = ("image.png", "image.mp4", "broken.png", "text.txt", "folder.mp4", "missing.mp4")
    names = (*names, "cut.gif")
    assert [name for name in names if video.is_video(tmp_path / name)] == []
    (tmp_path / "broken.vob").write_text("rain " * 999)
    assert video.is_video(tmp_path / "broken.vob"), "so that it says why it cannot be read"


@pytest.mark.parametrize("error", [MemoryError("too large"), KeyboardInterrupt()])
def test_a_failure_leaves_the_target_as_it_was(tmp_path, clip, error):
    target = tmp_path / "out" / "b.mp4"
    target.parent.mkdir()
    target.write_bytes(b"old")
    calls = []

    def fail_late(frames: np.ndarray) -> np.ndarray:
        calls.append(len(frames))
        if len(calls) == 4:
            raise error
        return frames

    with pytest.raises(type(error)):
        video.restore_video(clip, target, fail_late, batch=2)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def sound_alone(path: Path) -> None:
    video_files.write(path, gray()[:0], sound=Fraction(0), images=False)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: None, "is no video that can be read (No such file or directory)"),
        (lambda path: path.mkdir(), "is no video that can be read (Is a directory)"),
        (lambda path: path.write_bytes(b""), "is no video that can be read ("),
        (lambda path: path.write_text("rain " * 999), "is no video that can be read (Invalid data"),
        (sound_alone, "holds no video; expected one"),
    ],
    ids=["missing", "folder", "empty", "text", "sound"],
)
def test_a_source_that_is_no_video_is_reported_in_one_line(tmp_path, make, line):
    source = tmp_path / "a.mp4"
    make(source)
    with pytest.raises(InputError) as failure:
        video.restore_video(source, tmp_path / "out" / "b.mp4", not_called, batch=5)
    assert str(failure.value).startswith(f"{source} {line}")
    assert "expected" in str(failure.value)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_frame_that_can_be_decoded_is_reported_in_one_line(tmp_path):
    source = video_files.write(tmp_path / "a.mkv", noise())
    data = bytearray(source.read_bytes())
    for packet in packets(source, "video"):
        where = data.index(packet)
        data[where : where + len(packet)] = bytes(len(packet))
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.mkv has no frame that can be decoded; expected a v"):
        video.restore_video(source, tmp_path / "out" / "b.mp4", not_called, batch=5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_damaged_packets_are_skipped_and_counted(tmp_path, suffix):
    source = video_files.write(tmp_path / f"a{suffix}", noise(12), gop_size=1)
    data = bytearray(source.read_bytes())
    for packet in packets(source, "video")[4:6]:
        where = data.index(packet)
        data[where : where + len(packet)] = bytes(len(packet))
    source.write_bytes(data)
    before = times(source)
    count, notes = video.restore_video(source, tmp_path / f"b{suffix}", same, batch=5)
    assert (count, notes) == (10, ["2 damaged packets were skipped"])
    kept = times(tmp_path / f"b{suffix}")
    np.testing.assert_allclose(
        np.array(kept, float), np.array(before[:4] + before[6:], float), atol=1e-3
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_source_that_is_cut_short_is_restored_and_reported(tmp_path, suffix):
    first_index = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    source = video_files.write(tmp_path / f"a{suffix}", noise(60), options=first_index)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    count, notes = video.restore_video(source, tmp_path / "b.mp4", same, batch=5)
    assert 20 < count < 40
    assert any(note.startswith("the source is cut short: ") for note in notes)
    assert len(times(tmp_path / "b.mp4")) == count


def test_a_target_of_another_kind_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"b\.gif has the extension '\.gif'; expected \.mp4 \.m4v"):
        video.restore_video(tmp_path / "a.mp4", tmp_path / "b.gif", not_called, batch=5)


def test_sound_that_the_target_cannot_hold_is_reported_in_one_line(tmp_path, clip):
    target = tmp_path / "out" / "b.webm"
    with pytest.raises(InputError) as failure:
        video.restore_video(clip, target, not_called, batch=2)
    assert str(failure.value).startswith(f"{target} cannot hold the sound of {clip} (audio aac); ")
    assert list(target.parent.iterdir()) == []


def test_sound_that_the_muxer_refuses_is_reported_before_anything_is_restored(tmp_path):
    opus = {"sound": Fraction(1), "sound_codec": "libopus", "sound_rate": 48000}
    source = video_files.write(tmp_path / "a.webm", gray(), codec="libvpx-vp9", **opus)
    target = tmp_path / "out" / "b.mov"
    with pytest.raises(InputError, match=r"b\.mov cannot hold the sound of .*a\.webm \(of a co"):
        video.restore_video(source, target, not_called, batch=2)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("source", ["a.avi", "a.mkv"])
def test_sound_without_a_layout_of_its_channels_is_kept(tmp_path, source, suffix):
    sound = {"sound": Fraction(0), "sound_codec": "pcm_s16le"}
    clip = video_files.write(tmp_path / source, gray(), **sound)
    target = tmp_path / f"b{suffix}"
    assert video.restore_video(clip, target, same, batch=5) == (12, [])
    assert b"".join(packets(target, "audio")) == b"".join(packets(clip, "audio"))


def test_sound_of_more_channels_than_have_a_name_is_kept_whole_or_rejected_at_once(tmp_path):
    many = {"sound": Fraction(0), "sound_codec": "pcm_s16le", "channels": 16}
    clip = video_files.write(tmp_path / "a.mkv", gray(), **many)
    assert video.restore_video(clip, tmp_path / "b.mkv", same, batch=5) == (12, [])
    assert b"".join(packets(tmp_path / "b.mkv", "audio")) == b"".join(packets(clip, "audio"))
    with video_files.av.open(tmp_path / "b.mkv") as written:
        assert written.streams.audio[0].channels == 16
    with pytest.raises(InputError, match=r"b\.mp4 cannot hold the sound .* of 16 channels\)"):
        video.restore_video(clip, tmp_path / "b.mp4", not_called, batch=5)


def test_sound_of_a_codec_that_nobody_knows_is_reported_in_one_line(tmp_path):
    clip = video_files.write(tmp_path / "a.mkv", gray(), sound=Fraction(0), sound_codec="pcm_s16le")
    clip.write_bytes(clip.read_bytes().replace(b"A_PCM/INT/LIT", b"A_XYZ/INT/LIT"))
    with pytest.raises(InputError, match=r"b\.mkv cannot hold the sound of .*a\.mkv \(audio\)"):
        video.restore_video(clip, tmp_path / "b.mkv", not_called, batch=5)


def test_a_track_that_is_announced_and_never_comes_is_left_out_with_a_note(tmp_path):
    sound = {"sound": Fraction(0), "sound_codec": "mp2", "silent": "ac3"}
    clip = video_files.write(tmp_path / "a.ts", gray(), **sound)
    count, notes = video.restore_video(clip, tmp_path / "b.mkv", same, batch=5)
    assert (count, len(packets(tmp_path / "b.mkv", "audio"))) == (12, len(packets(clip, "audio")))
    assert notes == ["the audio ac3 of the source is left out: it begins too late, or never"]


def test_a_missing_encoder_is_reported_in_one_line(tmp_path, clip, monkeypatch):
    rare = video._Codec("libnone", 16, {})
    monkeypatch.setitem(video._CONTAINERS, ".mp4", ("mp4", {8: rare}))
    with pytest.raises(InputError, match=r"b\.mp4 needs the encoder libnone, which this PyAV lack"):
        video.restore_video(clip, tmp_path / "b.mp4", not_called, batch=5)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_a_line_tells_how_to_install_it(tmp_path, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert video.is_video(clip), "by its name"
    with pytest.raises(InputError, match=r"PyAV, .* is missing .*`pip install 'drsformer_jax\[vid"):
        video.restore_video(clip, tmp_path / "b.mp4", not_called, batch=5)


def test_the_package_does_not_import_pyav():
    code = "import sys, drsformer_jax.restoring.command; sys.exit('av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


ENDED = """
import os, resource, signal, sys
from pathlib import Path
from drsformer_jax.errors import one_line_errors
from drsformer_jax.images import video

source, target, how = sys.argv[1:]
calls = []

def end(frames):
    calls.append(0)
    if how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    elif len(calls) == 3:
        os.kill(os.getpid(), int(how))
    return frames

with one_line_errors():
    video.restore_video(Path(source), Path(target), end, batch=2)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
@pytest.mark.parametrize(
    ("how", "status", "line"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGTERM, 143, ""),
        (signal.SIGINT, 130, "interrupted\n"),
        ("full", 1, "error: {target}: File too large\n"),
    ],
    ids=["killed", "terminated", "interrupted", "full"],
)
def test_a_process_that_ends_early_leaves_the_target_as_it_was(tmp_path, clip, how, status, line):
    target = tmp_path / "out" / "b.mp4"
    target.parent.mkdir()
    target.write_bytes(b"old")
    name = how if how == "full" else str(int(how))
    command = [sys.executable, "-c", ENDED, clip, target, name]
    ended = subprocess.run(command, cwd=ROOT, check=False, text=True, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (status, line.format(target=target))
    assert target.read_bytes() == b"old"
    others = [path.name for path in target.parent.iterdir() if path != target]
    assert all(name.startswith(".") for name in others)
    assert not others or how == signal.SIGKILL

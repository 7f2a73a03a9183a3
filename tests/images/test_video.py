"""Videos keep their number of frames, times, shape, colors and sound; only the images change."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.errors import InputError
from drsformer_jax.images import video

FFMPEG = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
NTSC = Fraction(30000, 1001)
LEVELS = np.arange(12) * 20 + 10
"""The gray of each frame of `gray_clip`, so that every frame differs from every other."""
SMOOTH = "gradients=s={size}:c0=red:c1=lime:c2=blue:c3=yellow:x0=0:y0=0:n=4:speed=0.02:seed=1:r=25"
ENCODED = ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast", "-qp", "4"]


@pytest.fixture(autouse=True)
def _ffmpeg_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "find_ffmpeg", lambda: FFMPEG)


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    command = [FFMPEG, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def gray_clip(path: Path, *, w: int = 64, h: int = 48, sound: bool = False) -> Path:
    """Writes 12 frames of distinct gray at 30000/1001 a second."""
    frames = np.broadcast_to(LEVELS[:, None, None, None], (12, h, w, 3)).astype(np.uint8)
    tone = ["-f", "lavfi", "-i", "sine=duration=0.4", "-c:a", "aac"] if sound else []
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", NTSC, "-i", "-"]
    encoded = ENCODED if w % 2 == h % 2 == 0 else [*ENCODED, "-pix_fmt", "yuv444p"]
    ffmpeg(*raw, *tone, *encoded, path, data=frames.tobytes())
    return path


def smooth_clip(path: Path, *options: object, size: str = "96x64", count: int = 4) -> Path:
    ffmpeg("-f", "lavfi", "-i", SMOOTH.format(size=size), "-frames:v", count, *ENCODED,
           *options, path)  # fmt: skip
    return path


def decode(path: Path, matrix: str = "bt601") -> tuple[np.ndarray, Fraction]:
    """Reads a video's frames (n, h, w, 3) and rate by another format than the package uses."""
    header = ffmpeg("-i", path, "-frames:v", 1, "-pix_fmt", "yuv444p", "-f", "yuv4mpegpipe", "-")
    fields = {field[:1]: field[1:] for field in header.split(b"\n")[0].decode().split(" ")[1:]}
    scale = f"scale=in_color_matrix={matrix}:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
    raw = ffmpeg("-i", path, "-vf", scale, "-fps_mode", "passthrough", "-pix_fmt", "rgb24",
                 "-f", "rawvideo", "-")  # fmt: skip
    frames = np.frombuffer(raw, np.uint8).reshape(-1, int(fields["H"]), int(fields["W"]), 3)
    return frames, Fraction(fields["F"].replace(":", "/"))


def times(path: Path, stream: str = "v") -> list[Fraction]:
    """Reads when the packets of a stream are shown, in seconds, in order."""
    lines = ffmpeg("-copyts", "-i", path, "-map", f"0:{stream}", "-c", "copy",
                   "-f", "framecrc", "-").decode().splitlines()  # fmt: skip
    base = next(Fraction(line.split()[-1]) for line in lines if line.startswith("#tb"))
    return sorted(int(line.split(",")[2]) * base for line in lines if not line.startswith("#"))


def packets(path: Path, stream: str) -> bytes:
    return ffmpeg("-i", path, "-map", f"0:{stream}", "-c", "copy", "-f", "md5", "-")


def described(path: Path) -> str:
    """What ffmpeg says of a file; without an output it fails, so the status says nothing."""
    return subprocess.run([FFMPEG, "-i", path], stderr=subprocess.PIPE, check=False).stderr.decode()


def psnr(frames: np.ndarray, others: np.ndarray) -> float:
    assert frames.shape == others.shape
    error = np.square(frames.astype(float) - others).mean()
    return 10 * np.log10(255**2 / error)


def same(frames: np.ndarray) -> np.ndarray:
    return frames


def keeping(seen: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A `restore` that changes nothing and notes what it is given."""
    return lambda frames: (seen.append(frames), frames)[1]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv", ".webm"])
def test_frames_their_order_size_and_exact_rate_are_kept(tmp_path, suffix):
    source = gray_clip(tmp_path / "a.mp4")
    target = tmp_path / "deeper" / f"b{suffix}"
    assert video.restore_video(source, target, same, batch=5) == 12
    frames, rate = decode(target)
    assert rate == NTSC
    assert frames.shape == (12, 48, 64, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), LEVELS, atol=2)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_each_frame_is_restored_once_in_batches_of_one_size(tmp_path):
    seen, done = [], []

    def invert(frames: np.ndarray) -> np.ndarray:
        assert frames.dtype == np.uint8
        seen.append(frames[..., 0].mean((1, 2)))
        return 255 - frames

    source, target = gray_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    assert video.restore_video(source, target, invert, batch=5, progress=done.append) == 12
    assert [len(levels) for levels in seen] == [5, 5, 5]
    np.testing.assert_allclose(np.concatenate(seen), [*LEVELS, *LEVELS[-1:].repeat(3)], atol=2)
    assert done == [5, 10, 12]
    frames, _ = decode(target)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 255 - LEVELS, atol=2)
    assert frames.std((1, 2, 3)).max() < 2


def test_a_short_last_batch_and_one_larger_than_the_video_are_filled(tmp_path):
    source, target = gray_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    for batch in (1, 4, 12, 20):
        seen: list[np.ndarray] = []
        assert video.restore_video(source, target, keeping(seen), batch=batch) == 12
        assert {frames.shape for frames in seen} == {(batch, 48, 64, 3)}
        assert len(times(target)) == 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied_packet_by_packet(tmp_path, suffix):
    source, target = gray_clip(tmp_path / "a.mp4", sound=True), tmp_path / f"b{suffix}"
    video.restore_video(source, target, lambda frames: 255 - frames, batch=5)
    assert packets(target, "a") == packets(source, "a")


def test_subtitles_are_copied_between_files_of_one_kind(tmp_path):
    (tmp_path / "a.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nrain\n")
    clip, source = gray_clip(tmp_path / "a.mp4"), tmp_path / "a.mkv"
    ffmpeg("-i", clip, "-i", tmp_path / "a.srt", "-c", "copy", source)
    video.restore_video(source, tmp_path / "b.mkv", same, batch=5)
    video.restore_video(source, tmp_path / "b.mp4", same, batch=5)
    assert packets(tmp_path / "b.mkv", "s") == packets(source, "s")
    assert "Subtitle" not in described(tmp_path / "b.mp4")


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".ts"])
@pytest.mark.parametrize("late", ["v", "a"])
def test_sound_and_images_stay_together(tmp_path, suffix, late):
    clip, source = gray_clip(tmp_path / "a.mp4", sound=True), tmp_path / f"b{suffix}"
    first, second = ("v", "a") if late == "v" else ("a", "v")
    ffmpeg("-itsoffset", "0.123", "-i", clip, "-i", clip, "-map", f"0:{first}",
           "-map", f"1:{second}", "-c", "copy", source)  # fmt: skip
    target = tmp_path / "c.mp4"
    video.restore_video(source, target, same, batch=5)
    before, after = (times(path, "v")[0] - times(path, "a")[0] for path in (source, target))
    assert abs(after - before) <= 0.002
    assert set(np.diff(times(target))) == {1 / NTSC}


def test_a_constant_rate_survives_a_container_that_counts_milliseconds(tmp_path):
    clip, source = gray_clip(tmp_path / "a.mp4"), tmp_path / "a.mkv"
    ffmpeg("-i", clip, "-c", "copy", source)
    assert len(set(np.diff(times(source)))) > 1
    video.restore_video(source, tmp_path / "b.mp4", same, batch=5)
    assert times(tmp_path / "b.mp4") == [index / NTSC for index in range(12)]


def test_times_of_a_variable_rate_are_kept_within_three_milliseconds(tmp_path):
    late = "settb=1/90000,setpts=N*1000+N*N*300"
    source = smooth_clip(tmp_path / "a.mp4", "-vf", late, "-fps_mode", "passthrough",
                         "-enc_time_base", "1/90000", count=12)  # fmt: skip
    expected = np.array([(1000 * n + 300 * n * n) / 90000 for n in range(12)])
    np.testing.assert_allclose(np.array(times(source), float), expected, atol=1e-4)
    for target in (tmp_path / "b.mp4", tmp_path / "b.mkv"):
        assert video.restore_video(source, target, same, batch=5) == 12
        np.testing.assert_allclose(np.array(times(target), float), expected, atol=0.003)


def test_odd_sizes_are_kept(tmp_path):
    source, target = gray_clip(tmp_path / "a.mp4", w=63, h=47), tmp_path / "b.mp4"
    video.restore_video(source, target, same, batch=5)
    frames, _ = decode(target)
    assert frames.shape == (12, 47, 63, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), LEVELS, atol=2)


def test_turned_videos_come_out_upright_and_are_not_turned_again(tmp_path):
    clip, source = smooth_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    ffmpeg("-display_rotation", 90, "-i", clip, "-c", "copy", source)
    seen: list[np.ndarray] = []
    target = tmp_path / "c.mp4"
    video.restore_video(source, target, keeping(seen), batch=4)
    assert [frames.shape for frames in seen] == [(4, 96, 64, 3)]
    assert "rotation" in described(source)
    assert "rotation" not in described(target)
    assert psnr(decode(target)[0], np.rot90(decode(clip)[0], axes=(1, 2))) > 40


def test_pixels_that_are_not_square_stay_so(tmp_path):
    source = smooth_clip(tmp_path / "a.mp4", "-vf", "setsar=4/3")
    video.restore_video(source, tmp_path / "b.mp4", same, batch=4)
    assert "SAR 4:3" in described(tmp_path / "b.mp4")


TO_BT709 = "scale=out_color_matrix=bt709,setparams=colorspace=bt709"
TO_BT601 = "scale=out_color_matrix=bt601,setparams=colorspace=smpte170m"
FULL_RANGE = "scale=out_color_matrix=bt601:out_range=pc,setparams=range=pc"


@pytest.mark.parametrize(
    ("size", "options", "matrix", "tag"),
    [
        ("96x64", [], "bt601", "smpte170m"),
        ("96x64", ["-vf", TO_BT709], "bt709", "smpte170m"),
        ("96x64", ["-vf", FULL_RANGE], "bt601", "smpte170m"),
        ("64x578", [], "bt709", "bt709"),
        ("1280x64", [], "bt709", "bt709"),
        ("1280x64", ["-vf", TO_BT601], "bt601", "bt709"),
    ],
    ids=["small", "small-bt709", "small-full", "high", "wide", "wide-bt601"],
)
def test_colors_are_kept_and_their_matrix_is_named(tmp_path, size, options, matrix, tag):
    source, target = smooth_clip(tmp_path / "a.mp4", *options, size=size), tmp_path / "b.mp4"
    seen: list[np.ndarray] = []
    video.restore_video(source, target, keeping(seen), batch=4)
    before, _ = decode(source, matrix)
    np.testing.assert_allclose(seen[0], before, atol=1)
    assert psnr(decode(target, "bt709" if tag == "bt709" else "bt601")[0], before) > 40
    assert f"yuv420p(tv, {tag}" in described(target)


def test_quality_is_the_encoders_constant_rate_factor(tmp_path):
    source = smooth_clip(tmp_path / "a.mp4", "-vf", "noise=alls=40:allf=t:all_seed=1")
    sizes = []
    for quality in (0, 16, None, 40):
        video.restore_video(source, tmp_path / "b.mp4", same, batch=4, quality=quality)
        sizes.append((tmp_path / "b.mp4").stat().st_size)
    assert sizes[0] > sizes[1] == sizes[2] > 2 * sizes[3]


@pytest.mark.parametrize(
    "name", ["-i.mp4", "a %d.mp4", "http:a.mp4", "concat:a|b.mp4", "a\n'b.mp4", "\N{SNOWMAN}.mp4"]
)
def test_file_names_are_taken_literally(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.move(gray_clip(tmp_path / "clip.mp4"), name)
    target = Path("http:out") / name
    assert video.restore_video(Path(name), target, same, batch=12) == 12
    assert target.is_file()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that a test has started."""
    start, processes = subprocess.Popen, []

    def note(*arguments, **options):
        processes.append(start(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    return processes


@pytest.mark.parametrize("error", [MemoryError("too large"), KeyboardInterrupt()])
def test_a_failure_leaves_the_target_as_it_was_and_no_process(tmp_path, started, error):
    # Long enough to fill the pipes: the programs wait for this process when it fails.
    source = smooth_clip(tmp_path / "a.mp4", size="320x240", count=60)
    target = tmp_path / "out" / "b.mp4"
    target.parent.mkdir()
    target.write_bytes(b"old")
    calls = []

    def fail_late(frames: np.ndarray) -> np.ndarray:
        calls.append(len(frames))
        if len(calls) == 4:
            raise error
        return frames

    started.clear()
    with pytest.raises(type(error)):
        video.restore_video(source, target, fail_late, batch=5)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]
    assert len(started) == 3
    assert all(process.returncode is not None for process in started)


def not_called(frames: np.ndarray) -> np.ndarray:
    raise AssertionError("a source that cannot be read was restored")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b""), "moov atom not found|Invalid data"),
        (lambda path: path.write_text("rain " * 999), "moov atom not found|Invalid data"),
        (lambda path: ffmpeg("-f", "lavfi", "-i", "sine=d=1", path), "matches no streams"),
    ],
    ids=["missing", "folder", "empty", "text", "sound"],
)
def test_a_source_that_is_no_video_is_told_in_one_line(tmp_path, make, reason):
    source = tmp_path / "a.mp4"
    make(source)
    with pytest.raises(InputError) as failure:
        video.restore_video(source, tmp_path / "out" / "b.mp4", not_called, batch=5)
    line = str(failure.value)
    assert line.startswith(f"{source} is no video that can be read (ffmpeg: ")
    assert line.endswith("); expected a whole, undamaged one")
    assert "\n" not in line
    assert any(part in line for part in reason.split("|"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_damaged_source_is_told_before_anything_is_restored(tmp_path, suffix, harm):
    source = tmp_path / f"a{suffix}"
    first = ["-movflags", "+faststart"] if suffix == ".mp4" else []  # else nothing could be read
    smooth_clip(source, "-vf", "noise=alls=40:allf=t:all_seed=1", *first, count=30)
    data = bytearray(source.read_bytes())
    half = len(data) // 2
    if harm == "cut":
        del data[half:]
    else:
        data[half : half + 3000] = bytes(255 - byte for byte in data[half : half + 3000])
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"^\S+ is no video that can be read \(ffmpeg: .+\); exp"):
        video.restore_video(source, tmp_path / "b.mp4", not_called, batch=5)


def test_a_target_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"b\.gif has the extension '\.gif'; expected \.mp4 \.m4v"):
        video.restore_video(tmp_path / "a.mp4", tmp_path / "b.gif", not_called, batch=5)


def test_sound_that_the_target_cannot_hold_is_told_in_one_line(tmp_path, started):
    source, target = gray_clip(tmp_path / "a.mp4", sound=True), tmp_path / "out" / "b.webm"
    started.clear()
    with pytest.raises(InputError) as failure:
        video.restore_video(source, target, same, batch=2)
    assert str(failure.value).startswith(f"{target} cannot be written (ffmpeg: Only VP8 or VP9 or")
    assert str(failure.value).endswith("sound that .webm can hold (.mkv holds nearly any)")
    assert list(target.parent.iterdir()) == []
    assert all(process.returncode is not None for process in started)


KILLED = """
import os, signal, sys
from pathlib import Path
from drsformer_jax.images import video

video.find_ffmpeg = lambda: sys.argv[1]
calls = []

def die(frames):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return frames

video.restore_video(Path(sys.argv[2]), Path(sys.argv[3]), die, batch=2)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_a_killed_process_leaves_the_target_as_it_was(tmp_path):
    source, target = gray_clip(tmp_path / "a.mp4"), tmp_path / "out" / "b.mp4"
    status = subprocess.run(
        [sys.executable, "-c", KILLED, FFMPEG, source, target],
        cwd=Path(__file__).parents[2],
        check=False,
    ).returncode
    assert status == -signal.SIGKILL
    assert all(path.name.startswith(".") for path in target.parent.iterdir())


def test_ffmpeg_is_the_one_on_path_else_the_packages_else_told_to_be_installed(
    tmp_path, monkeypatch
):
    monkeypatch.undo()
    program = tmp_path / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg")
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert video.find_ffmpeg() == str(program)
    program.unlink()
    assert video.find_ffmpeg() == FFMPEG
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match=r"^ffmpeg is not on PATH; .*`pip install drsformer_jax\["):
        video.find_ffmpeg()

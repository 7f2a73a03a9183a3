"""Video through ffmpeg's pipes: every frame restored, all else as it was.

One ffmpeg decodes the source into a Matroska stream of raw frames, another encodes such a stream.
Between the two only the images change: their times and shape pass through as they came.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from drsformer_jax.errors import InputError
from drsformer_jax.files import replacing

_Frame = tuple[bytes, np.ndarray, bytes]
"""An image, uint8 (h, w, 3), between the bytes of the stream before it and, the last, after it."""


class _Container(NamedTuple):
    """How files of one kind are written: the names that ffmpeg has for it and its codec."""

    muxer: str
    codec: tuple[str, ...] = ("-c:v", "libx264")
    quality: int = 16


_VP9 = ("-c:v", "libvpx-vp9", "-b:v", "0", "-row-mt", "1", "-cpu-used", "2")
_CONTAINERS = {
    ".mp4": _Container("mp4"),
    ".m4v": _Container("mp4"),
    ".mov": _Container("mov"),
    ".mkv": _Container("matroska"),
    ".webm": _Container("webm", _VP9, 18),
}
WRITABLE_EXTENSIONS = tuple(_CONTAINERS)
"""What the names of videos that can be written end in."""
VIDEO_EXTENSIONS = (
    *WRITABLE_EXTENSIONS,
    *(".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"),
)
"""What the names of videos that can be read end in."""

_SCALE = "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_TAGS = {"bt709": "bt709", "bt601": "smpte170m"}
"""What the encoder calls the scaler's matrices."""
_CUT_SHORT = re.compile("partial file|ended prematurely")
"""What ffmpeg says, without failing, of a file whose end is missing."""


def find_ffmpeg() -> str:
    """Finds the ffmpeg program: the one on PATH, else that of the package imageio-ffmpeg.

    Raises:
        InputError: if there is neither.
    """
    if on_path := shutil.which("ffmpeg"):
        return on_path
    try:
        return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise InputError(
            "ffmpeg is not on PATH; expected it there, or `pip install drsformer_jax[video]`"
        ) from error


def restore_video(
    source: Path,
    target: Path,
    restore: Callable[[np.ndarray], np.ndarray],
    *,
    batch: int,
    quality: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Restores every frame of a video while the next frames are read and the last are written.

    The number of frames and their times are kept: those at a constant rate (to 333 a second) stay
    exact, those at a variable one move by three milliseconds at most. Turned videos, as phones make
    them, come out upright. Sound is copied as it is, and so are subtitles where both names end
    alike. Frames are restored and written with 8 bits a channel, even those of more; HDR keeps its
    tags, and interlaced images are taken whole. Odd sizes are written as 4:4:4, others as 4:2:0.

    The whole source is decoded once before, so that a damaged file is told ahead of the long work.
    A failure or a killed process leaves `target` as it was.

    Args:
        source: a file that ffmpeg can read; its first video is taken.
        target: a file ending in .mp4, .m4v, .mov, .mkv (H.264) or .webm (VP9).
        restore: maps frames to restored ones, both uint8 (batch, h, w, 3), RGB. It is always given
            `batch` frames: the last ones are followed by copies of the very last.
        batch: frames a call of `restore`.
        quality: the encoder's constant rate factor, lower is better; by default 16, for VP9 18.
        progress: is told after each call how many frames are restored.

    Returns:
        The number of frames.

    Raises:
        InputError: if there is no ffmpeg, or the source is no video, damaged or cut short, or
            ffmpeg cannot write the target: wrong extension, full disk, sound of a foreign kind.
        OSError: if the target's folder cannot be written.
    """
    if target.suffix.lower() not in _CONTAINERS:
        raise InputError(
            f"{target} has the extension {target.suffix!r}; expected {' '.join(_CONTAINERS)}"
        )
    clip = _examine(source)
    with (
        replacing(target) as file,
        # Outside the programs' blocks: once these have ended, no thread waits for a pipe.
        ThreadPoolExecutor(2) as threads,
        _decoder(source, clip) as decoder,
        _encoder(source, target, clip, quality, file.name) as encoder,
    ):
        frames = _frames(decoder.output, clip)
        count = 0
        ahead = threads.submit(_take, frames, batch)
        written = threads.submit(_write, encoder, (), (), ())
        while taken := ahead.result():
            ahead = threads.submit(_take, frames, batch)
            before, images, after = zip(*taken, strict=True)
            restored = restore(np.stack(images + images[-1:] * (batch - len(images))))
            written.result()
            written = threads.submit(_write, encoder, before, restored, after)
            count += len(images)
            progress(count)
        decoder.finish()
        written.result()
        encoder.finish()
    return count


def _take(frames: Iterator[_Frame], batch: int) -> list[_Frame]:
    return list(itertools.islice(frames, batch))


def _write(
    encoder: _Program, before: Iterable[bytes], frames: Iterable[np.ndarray], after: Iterable[bytes]
) -> None:
    """Writes frames between bytes; the frames at the end that have none are left out."""
    try:
        for head, frame, tail in zip(before, frames, after, strict=False):
            opaque = np.full((*frame.shape[:2], 1), 255, np.uint8)
            encoder.input.write(head)
            encoder.input.write(np.concatenate([frame, opaque], axis=2).data)
            encoder.input.write(tail)
    except OSError:  # it has ended, and says why
        encoder.finish()
        raise


class _Program:
    """A running ffmpeg with pipes at both ends, and what is said if it fails."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], what: str, right: str):
        assert process.stdin is not None
        assert process.stdout is not None
        self.input, self.output = process.stdin, process.stdout
        self._process, self._log, self._what, self._right = process, log, what, right

    def finish(self) -> None:
        """Ends the program's input and waits for its own end.

        Raises:
            InputError: if it failed or saw that a file is cut short.
        """
        with contextlib.suppress(OSError):  # a broken pipe, of which the status tells more
            self.input.close()
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        # The first line tells the cause, those after it how the failure spread.
        causes = [line for line in lines if _CUT_SHORT.search(line)] or (lines if status else [])
        if status or causes:
            cause = re.sub(r"^(\[[^]]*\] )+", "", causes[0]) if causes else f"status {status}"
            raise InputError(f"{self._what} (ffmpeg: {cause.strip()}); expected {self._right}")

    def kill(self) -> None:
        """Ends the program, which a finished one bears, and closes its pipes."""
        self._process.kill()
        self._process.wait()
        for stream in (self.input, self.output):
            with contextlib.suppress(OSError):
                stream.close()


@contextlib.contextmanager
def _running(arguments: list[str], what: str, right: str) -> Iterator[_Program]:
    """Runs ffmpeg, which has ended when the block ends, however that comes."""
    command = [find_ffmpeg(), "-nostdin", "-v", "error", *arguments]
    with tempfile.TemporaryFile() as log:  # a pipe would fill up unless somebody read it
        # In a session of its own Ctrl-C does not reach it: this process alone decides its end.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        program = _Program(process, log, what, right)
        try:
            yield program
        finally:
            program.kill()


_RAW = [
    *("-fps_mode", "passthrough", "-enc_time_base", "1:1000"),  # no frame dropped, doubled or moved
    *("-c:v", "rawvideo", "-f", "matroska", "-write_crc32", "0", "-"),
]


@dataclass(frozen=True)
class _Clip:
    """What the pipes must know of a video: its upright size, frames a second and start.

    `start` is when the first frame is shown, in milliseconds after the file's earliest stream.
    `tagged` says whether the file names the matrix of its colors.
    """

    width: int
    height: int
    rate: Fraction
    start: int
    tagged: bool

    @property
    def matrix(self) -> str:
        """The matrix that players take for this size unless a tag says otherwise."""
        return "bt709" if self.width >= 1280 or self.height > 576 else "bt601"


def _examine(source: Path) -> _Clip:
    """Decodes a whole video and reads of its first frame what there is to know.

    Raises:
        InputError: if it is no video, damaged or cut short.
    """
    arguments = ["-xerror", "-i", f"file:{source}"]
    arguments += ["-map", "0:V:0", "-frames:v", "1", "-pix_fmt", "yuv420p", *_RAW]
    # V is video without cover images. ffmpeg counts the times of an MPEG stream from the earliest
    # of the parts in use, so that sound is in use here, and the old video when the new is encoded.
    arguments += ["-map", "0:V:0", "-map", "0:a?", "-c:a", "copy", "-fps_mode", "passthrough"]
    arguments += ["-f", "null", "-"]
    what, right = f"{source} is no video that can be read", "a whole, undamaged one"
    values: dict[int, int] = {}
    starts = []
    with _running(arguments, what, right) as ffmpeg:
        for name, _, content in _elements(ffmpeg.output):
            values[name] = int.from_bytes(content)
            if name in _BLOCKS:  # the track's number, the time after its cluster's, flags, pixels
                starts.append(values[_CLUSTER_TIME] + int.from_bytes(content[1:3], signed=True))
        ffmpeg.finish()
    if not starts:
        raise InputError(f"{what} (it has no frame); expected {right}")
    frame_time = values.get(_FRAME_TIME, 40_000_000)  # ns; the file of a single frame has none
    rate = Fraction(10**9, frame_time).limit_denominator(1001)
    tagged = values.get(_MATRIX, _UNTAGGED) != _UNTAGGED
    return _Clip(values[_WIDTH], values[_HEIGHT], rate, starts[0], tagged)


def _decoder(source: Path, clip: _Clip) -> contextlib.AbstractContextManager[_Program]:
    scale = _SCALE if clip.tagged else f"{_SCALE}:in_color_matrix={clip.matrix}"
    arguments = ["-xerror", "-i", f"file:{source}", "-map", "0:V:0"]
    arguments += ["-vf", scale, "-pix_fmt", "rgba", *_RAW]  # RGBA is the only RGB of Matroska
    return _running(arguments, f"{source} cannot be read to its end", "a whole, undamaged video")


def _encoder(
    source: Path, target: Path, clip: _Clip, quality: int | None, unfinished: str
) -> contextlib.AbstractContextManager[_Program]:
    suffix = target.suffix.lower()
    kind = _CONTAINERS[suffix]
    # The pipe's times are milliseconds after the first frame, up to 1.5 off. Rounded to a part of
    # a frame that is twice as long, a constant rate is exact again and other times hardly change.
    parts = max(1, int(Fraction(1000, 3) / clip.rate))
    tick = 1 / (clip.rate * parts)
    start = round(Fraction(clip.start, 1000) / tick) * tick
    odd = clip.width % 2 or clip.height % 2
    scale = f"{_SCALE}:out_color_matrix={clip.matrix}:out_range=tv"
    arguments = ["-f", "matroska", "-itsoffset", f"{float(start):.6f}", "-i", "pipe:0"]
    arguments += ["-i", f"file:{source}"]
    arguments += ["-map", "0:v", "-map", "1:a?", "-c:a", "copy", "-map_metadata", "1"]
    if source.suffix.lower() == suffix:
        arguments += ["-map", "1:s?", "-c:s", "copy"]
    arguments += ["-vf", scale, "-pix_fmt", "yuv444p" if odd else "yuv420p"]
    arguments += ["-fps_mode", "passthrough", "-enc_time_base", str(tick)]
    arguments += ["-colorspace", _TAGS[clip.matrix], *kind.codec]
    arguments += ["-crf", str(kind.quality if quality is None else quality)]
    arguments += ["-f", kind.muxer, "-y", f"file:{unfinished}"]
    arguments += ["-map", "1:V:0", "-map", "1:a?", "-c", "copy", "-f", "null", "-"]
    right = f"room on the disk and sound that {suffix} can hold (.mkv holds nearly any)"
    return _running(arguments, f"{target} cannot be written", right)


# Elements of Matroska (RFC 9559): identifier, size, content. A parent's content is elements.
_SEGMENT, _CLUSTER, _GROUP, _TRACKS, _TRACK = 0x18538067, 0x1F43B675, 0xA0, 0x1654AE6B, 0xAE
_VIDEO, _COLOR = 0xE0, 0x55B0
_PARENTS = {_SEGMENT, _CLUSTER, _GROUP, _TRACKS, _TRACK, _VIDEO, _COLOR}
_BLOCKS = {0xA1, 0xA3}
_WIDTH, _HEIGHT, _MATRIX, _FRAME_TIME, _CLUSTER_TIME = 0xB0, 0xBA, 0x55B1, 0x23E383, 0xE7
_UNTAGGED = 2


def _frames(stream: IO[bytes], clip: _Clip) -> Iterator[_Frame]:
    """Reads frames, and all of the stream that is between them."""
    between = b""
    last: tuple[bytes, np.ndarray] | None = None
    for name, start, content in _elements(stream):
        if name in _BLOCKS and len(content) == 4 + 4 * clip.height * clip.width:
            if last is not None:
                yield *last, b""
            rgba = np.frombuffer(content, np.uint8, offset=4)
            image = rgba.reshape(clip.height, clip.width, 4)[..., :3]
            last, between = (between + start + content[:4], image), b""
        else:
            between += start + content
    if last is not None:
        yield *last, between


def _elements(stream: IO[bytes]) -> Iterator[tuple[int, bytes, bytes]]:
    """Reads identifiers, starts (identifier and size as stored) and contents.

    Parents come without content, and what they hold after them.
    """
    while name := _number(stream):
        size = _number(stream)
        identifier = int.from_bytes(name)
        length = int.from_bytes(size) & ((1 << 7 * len(size)) - 1)
        yield identifier, name + size, b"" if identifier in _PARENTS else stream.read(length)


def _number(stream: IO[bytes]) -> bytes:
    """Reads a number of 1 to 8 bytes; the leading zero bits of the first tell how many follow."""
    first = stream.read(1)
    return first + stream.read(8 - first[0].bit_length()) if first else b""

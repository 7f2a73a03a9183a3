"""Video through PyAV: every frame is restored, all else is copied."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from drsformer_jax.errors import InputError, held_signals
from drsformer_jax.files import replacing
from drsformer_jax.images.formats import format_of, image_file
from drsformer_jax.images.pixels import image_size
from drsformer_jax.images.video_reader import (
    MATRICES,
    Image,
    Reader,
    import_av,
    opened,
    scaled,
    videos_of,
)


class _Codec(NamedTuple):
    encoder: str
    quality: int
    options: dict[str, str]


_H264 = _Codec("libx264", 16, {})
_HEVC = _Codec("libx265", 16, {"x265-params": "log-level=none"})
_VP9 = _Codec("libvpx-vp9", 18, {"row-mt": "1", "cpu-used": "2"})
_CONTAINERS: dict[str, tuple[str, dict[int, _Codec]]] = {
    ".mp4": ("mp4", {8: _H264, 10: _HEVC}),
    ".m4v": ("mp4", {8: _H264, 10: _HEVC}),
    ".mov": ("mov", {8: _H264, 10: _HEVC}),
    ".mkv": ("matroska", {8: _H264, 10: _HEVC}),
    ".webm": ("webm", {8: _VP9}),
}
"""How files of a name are written: the muxer, and the codecs by bits a channel."""
VIDEO_EXTENSIONS = (
    *_CONTAINERS,
    *(".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".f4v"),
    *(".3gp", ".3g2", ".ogv", ".mxf"),
    *(".264", ".h264", ".265", ".h265", ".hevc", ".m2v", ".mjpg", ".mjpeg"),
)
"""What the names of videos end in; a video of another name is known by its content."""
_WITHOUT_DURATION = {"h264", "hevc", "m4v", "mjpeg", "mpegvideo", "obu", "matroska,webm"}
"""What libav calls files of nothing but frames, and those that may be of a live stream."""
_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")
"""Of sound with 1 to 8 channels."""

_CONTAINER_DATA = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_MOST_ITEMS = 1000
"""Packets that are in memory together while audio continues without frames."""


def is_video(path: Path) -> bool:
    """Whether a file holds a video, by its content; by its name where the content says nothing."""
    if not path.is_file():
        return False
    extension = path.suffix.lower()
    named = extension in VIDEO_EXTENSIONS
    with contextlib.suppress(InputError):
        image_size(path)
        return extension in (".mjpg", ".mjpeg")  # A JPEG image, or one after another.
    with contextlib.suppress(InputError), image_file(path) as file:
        if not named and format_of(file.read(32)):  # A damaged image, of which libav may read some.
            return False
    with contextlib.suppress(InputError), opened(path) as container:
        # libav reads images too, even broken ones, but gives no duration of them.
        lasts = container.duration is not None or container.format.name in _WITHOUT_DURATION
        if lasts and videos_of(container):
            return True
    return named


def restore_video(
    source: Path,
    target: Path,
    restore: Callable[[np.ndarray], np.ndarray],
    *,
    batch: int,
    quality: int | None = None,
    progress: Callable[[int, int | None], object] = lambda count, total: None,
) -> tuple[int, list[str]]:
    """Restores every frame of a video while the next frames are read and the last are written.

    Frames keep their times, constant or variable, to the tick of the containers; where the source
    counts milliseconds and the target does not, a constant rate becomes exact. Rotated and mirrored
    videos, as phones make them, come out upright. Color matrix, range, primaries and transfer are
    kept. Frames of more than 8 bits a channel are restored with 16 bits and written with 10. Odd
    sizes are written as 4:4:4, others as 4:2:0. Sound, subtitles, attachments, chapters and
    metadata are copied. The clock of an MPEG stream, which starts anywhere and may jump, is made to
    start at zero and run on. A failure or a killed process leaves `target` as it was.

    Args:
        source: a file that libav can read; its first video is taken.
        target: a file ending in .mp4, .m4v, .mov, .mkv (H.264, for 10 bits HEVC) or .webm (VP9).
        restore: maps frames to restored ones, both RGB of shape (batch, h, w, 3), uint8 or, for
            more than 8 bits a channel, uint16. It is always given `batch` frames: the last ones are
            followed by copies of the very last.
        batch: frames a call of `restore`.
        quality: the encoder's constant rate factor, lower is better; default: 16, for VP9 18.
        progress: is called after each batch with the number of frames restored and, where the file
            has it, of all.

    Returns:
        The number of frames, and lines about what could not be read or kept.

    Raises:
        InputError: if PyAV or an encoder is missing, no frame of the source can be decoded, or the
            target has the wrong extension or cannot hold the sound.
        OSError: if the file system fails, for instance because it is full.
    """
    if target.suffix.lower() not in _CONTAINERS:
        raise InputError(
            f"{target} has the extension {target.suffix!r}; expected {' '.join(_CONTAINERS)}"
        )
    with opened(source) as container:
        reader = Reader(source, container)
        av = import_av()
        try:
            with (
                replacing(target) as file,
                contextlib.closing(_Writer(target, file, reader, quality)) as writer,
                # Innermost: when the containers are closed, no thread uses them.
                ThreadPoolExecutor(2) as threads,
            ):
                count = 0
                for count in _restored(reader, writer, restore, batch, threads):
                    progress(count, reader.total)
                writer.finish()
        except OSError:
            raise
        except av.FFmpegError as error:
            raise InputError(
                f"{target} cannot be written ({error.strerror}); expected another kind of file"
            ) from None
        notes = reader.notes + writer.notes
    return count, [line.format(number) for line, number in notes.items()]


def _restored(
    reader: Reader,
    writer: _Writer,
    restore: Callable[[np.ndarray], np.ndarray],
    batch: int,
    threads: ThreadPoolExecutor,
) -> Iterator[int]:
    """Restores batch after batch, between a thread that reads and one that writes.

    Yields:
        The number of frames that are restored, after each batch.
    """

    def submit(*call: Any) -> Future[Any]:
        with held_signals():
            return threads.submit(*call)

    count = 0
    ahead = submit(_take, reader.items, batch)
    written = submit(writer.write, (), ())
    while taken := ahead.result():
        ahead = submit(_take, reader.items, batch)
        images = [item.pixels for item in taken if isinstance(item, Image)]
        padded = images + images[-1:] * (batch - len(images))
        restored = restore(np.stack(padded)) if images else ()
        written.result()
        written = submit(writer.write, taken, restored)
        count += len(images)
        yield count
    written.result()


def _no_room(target: Path, reader: Reader, what: str) -> InputError:
    return InputError(
        f"{target} cannot hold the sound of {reader.source} ({what}); "
        "expected another extension (.mkv holds nearly any sound)"
    )


def _take(items: Iterator[Any], batch: int) -> list[Any]:
    """Takes the items up to the last frame of a batch."""
    taken = []
    for item in itertools.islice(items, _MOST_ITEMS):
        taken.append(item)
        batch -= isinstance(item, Image)
        if batch == 0:
            break
    return taken


class _Writer:
    """Encodes frames and copies packets into a new file.

    Attributes:
        notes: as those of the reader.
    """

    def __init__(self, target: Path, file: BinaryIO, reader: Reader, quality: int | None):
        self._av = import_av()
        self.notes: Counter[str] = Counter()
        self._look, container = reader.look, reader.container
        muxer, codecs = _CONTAINERS[target.suffix.lower()]
        bits = 8 if reader.bits == 8 else max(codecs)
        if reader.bits > bits:
            self.notes[f"{reader.bits} bits a channel are written as {bits}"] = 1
        self._counts_durations = muxer in ("mp4", "mov")
        # Where the source rounds a constant rate to milliseconds, frames return to their grid.
        self._tick, self._step = reader.video.time_base, Fraction(0)
        fine = math.lcm(self._tick.denominator, reader.rate.numerator)
        if self._counts_durations and self._tick >= Fraction(1, 1000) and fine <= 10**6:
            self._tick, self._step = Fraction(1, fine), 1 / reader.rate
        self._gap = 0 if muxer in ("matroska", "webm") else 1  # They allow equal time stamps.
        self._start: Fraction | None = None
        self._span = 0
        self._first_dts: int | None = None
        self._last: dict[int, int] = {}
        self._scaler = self._av.video.reformatter.VideoReformatter()
        self._output = self._av.open(file, "w", format=muxer)
        kept = container.metadata.keys() - _CONTAINER_DATA
        self._output.metadata.update({key: container.metadata[key] for key in kept})
        self._output.set_chapters(container.chapters())
        encoder, usual, options = codecs[bits]
        sampling = "444" if self._look["width"] % 2 or self._look["height"] % 2 else "420"
        try:
            self._video = self._output.add_stream(
                encoder,
                reader.rate,
                {"crf": str(usual if quality is None else quality), **options},
                time_base=self._tick,
                pix_fmt=f"yuv{sampling}p" + ("10le" if bits == 10 else ""),
                thread_type="FRAME",  # Slices, which PyAV sets, compress less.
                **self._look,
            )
        except self._av.codec.codec.UnknownCodecError:
            raise InputError(
                f"{target} needs the encoder {encoder}, which this PyAV lacks; "
                "expected PyAV as `pip install 'drsformer_jax[video]'` installs it"
            ) from None
        self._video.flags |= self._av.codec.context.Flags.frame_duration
        if encoder == "libx265" and muxer != "matroska":
            self._video.codec_tag = "hvc1"  # Apple's players know no other.
        if language := reader.video.metadata.get("language"):
            self._video.metadata["language"] = language
        others = [stream for stream in container.streams if stream.index != reader.video.index]
        self._copies = {stream.index: self._copy(stream, reader, target) for stream in others}
        try:
            self._output.start_encoding()  # Writes the head, before anything is restored.
        except self._av.ArgumentError:
            if not any(stream.type == "audio" for stream in others):
                raise
            raise _no_room(target, reader, "of a codec that it rejects") from None

    def _copy(self, stream: Any, reader: Reader, target: Path) -> Any:
        """Adds a stream as another one; None where the container cannot hold it."""
        name = f"{stream.type} {getattr(stream, 'name', None) or ''}".strip()
        # PyAV adds attachments to any file, and then fails to write it.
        matroska = self._output.format.name == "matroska"
        fits = stream.type in ("audio", "subtitle") or (matroska and stream.type == "attachment")
        audio = stream.type == "audio" and stream.codec_context is not None
        if audio and not stream.rate:  # Nor could any container hold it.
            self.notes[f"the {name} of the source is left out: it begins too late, or never"] = 1
            return None
        try:
            if not fits:
                raise ValueError(stream.type)
            copy = self._output.add_stream_from_template(stream)
        except ValueError:
            if stream.type == "audio":
                raise _no_room(target, reader, name) from None
            self.notes[f"the {name} of the source is left out"] = 1
            return None
        if audio and stream.layout.name == f"{stream.channels} channels":
            # AVI and Matroska do not say which, and MP4 finds that out at the very end.
            if stream.channels <= len(_LAYOUTS):
                copy.codec_context.layout = _LAYOUTS[stream.channels - 1]
            elif self._output.format.name == "mp4":
                raise _no_room(target, reader, f"{name} of {stream.channels} channels")
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        return copy

    def write(self, items: Iterable[Any], restored: Iterable[np.ndarray]) -> None:
        """Writes packets as they are and, in place of the frames, the restored ones."""
        pixels = iter(restored)
        for item in items:
            if isinstance(item, Image):
                self._mux(self._video.encode(self._frame(next(pixels), item)))
            elif copy := self._copies[item.stream_index]:
                item.dts = self._later(item.stream_index, item.dts, self._gap)
                if item.pts is not None:
                    item.pts = max(item.pts, item.dts)
                item.stream = copy
                try:
                    self._output.mux(item)
                except self._av.InvalidDataError:
                    self.notes["{} damaged packets were skipped"] += 1

    def finish(self) -> None:
        """Writes what the encoder holds."""
        self._mux(self._video.encode(None), last=True)

    def close(self) -> None:
        """Ends the file."""
        self._output.close()

    def _mux(self, packets: list[Any], last: bool = False) -> None:
        """Writes encoded frames."""
        if packets and self._first_dts is None:
            self._first_dts = packets[0].dts
        if packets and last and self._counts_durations:
            # The packets' durations are the video's, and players show no frame that is later. With
            # a variable rate the last packet's own is too short: it holds an earlier frame.
            rest = self._span - (packets[-1].dts - self._first_dts)
            packets[-1].duration = max(packets[-1].duration or 0, rest)
        self._output.mux(packets)

    def _frame(self, pixels: np.ndarray, item: Image) -> Any:
        """Converts restored RGB to what is encoded, with the time of its frame."""
        kind = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        frame = scaled(
            self._scaler,
            self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), kind),
            self._look["width"],
            self._look["height"],
            self._video.pix_fmt,
            dst_colorspace=MATRICES[self._look["colorspace"]],
            dst_color_range=self._look["color_range"],
        )
        time, duration = item.time, item.duration
        self._start = time if self._start is None else self._start
        if self._step:
            near = self._start + round((time - self._start) / self._step) * self._step
            time = near if abs(near - time) <= Fraction(1, 1000) else time
            duration = self._step if abs(self._step - duration) <= Fraction(1, 1000) else duration
        frame.time_base = self._tick
        frame.pts = self._later(-1, round(time / self._tick))
        frame.duration = round(duration / self._tick)
        self._span = frame.pts + frame.duration - round(self._start / self._tick)
        return frame

    def _later(self, index: int, stamp: int, gap: int = 1) -> int:
        """A time stamp after the last one of its stream, as encoders and muxers need."""
        self._last[index] = max(stamp, self._last.get(index, stamp - gap) + gap)
        return self._last[index]

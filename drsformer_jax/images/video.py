"""Video through PyAV: every frame is restored, all else is copied.

PyAV is imported where it is used: without it, the rest of the package works.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from drsformer_jax.errors import InputError, reason
from drsformer_jax.files import replacing
from drsformer_jax.images.pixels import image_size


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
)
"""What the names of videos end in; a video of another name is known by its content."""

_UNSPECIFIED, _BT709, _SMPTE170M, _LIMITED, _FULL = 2, 1, 6, 1, 2
_MATRICES = {_BT709: 1, 4: 4, 5: 5, _SMPTE170M: 5, 7: 7, 9: 9}
"""Color matrices, by their numbers in ITU-T H.273, and the scaler's numbers for them."""
_HDR_DATA = {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DOVI_METADATA"}
_CONTAINER_DATA = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_MOST_ITEMS = 1000
"""Packets that are in memory together where sound goes on without frames."""


class _Image(NamedTuple):
    """A frame: RGB of shape (h, w, 3), and when it is shown for how long, in seconds."""

    pixels: np.ndarray
    time: Fraction
    duration: Fraction


def is_video(path: Path) -> bool:
    """Whether a file holds a video, by its content; by its name where the content says nothing."""
    if not path.is_file():
        return False
    with contextlib.suppress(InputError):
        image_size(path)
        return False
    with contextlib.suppress(InputError), _opened(path) as container:
        # libav reads images too, even broken ones, but tells no duration of them.
        if container.duration is not None and _videos(container):
            return True
    return path.suffix.lower() in VIDEO_EXTENSIONS


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
            tells it, of all.

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
    with _opened(source) as container:
        reader = _Reader(source, container)
        av = _av()
        try:
            with (
                replacing(target) as file,
                contextlib.closing(_Writer(target, file, reader, quality)) as writer,
                # Innermost: when the containers are closed, no thread uses them.
                ThreadPoolExecutor(2) as threads,
            ):
                count = 0
                ahead = threads.submit(_take, reader.items, batch)
                written = threads.submit(writer.write, (), ())
                while taken := ahead.result():
                    ahead = threads.submit(_take, reader.items, batch)
                    images = [item.pixels for item in taken if isinstance(item, _Image)]
                    padded = images + images[-1:] * (batch - len(images))
                    restored = restore(np.stack(padded)) if images else ()
                    written.result()
                    written = threads.submit(writer.write, taken, restored)
                    count += len(images)
                    progress(count, reader.total)
                written.result()
                writer.finish()
        except OSError:
            raise
        except av.FFmpegError as error:
            raise InputError(
                f"{target} cannot be written ({error.strerror}); expected another kind of file"
            ) from None
        notes = reader.notes + writer.notes
    return count, [line.format(number) for line, number in notes.items()]


def _take(items: Iterator[Any], batch: int) -> list[Any]:
    """Takes the items up to the last frame of a batch."""
    taken = []
    for item in itertools.islice(items, _MOST_ITEMS):
        taken.append(item)
        batch -= isinstance(item, _Image)
        if batch == 0:
            break
    return taken


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"PyAV, which reads videos, is missing ({reason(error)}); "
            "expected `pip install 'drsformer_jax[video]'`"
        ) from None
    return av


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[Any]:
    """Opens a container by its content: libav is told no name, which it might take for a URL.

    Raises:
        InputError: if PyAV is missing or libav cannot read the file.
    """
    av = _av()
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(source, "rb", buffering=0))
            file.name = ""
            container = stack.enter_context(av.open(file, "r", metadata_errors="replace"))
        except (OSError, av.FFmpegError) as error:
            raise InputError(
                f"{source} is no video that can be read ({error.strerror}); expected one"
            ) from None
        yield container


def _videos(container: Any) -> list[Any]:
    """The streams of video; a cover image is none."""
    cover = _av().stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


class _Reader:
    """Reads frames, and the packets of all other streams, in the order of the file.

    Attributes:
        look: what an encoder is told of the first frame: size upright, shape of the pixels, and
            color tags by their numbers in ITU-T H.273.
        bits: bits a channel.
        items: the frames and packets.
        total: the number of frames, where the file tells it.
        notes: lines, and the numbers that belong in them.
    """

    def __init__(self, source: Path, container: Any):
        self._av, self.source, self.container = _av(), source, container
        self.notes: Counter[str] = Counter()
        videos = _videos(container)
        if not videos:
            raise InputError(f"{source} holds no video; expected one")
        self.video = videos[0]
        self.rate = self.video.guessed_rate or Fraction(25)
        self._seconds = Fraction(container.duration or 0, self._av.time_base)
        self.total = self.video.frames or round(self._seconds * self.rate) or None
        self._scaler = self._av.video.reformatter.VideoReformatter()
        self._due = 0
        self.look: dict[str, Any] = {}
        items, before = self._items(), []
        while not self.look:
            if (item := next(items, None)) is None:
                raise InputError(f"{source} has no frame that can be decoded; expected a video")
            before.append(item)
        self.items = itertools.chain(before, items)

    def _items(self) -> Iterator[Any]:
        for packet in itertools.chain(self._packets(), [None]):
            if packet is None or packet.stream_index == self.video.index:
                try:
                    yield from map(self._image, self.video.decode(packet))
                except MemoryError:
                    raise
                except self._av.FFmpegError:
                    self.notes["{} damaged packets were skipped"] += 1
            else:
                yield packet

    def _packets(self) -> Iterator[Any]:
        """Reads packets; a clock that may start anywhere and jump starts at zero and runs on."""
        jumps = self.container.format.flags & self._av.format.Flags.ts_discont.value
        start = Fraction(self.container.start_time or 0, self._av.time_base)
        shift = -start if jumps else Fraction(0)
        due: dict[int, Fraction] = {}
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:
                self.notes[f"the source cannot be read to its end ({error.strerror})"] = 1
                break
            if packet is None:
                break
            if not packet.size and packet.dts is None:  # the end of a stream
                continue
            base, index = packet.time_base, packet.stream_index
            stamp = packet.pts if packet.dts is None else packet.dts
            expected = due.get(index, Fraction(0))
            time = expected if stamp is None else stamp * base + shift
            continuous = index in due and packet.stream.type in ("video", "audio")
            if jumps and continuous and not -0.1 < time - expected < 10:
                shift += expected - time
                time = expected
            due[index] = time + (packet.duration or 0) * base
            packet.dts = round(time / base)
            if self.container.format.name == "avi" and index == self.video.index:
                packet.pts = None  # AVI stores no times; libav's guess is wrong with B-frames.
            if packet.pts is not None:
                packet.pts += round(shift / base)
            yield packet
        missing = self._seconds - (max(due.values(), default=start) - start)
        if missing > 0.5 and not jumps:
            self.notes[f"the source is cut short: {float(missing):.1f} s are missing"] = 1

    def _image(self, frame: Any) -> _Image:
        """Converts a frame to RGB, upright."""
        kinds = {data.type.name: data for data in frame.side_data}
        across, turn, _, back, down = 1, 0, 0, 0, 1
        if "DISPLAYMATRIX" in kinds:  # x' = across x + back y, y' = turn x + down y
            across, turn, _, back, down = np.frombuffer(kinds["DISPLAYMATRIX"], np.int32)[:5]
        turned = abs(turn) > abs(across)
        if not self.look:
            self._look_at(frame, turned)
        size = self.look["width"], self.look["height"]
        size = size[::-1] if turned else size
        self.notes["{} frames of another size were scaled"] += (frame.width, frame.height) != size
        self.notes["{} damaged frames were restored as they are"] += frame.is_corrupt
        self.notes["{} interlaced frames were restored whole"] += frame.interlaced_frame
        self.notes["metadata of HDR in {} frames is not kept"] += bool(_HDR_DATA & kinds.keys())
        matrix = None if frame.format.is_rgb else _MATRICES[self.look["colorspace"]]
        kind = "rgb24" if self.bits == 8 else "rgb48le"
        rgb = _scaled(self._scaler, frame, *size, kind, src_colorspace=matrix)
        pixels = rgb.to_ndarray()
        if turned:
            pixels, across, down = pixels.swapaxes(0, 1), back, turn
        pixels = pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
        base = self.video.time_base
        stamps = (frame.pts, frame.dts, self._due)
        stamp = next(stamp for stamp in stamps if stamp is not None)
        duration = frame.duration * base or 1 / self.rate
        self._due = stamp + round(duration / base)
        return _Image(pixels, stamp * base, duration)

    def _look_at(self, frame: Any, turned: bool) -> None:
        """Notes how the first frame is; a missing matrix is the one that players take."""
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        aspect = self.video.sample_aspect_ratio or Fraction(0)
        matrix = int(frame.colorspace)
        if matrix == _UNSPECIFIED or frame.format.is_rgb:
            matrix = _BT709 if width >= 1280 or height > 576 else _SMPTE170M
        if matrix not in _MATRICES:
            raise InputError(
                f"{self.source} has color matrix {matrix} of ITU-T H.273; "
                f"expected one of {' '.join(map(str, _MATRICES))}"
            )
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        self.bits = max(component.bits for component in frame.format.components)
        self.look = {
            "width": width,
            "height": height,
            "sample_aspect_ratio": 1 / aspect if turned and aspect else aspect,
            "colorspace": matrix,
            "color_range": _FULL if full and not frame.format.is_rgb else _LIMITED,
            "color_primaries": int(frame.color_primaries),
            "color_trc": int(frame.color_trc),
        }


def _scaled(scaler: Any, frame: Any, width: int, height: int, kind: str, **colors: Any) -> Any:
    """Converts a frame to another size or kind of pixels, as exactly as the scaler can."""
    flags = _av().video.reformatter.Interpolation
    exact = flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP
    return scaler.reformat(frame, width, height, kind, interpolation=exact, **colors)


class _Writer:
    """Encodes frames and copies packets into a new file.

    Attributes:
        notes: as those of the reader.
    """

    def __init__(self, target: Path, file: BinaryIO, reader: _Reader, quality: int | None):
        self._av = _av()
        self.notes: Counter[str] = Counter()
        self._look, container = reader.look, reader.container
        muxer, codecs = _CONTAINERS[target.suffix.lower()]
        bits = 8 if reader.bits == 8 else max(codecs)
        if reader.bits > bits:
            self.notes[f"{reader.bits} bits a channel are written as {bits}"] = 1
        # Where the source rounds a constant rate to milliseconds, frames return to their grid.
        self._tick, self._step = reader.video.time_base, Fraction(0)
        fine = math.lcm(self._tick.denominator, reader.rate.numerator)
        if muxer in ("mp4", "mov") and self._tick >= Fraction(1, 1000) and fine <= 10**6:
            self._tick, self._step = Fraction(1, fine), 1 / reader.rate
        self._start: Fraction | None = None
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

    def _copy(self, stream: Any, reader: _Reader, target: Path) -> Any:
        """Adds a stream as another one; None where the container cannot hold it."""
        name = f"{stream.type} {getattr(stream, 'name', None) or ''}".strip()
        try:
            if stream.type not in ("audio", "subtitle", "attachment"):
                raise ValueError(stream.type)
            copy = self._output.add_stream_from_template(stream)
        except ValueError:
            if stream.type == "audio":
                raise InputError(
                    f"{target} cannot hold the sound of {reader.source} ({name}); "
                    "expected another extension (.mkv holds nearly any sound)"
                ) from None
            self.notes[f"the {name} of the source is left out"] = 1
            return None
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        return copy

    def write(self, items: Iterable[Any], restored: Iterable[np.ndarray]) -> None:
        """Writes packets as they are and, in place of the frames, the restored ones."""
        pixels = iter(restored)
        for item in items:
            if isinstance(item, _Image):
                self._output.mux(self._video.encode(self._frame(next(pixels), item)))
            elif copy := self._copies[item.stream_index]:
                item.dts = self._later(item.stream_index, item.dts)
                if item.pts is not None:
                    item.pts = max(item.pts, item.dts)
                item.stream = copy
                try:
                    self._output.mux(item)
                except self._av.InvalidDataError:
                    self.notes["{} damaged packets were skipped"] += 1

    def finish(self) -> None:
        """Writes what the encoder holds."""
        self._output.mux(self._video.encode(None))

    def close(self) -> None:
        """Ends the file."""
        self._output.close()

    def _frame(self, pixels: np.ndarray, item: _Image) -> Any:
        """Converts restored RGB to what is encoded, with the time of its frame."""
        kind = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        frame = _scaled(
            self._scaler,
            self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), kind),
            self._look["width"],
            self._look["height"],
            self._video.pix_fmt,
            dst_colorspace=_MATRICES[self._look["colorspace"]],
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
        return frame

    def _later(self, index: int, stamp: int) -> int:
        """A time stamp after the last one of its stream, as encoders and muxers need."""
        self._last[index] = max(stamp, self._last.get(index, stamp - 1) + 1)
        return self._last[index]

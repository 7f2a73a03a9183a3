"""Reading videos through PyAV: frames upright in RGB, and the packets of all that is copied.

PyAV is imported where it is used: without it, the rest of the package works.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drsformer_jax.errors import InputError, reason

_UNSPECIFIED, _BT709, _SMPTE170M, _LIMITED, _FULL = 2, 1, 6, 1, 2
MATRICES = {_BT709: 1, 4: 4, 5: 5, _SMPTE170M: 5, 7: 7, 9: 9}
"""Color matrices, by their numbers in ITU-T H.273, and the scaler's numbers for them."""
_SECONDS, _BYTES = 60, 100_000_000
"""How far libav looks for the first packets of each stream, which say what it is."""
_HDR_DATA = {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DOVI_METADATA"}


class Image(NamedTuple):
    """A frame: RGB of shape (h, w, 3), and when it is shown for how long, in seconds."""

    pixels: np.ndarray
    time: Fraction
    duration: Fraction


def import_av() -> Any:
    """Imports PyAV, or raises an InputError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"PyAV, which reads videos, is missing ({reason(error)}); "
            "expected `pip install 'drsformer_jax[video]'`"
        ) from None
    return av


@contextlib.contextmanager
def opened(source: Path) -> Iterator[Any]:
    """Opens a container by its content: libav gets no name, which it might take for a URL.

    Raises:
        InputError: if PyAV is missing or libav cannot read the file.
    """
    av = import_av()
    # PyAV 19 has no such option, and hands metadata that is not UTF-8 on as it is.
    options = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    look = {"analyzeduration": str(_SECONDS * 10**6), "probesize": str(_BYTES)}
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(source, "rb", buffering=0))
            file.name = ""
            container = stack.enter_context(av.open(file, "r", options=look, **options))
        except (OSError, av.FFmpegError) as error:
            raise InputError(
                f"{source} is no video that can be read ({error.strerror}); expected one"
            ) from None
        yield container


def videos_of(container: Any) -> list[Any]:
    """The streams of video; a cover image is none."""
    cover = import_av().stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


class Reader:
    """Reads frames, and the packets of all other streams, in the order of the file.

    Attributes:
        look: what an encoder needs of the first frame: size upright, shape of the pixels, and
            color tags by their numbers in ITU-T H.273.
        bits: bits a channel.
        items: the frames and packets.
        total: the number of frames, if the file has it.
        notes: lines, and the numbers that belong in them.
    """

    def __init__(self, source: Path, container: Any):
        self._av, self.source, self.container = import_av(), source, container
        self.notes: Counter[str] = Counter()
        videos = videos_of(container)
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

    def _image(self, frame: Any) -> Image:
        """Converts a frame to RGB, upright."""
        angle = math.radians(frame.rotation)
        # The display matrix: x' = across x + back y, y' = turn x + down y.
        across, turn, back, down = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        kinds: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # data of a kind that is new to PyAV
            # By number: iteration gives values in PyAV 18, and keys in PyAV 19.
            count = len(frame.side_data)
            kinds = {
                data.type.name: data for data in map(frame.side_data.__getitem__, range(count))
            }
        if "DISPLAYMATRIX" in kinds:  # It mirrors too, which an angle cannot.
            across, turn, _, back, down = np.frombuffer(kinds["DISPLAYMATRIX"], np.int32)[:5]
        turned = abs(turn) > abs(across)
        if not self.look:
            self._look_at(frame, turned)
        size = self.look["width"], self.look["height"]
        size = size[::-1] if turned else size
        self.notes["{} frames of another size were scaled"] += (frame.width, frame.height) != size
        self.notes["{} damaged frames were restored as they are"] += frame.is_corrupt
        self.notes["{} interlaced frames were restored whole"] += frame.interlaced_frame
        alpha = any(component.is_alpha for component in frame.format.components)
        self.notes["the transparency of {} frames is not kept"] += alpha
        self.notes["metadata of HDR in {} frames is not kept"] += bool(_HDR_DATA & kinds.keys())
        matrix = None if frame.format.is_rgb else MATRICES[self.look["colorspace"]]
        kind = "rgb24" if self.bits == 8 else "rgb48le"
        rgb = scaled(self._scaler, frame, *size, kind, src_colorspace=matrix)
        pixels = rgb.to_ndarray()
        if turned:
            pixels, across, down = pixels.swapaxes(0, 1), back, turn
        pixels = pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
        base = self.video.time_base
        stamps = (frame.pts, frame.dts, self._due)
        stamp = next(stamp for stamp in stamps if stamp is not None)
        duration = frame.duration * base or 1 / self.rate
        self._due = stamp + round(duration / base)
        return Image(pixels, stamp * base, duration)

    def _look_at(self, frame: Any, turned: bool) -> None:
        """Notes how the first frame is; a missing matrix is the one that players take."""
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        aspect = self.video.sample_aspect_ratio or Fraction(0)
        matrix = int(frame.colorspace)
        chroma = any(component.is_chroma for component in frame.format.components)
        if matrix == _UNSPECIFIED or frame.format.is_rgb or not chroma:
            matrix = _BT709 if width >= 1280 or height > 576 else _SMPTE170M
        if matrix not in MATRICES:
            raise InputError(
                f"{self.source} has color matrix {matrix} of ITU-T H.273; "
                f"expected one of {' '.join(map(str, MATRICES))}"
            )
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        self.bits = max(8, *(component.bits for component in frame.format.components))
        self.look = {
            "width": width,
            "height": height,
            "sample_aspect_ratio": 1 / aspect if turned and aspect else aspect,
            "colorspace": matrix,
            "color_range": _FULL if full and not frame.format.is_rgb else _LIMITED,
            "color_primaries": int(frame.color_primaries),
            "color_trc": int(frame.color_trc),
        }


def scaled(scaler: Any, frame: Any, width: int, height: int, kind: str, **colors: Any) -> Any:
    """Converts a frame to another size or kind of pixels, as exactly as the scaler can."""
    flags = import_av().video.reformatter.Interpolation
    exact = flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP
    return scaler.reformat(frame, width, height, kind, interpolation=exact, **colors)

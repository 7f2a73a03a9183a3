"""Small videos written and read through PyAV, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

NTSC = Fraction(30000, 1001)
_FLAGS = av.video.reformatter.Interpolation
EXACT = _FLAGS.BICUBIC | _FLAGS.ACCURATE_RND
LEVELS = np.arange(12) * 20 + 10
"""The gray of each frame of `gray`, so that every frame differs from every other."""
LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}
"""Red's and blue's share of the luma of BT.709 and SMPTE 170M, by the numbers of ITU-T H.273."""


def gray(width: int = 64, height: int = 48) -> np.ndarray:
    frames = np.broadcast_to(LEVELS[:, None, None, None], (12, height, width, 3))
    return np.ascontiguousarray(frames, np.uint8)


def smooth(width: int = 96, height: int = 64, count: int = 4) -> np.ndarray:
    """Colors that change slowly over each frame and from one to the next."""
    n, y, x = np.ogrid[0:count, 0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = np.broadcast_arrays(x + 0 * n, y + 0 * n, (x + y) / 2 + n / 20)
    return (np.stack(channels, -1) * 200 + 20).clip(0, 255).astype(np.uint8)


def noise(count: int = 4) -> np.ndarray:
    spots = np.random.default_rng(1).normal(0, 30, (count, 64, 96, 3))
    return (smooth(count=count) + spots).clip(0, 255).astype(np.uint8)


def write(
    path: Path,
    frames: np.ndarray,
    *,
    rate: Fraction = NTSC,
    times: Sequence[Fraction] | None = None,
    start: Fraction = Fraction(0),
    codec: str = "libx264",
    kind: str = "yuv420p",
    matrix: int | None = None,
    matrix_tag: int | None = None,
    color_range: int | None = None,
    display: Sequence[int] | None = None,
    sound: Fraction | None = None,
    sound_codec: str = "aac",
    sound_rate: int = 44100,
    channels: int = 2,
    silent: str | None = None,
    subtitle: str | None = None,
    options: dict[str, str] | None = None,
    muxer: str | None = None,
    images: bool = True,
    **tags: Any,
) -> Path:
    """Writes a clip; `sound` is when 0.4 s of a tone start, `silent` the codec of no sound."""
    with av.open(str(path), "w", muxer, options=options or {}) as output:
        tick = 1 / rate if times is None else Fraction(1, 90000)
        quality = {"libx264": {"qp": "4"}, "libx265": {"x265-params": "log-level=none:qp=4"}}
        if images:
            video = output.add_stream(codec, rate, quality.get(codec, {}), time_base=tick, **tags)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = kind
            video.colorspace = matrix_tag or matrix or 2
            video.color_range = color_range or 0
            if display:
                video.set_display_matrix(display)
        if sound is not None:
            audio = output.add_stream(sound_codec, sound_rate)
        if silent:
            output.add_stream(silent, 48000)
        if subtitle:
            text = output.add_mux_stream("subrip")
        packets = []
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame = frame.reformat(
                format=kind,
                dst_colorspace=None if matrix is None else {1: 1, 6: 5, 9: 9}[matrix],
                dst_color_range=color_range,
                interpolation=EXACT,
            )
            frame.time_base = tick
            frame.pts = round((start + (index / rate if times is None else times[index])) / tick)
            packets += video.encode(frame)
        packets += video.encode(None) if images else []
        if sound is not None:
            tone = np.sin(np.arange(18 * 1024) / 10).astype(np.float32)[None] / 4
            layout = {2: "stereo", 16: "hexadecagonal"}[channels]
            audio.layout = layout
            for index, samples in enumerate(np.split(tone, 18, 1)):
                interleaved = samples.repeat(channels, 1)
                block = av.AudioFrame.from_ndarray(interleaved, "flt", layout)
                block.sample_rate, block.time_base = 44100, Fraction(1, 44100)
                block.pts = index * 1024 + round(sound * 44100)
                packets += audio.encode(block)
            packets += audio.encode(None)
        if subtitle:
            packet = av.Packet(subtitle.encode())
            packet.stream, packet.time_base = text, Fraction(1, 1000)
            packet.pts = packet.dts = 100
            packet.duration = 200
            packets.append(packet)
        output.mux(packets)
    return path


def read(path: Path, matrix: int = 6, full: bool = False) -> np.ndarray:
    """Decodes a clip into RGB (n, h, w, 3), not turned, by the formulas of a color matrix."""
    red, blue = LUMA[matrix]
    frames = []
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            planes = frame.reformat(format="yuv444p", interpolation=EXACT).to_ndarray()
            luma, u, v = np.moveaxis(planes, -1, 0) if planes.shape[-1] == 3 else planes
            luma = luma / 255 if full else (luma - 16.0) / 219
            u, v = ((part - 128.0) / (255 if full else 224) for part in (u, v))
            r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
            g = (luma - red * r - blue * b) / (1 - red - blue)
            frames.append(np.stack([r, g, b], -1))
    return (np.stack(frames) * 255).round().clip(0, 255).astype(np.uint8)


def times(path: Path, kind: str = "video") -> list[Fraction]:
    """When the packets of a stream are shown, in seconds, in order."""
    with av.open(str(path)) as file:
        stream = next(stream for stream in file.streams if stream.type == kind)
        return sorted(each.pts * each.time_base for each in file.demux(stream) if each.size)


def packets(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as file:
        stream = next(stream for stream in file.streams if stream.type == kind)
        return [bytes(packet) for packet in file.demux(stream) if packet.size]


def kinds(path: Path) -> list[str]:
    with av.open(str(path)) as file:
        return [stream.type for stream in file.streams]


def first(path: Path) -> dict[str, Any]:
    """What the container and the first frame say."""
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        frame = next(file.decode(video))
        return {
            "rate": video.average_rate,
            "aspect": video.sample_aspect_ratio,
            "kind": frame.format.name,
            "codec": video.codec_context.name,
            "tags": [
                int(getattr(frame, f"color{name}"))
                for name in ("space", "_range", "_primaries", "_trc")
            ],
            "rotation": frame.rotation,
            "duration": file.duration,
            "title": file.metadata.get("title"),
        }

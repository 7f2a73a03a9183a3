"""Pairs of synthetic rain by index."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Sequence

import numpy as np

from drsformer_jax.config import RainConfig
from drsformer_jax.data.pairs import Cached, Pair, fingerprint
from drsformer_jax.data.synthetic.layers import Window
from drsformer_jax.data.synthetic.photographs import Photograph
from drsformer_jax.data.synthetic.scene import GENERATOR_VERSION, add_rain
from drsformer_jax.images.pixels import image_size, read_image


class _CleanPhotographs:
    """Photographs as pairs without rain: both sides are the one image. Can be pickled."""

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        self._photographs = photographs
        self._size = functools.cache(image_size)

    def __len__(self) -> int:
        return len(self._photographs)

    def __getitem__(self, index: int) -> Pair:
        photograph = self._photographs[index]
        clean = read_image(photograph.path)
        return {"name": photograph.name, "rainy": clean, "clean": clean}

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a photograph, from its file's header."""
        return self._size(self._photographs[index].path)

    def fingerprint(self) -> str:
        """Depends on the paths and times of the photographs' files."""
        files = [photograph.path.resolve() for photograph in self._photographs]
        return fingerprint((str(path), path.stat().st_mtime_ns) for path in files)

    def digest(self) -> str:
        """Depends on the photographs' names and the files' lengths, wherever they are."""
        return fingerprint((each.name, each.path.stat().st_size) for each in self._photographs)

    def __reduce__(self) -> tuple[type[_CleanPhotographs], tuple[Sequence[Photograph]]]:
        return _CleanPhotographs, (self._photographs,)


class SyntheticRain:
    """Pairs of synthetic rain by index: pair i is photograph i % n with its rain i // n.

    A pair depends only on the seed, the photograph, the index of its rain, `rain` and `window`: it
    does not change when photographs or rains are added. Can be pickled. Thread-safe.

    Args:
        photographs: the clean images, at least one.
        rains: number of rains on each photograph.
        seed: 0 or more.
        rain: the mix and the ranges.
        window: side in pixels of a random window of the photograph that each rain is rendered on;
            0 for the whole photograph, which is also used if it is smaller.
        memory: bytes of decoded photographs to cache; others are decoded at each access.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        rains: int,
        seed: int,
        rain: RainConfig = RainConfig(),  # noqa: B008 - frozen
        window: int = 0,
        memory: int = 0,
    ) -> None:
        self._clean = _CleanPhotographs(photographs)
        self._kept = Cached(self._clean, 2 * memory)  # It counts both images of a pair, here one.
        self._rains = rains
        self._seed = seed
        self._rain = rain
        self._window = window

    def __len__(self) -> int:
        return len(self._clean) * self._rains

    @property
    def photographs(self) -> int:
        """Number n of photographs; the first n pairs are one of each."""
        return len(self._clean)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, from the header of its photograph."""
        return self._part(*self._clean.size(index % len(self._clean)))

    def _part(self, height: int, width: int) -> tuple[int, int]:
        """Size of the window of a photograph."""
        side = self._window or max(height, width)
        return min(side, height), min(side, width)

    def fingerprint(self) -> str:
        """Depends on the photographs and on all that determines the rain on them."""
        decisive = [GENERATOR_VERSION, self._rains, self._seed, self._rain, self._window]
        return fingerprint([self._clean.fingerprint(), *decisive])

    def digest(self) -> str:
        """Depends on the photographs, wherever they are, and on the generator."""
        return fingerprint([self._clean.digest(), GENERATOR_VERSION])

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0 to {len(self) - 1}")
        rain, which = divmod(index, len(self._clean))
        photograph = self._kept[which]
        name = photograph["name"]
        rng = np.random.default_rng([self._seed, zlib.crc32(os.fsencode(name)), rain])
        height, width = photograph["clean"].shape[:2]
        h, w = self._part(height, width)
        top, left = (int(rng.integers(free + 1)) for free in (height - h, width - w))
        window = Window(top, left, h, w, height, width)
        part = photograph["clean"][top : top + h, left : left + w]
        rainy, clean = add_rain(part, rng, self._rain, window)
        return {"name": f"{name}_{rain:03d}", "rainy": rainy, "clean": clean}

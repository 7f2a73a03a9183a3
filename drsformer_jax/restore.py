"""A rainy picture in, the picture without rain out."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from drsformer_jax import weights
from drsformer_jax.buckets import Size, bucket_on_ladder, padded, plan_buckets
from drsformer_jax.compile_cache import use_compile_cache
from drsformer_jax.config import ModelConfig
from drsformer_jax.data.images import to_8_bits
from drsformer_jax.errors import InputError, reason
from drsformer_jax.memory import available_bytes, forward_bytes
from drsformer_jax.nn.functional import Params, apply
from drsformer_jax.tiles import Tiling
from drsformer_jax.types import Array

_OVERLAP = 64
_TILE_STEP = 64


class Restorer:
    """Removes rain from pictures of any size; safe to call from several threads.

    A picture is restored inside a bucket, an array of one of few sizes, and each bucket compiles
    once. What the network computes is exactly what it computes without the bucket, up to the order
    of floating-point sums.

    Args:
        config: the network.
        params: its parameters.
        tile: side of the tiles that pictures are restored in, in pixels, a multiple of 8; 0 for
            whole pictures always; `auto` for whole pictures as far as memory goes, by an estimate.
            Tiles are an approximation: each sees its own pixels alone, where the network's
            attention looks at the whole picture.
        overlap: pixels that neighbouring tiles share at least; 64, or half of a smaller tile, where
            it is not given.
        memory: bytes that `auto` may take; measured where it is not given.

    Raises:
        InputError: if tile and overlap are impossible.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        *,
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
        memory: int | None = None,
    ) -> None:
        self.config = config
        self._params = params
        if overlap is None:
            overlap = min(_OVERLAP, tile // 2) if isinstance(tile, int) and tile else _OVERLAP
        self._overlap = overlap
        self._tiling = Tiling(tile, overlap) if isinstance(tile, int) and tile else None
        self._memory = (memory or available_bytes()) if tile == "auto" else None
        self._planned: list[Size] = []
        self.programs: set[Size] = set()
        """Buckets that were used so far."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        step: int | None = None,
        *,
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
    ) -> Restorer:
        """Reads a network in any form that `drsformer_jax.weights.load` reads.

        Compiled programs are kept in the user's cache folder from here on.

        Raises:
            InputError: if there is no network, or not that step, or tile and overlap are
                impossible.
        """
        try:
            jax.devices()
        except Exception as error:  # JAX lets out errors of many kinds
            raise InputError(
                f"JAX finds no device ({reason(error)}); expected JAX_PLATFORMS unset or one that "
                "is there"
            ) from error
        use_compile_cache()
        return cls(*weights.load(path, step), tile=tile, overlap=overlap)

    def plan(self, sizes: Iterable[Size]) -> None:
        """Chooses few buckets for pictures of these sizes; others get one of a fixed ladder."""
        shapes = []
        for size in map(padded, sizes):
            with contextlib.suppress(InputError):  # Told when the picture's turn comes.
                tiling = self.tiling(size)
                shapes.append(size if tiling is None else tiling.tiles(size)[0])
        self._planned = plan_buckets(shapes, self._fits)

    def bucket(self, size: Size) -> Size:
        """The bucket of a picture of this (height, width) that is restored whole."""
        size = padded(size)
        planned = (bucket for bucket in self._planned if _holds(bucket, size))
        rung = bucket_on_ladder(size)
        return next(planned, rung if self._fits(rung) else size)

    def tiling(self, size: Size) -> Tiling | None:
        """How a picture of this (height, width) is cut into tiles; None where it is not.

        Raises:
            InputError: if not even small tiles fit into memory.
        """
        if not self._is_tiled(padded(size)):
            return None
        if self._tiling or self._memory is None:
            return self._tiling
        side = math.isqrt(self._memory // forward_bytes(self.config, 1, 1))
        side -= side % _TILE_STEP
        smallest = max(_TILE_STEP, 2 * self._overlap)
        if side < smallest:
            raise InputError(
                f"{self._memory / 2**20:.0f} MiB of memory are left; expected room for a tile of "
                f"{smallest} pixels a side"
            )
        return Tiling(side, self._overlap)

    def cost(self, size: Size) -> int:
        """Pixels that the network computes for a picture of this (height, width)."""
        tiling = self.tiling(size)
        if tiling is None:
            return math.prod(self.bucket(size))
        shape, count = tiling.tiles(padded(size))
        return count * math.prod(self.bucket(shape))

    def __call__(self, rainy: np.ndarray) -> np.ndarray:
        """Removes rain.

        As in the official program the picture is padded right and below to a multiple of 8 by
        reflection, and the result cut back, clamped and rounded. Warns where memory makes it
        restore in tiles.

        Args:
            rainy: uint8 or uint16, (h, w, 3) or (b, h, w, 3), RGB.

        Returns:
            The same type and shape.

        Raises:
            InputError: if it is no such array.
        """
        kinds, axes = (np.uint8, np.uint16), (3, 4)
        if (
            rainy.dtype not in kinds
            or rainy.ndim not in axes
            or rainy.shape[-1] != 3
            or not rainy.size
        ):
            raise InputError(
                f"rainy is {rainy.dtype} {rainy.shape}; expected uint8 or uint16, (h, w, 3) or "
                "(b, h, w, 3)"
            )
        pictures = rainy.reshape(-1, *rainy.shape[-3:])
        height, width = pictures.shape[1:3]
        pictures = _pad(pictures, padded((height, width)), "reflect")
        tiling = self.tiling((height, width))
        if tiling is not None:
            if self._memory is not None:
                warnings.warn(
                    f"{width}x{height} pixels are restored in tiles of {tiling.side}, which is an "
                    "approximation: there is no memory for the whole",
                    stacklevel=2,
                )
            restored = np.stack([self._restore_tiles(tiling, picture) for picture in pictures])
        elif self._fits(self.bucket((height, width)), len(pictures)):
            restored = self._restore(pictures)
        else:
            restored = np.concatenate([self._restore(picture[None]) for picture in pictures])
        restored = restored[:, :height, :width].reshape(rainy.shape)
        # 65535 = 255 * 257: rounding twice is rounding once.
        return to_8_bits(restored) if rainy.dtype == np.uint8 else restored

    def _restore(self, pictures: np.ndarray) -> np.ndarray:
        """Restores pictures whose sides are multiples of 8, whole, to 16 bits."""
        count, height, width, _ = pictures.shape
        bucket = self.bucket((height, width))
        self.programs.add(bucket)
        # One program for 8 and 16 bits.
        rainy = _pad(pictures, bucket, "constant").astype(np.uint16)
        white = np.float32(np.iinfo(pictures.dtype).max)
        size = np.full((count, 2), (height, width), np.int32)
        try:
            restored = _restore(self.config, self._params, rainy, white, size)
            return np.asarray(restored)[:, :height, :width]
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
                raise
            raise InputError(
                f"{width}x{height} pixels need more memory than there is; expected smaller tiles"
            ) from error

    def _restore_tiles(self, tiling: Tiling, picture: np.ndarray) -> np.ndarray:
        blended = tiling.apply(lambda tile: self._restore(tile[None])[0], picture)
        return np.rint(blended).astype(np.uint16)

    def _is_tiled(self, size: Size) -> bool:
        if self._tiling:
            return max(size) > self._tiling.side
        return not self._fits(size)

    def _fits(self, bucket: Size, count: int = 1) -> bool:
        if self._memory is None:
            return True
        return count * forward_bytes(self.config, *bucket) <= self._memory


def _pad(pictures: np.ndarray, to: Size, mode: Literal["reflect", "constant"]) -> np.ndarray:
    height, width = pictures.shape[1:3]
    return np.pad(pictures, [(0, 0), (0, to[0] - height), (0, to[1] - width), (0, 0)], mode)


def _holds(bucket: Size, size: Size) -> bool:
    return bucket[0] >= size[0] and bucket[1] >= size[1]


@functools.partial(jax.jit, static_argnums=0)
def _restore(config: ModelConfig, params: Params, rainy: Array, white: Array, size: Array) -> Array:
    restored = apply(config, params, rainy.astype(jnp.float32) / white, size)
    return jnp.round(jnp.clip(restored, 0, 1) * 65535).astype(jnp.uint16)

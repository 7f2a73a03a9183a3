"""A rainy image in, the image without rain out."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from drsformer_jax import weights
from drsformer_jax.config import SIZE_MULTIPLE, DType, ModelConfig
from drsformer_jax.errors import InputError, check_device
from drsformer_jax.images.pixels import to_8_bits
from drsformer_jax.nn.functional import Params, apply, use_wide_types
from drsformer_jax.nn.rows import AT_ONCE, MOST_REACH, Rows, Shards, Strips
from drsformer_jax.restoring.buckets import Size, bucket_on_ladder, padded, plan_buckets
from drsformer_jax.restoring.compile_cache import use_compile_cache
from drsformer_jax.restoring.memory import available_bytes, forward_bytes, strips_bytes
from drsformer_jax.restoring.tiles import Tiling
from drsformer_jax.sharding import over_rows, replicated, rows_mesh
from drsformer_jax.types import Array

_KINDS = (np.uint8, np.uint16)
_OVERLAP = 64
_STRIPS = (512, 256, 128, 64, 32, 16)
"""Heights of strips, in pixels. The lower they are the more rows are computed twice."""


class Restorer:
    """Removes rain from images of any size; safe to call from several threads.

    An image is restored inside a bucket, an array of one of few sizes, and each bucket compiles
    once. What the network computes is exactly what it computes without the bucket, up to the order
    of floating-point sums. So it is where memory does not hold the whole image's intermediate
    arrays: then several accelerators share its rows, or it is computed in strips.

    Args:
        config: the network.
        params: its parameters.
        tile: `auto` to choose between these ways by memory, as estimated; 0 to compute images at
            once always; or a side in pixels, a multiple of 8, to restore larger images in tiles.
            Tiles are an approximation: each sees its own pixels alone, where the network's
            attention looks at the whole image.
        overlap: pixels that neighboring tiles share at least; 64, or half of a smaller tile, where
            it is not given.
        memory: bytes of a device that `auto` may take; measured where it is not given.
        devices: of this process that may share an image; all accelerators where it is not given.

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
        devices: int | None = None,
    ) -> None:
        self.config = config
        self._params = {1: params}
        self._tiling: Tiling | None = None
        if isinstance(tile, int) and tile:
            self._tiling = Tiling(tile, min(_OVERLAP, tile // 2) if overlap is None else overlap)
        elif overlap is not None:
            raise InputError(f"the overlap is {overlap}, the tile {tile}; expected a tile's side")
        self._by_memory = tile == "auto"
        self._memory = memory or available_bytes()
        # The devices that JAX makes of a CPU share its memory and its cores.
        there, alone = jax.local_devices(), jax.default_backend() == "cpu"
        self._devices = min(devices or (1 if alone else len(there)), len(there))
        self._planned: list[Size] = []
        self.programs: Counter[tuple[int, Size]] = Counter()
        """How often each number of images was computed in each bucket."""
        self._counting = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        step: int | None = None,
        *,
        dtype: DType | None = None,
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
    ) -> Restorer:
        """Reads a network in any form that `drsformer_jax.weights.load` reads.

        Compiled programs are kept in the user's cache folder from here on.

        Args:
            path: where it is.
            step: checkpoint of a training run; the best one where it is not given.
            dtype: what the network computes in; as it was trained where it is not given.
            tile: see `Restorer`.
            overlap: see `Restorer`.

        Raises:
            InputError: if JAX finds no device, there is no network, or not that step, or tile and
                overlap are impossible.
        """
        check_device(jax.devices)
        use_compile_cache()
        config, params = weights.load(path, step)
        if dtype is not None:
            config = dataclasses.replace(config, dtype=dtype)
            use_wide_types(config)
        return cls(config, params, tile=tile, overlap=overlap)

    def plan(self, sizes: Iterable[Size]) -> None:
        """Chooses few buckets for images of these sizes; others get one of a fixed ladder."""
        shapes = []
        for size in map(padded, sizes):
            tiling = self.tiling(size)
            shapes.append(size if tiling is None else tiling.tiles(size)[0])
        self._planned = plan_buckets(shapes, self._fits)

    def bucket(self, size: Size) -> Size:
        """The bucket of an image of this (height, width) that is not cut into tiles."""
        size = padded(size)
        planned = (bucket for bucket in self._planned if min(np.subtract(bucket, size)) >= 0)
        rung = bucket_on_ladder(size)
        alike = type(self.rows(rung)) is type(self.rows(size))
        height, width = next(planned, rung if alike else size)
        if isinstance(self.rows((height, width)), Shards):
            height += -height % (SIZE_MULTIPLE * self._devices)
        return height, width

    def tiling(self, size: Size) -> Tiling | None:
        """How an image of this (height, width) is cut into tiles; None where it is not."""
        tiled = self._tiling is not None and max(padded(size)) > self._tiling.side
        return self._tiling if tiled else None

    def rows(self, bucket: Size) -> Rows | None:
        """How a bucket is computed; None where memory is too small for any way."""
        if not self._by_memory or self._holds(bucket):
            return AT_ONCE
        height, width = bucket
        if self._devices > 1:
            # What a device computes is less than an image of its rows and those it is sent.
            own = SIZE_MULTIPLE * math.ceil(height / (SIZE_MULTIPLE * self._devices))
            if self._holds((own + 2 * MOST_REACH, width)):
                return Shards(count=self._devices)
        for strip in _STRIPS:
            if strips_bytes(self.config, height, width, strip) <= self._memory:
                return Strips(height=strip)
        return None

    def _holds(self, bucket: Size, count: int = 1) -> bool:
        """Whether memory is enough for images at once."""
        return count * forward_bytes(self.config, *bucket) <= self._memory

    def _fits(self, bucket: Size) -> bool:
        return self.rows(bucket) is not None

    def __call__(self, rainy: np.ndarray) -> np.ndarray:
        """Removes rain.

        As in the official program the image is padded right and below to a multiple of 8 by
        reflection, and the result cut back, clamped and rounded.

        Args:
            rainy: uint8 or uint16, (h, w, 3) or (b, h, w, 3), RGB.

        Returns:
            The same type and shape.

        Raises:
            InputError: if it is no such array, or memory is too small.
        """
        if rainy.ndim not in (3, 4) or not rainy.size:
            _refuse(rainy)
        images = rainy.reshape(-1, *rainy.shape[-3:])
        return np.stack(self.batch(list(images))).reshape(rainy.shape)

    def batch(self, rainy: Sequence[np.ndarray], count: int = 1) -> list[np.ndarray]:
        """Removes rain from images together, as far as they share a bucket and memory goes.

        Args:
            rainy: images as those of `__call__`, each (h, w, 3) of any size.
            count: fewer images of a bucket than this are computed as if there were as many, so
                that they need no program of their own.

        Returns:
            The same types and shapes.

        Raises:
            InputError: if one is no such array, or memory is too small.
        """
        together: dict[Size, list[int]] = {}
        restored: dict[int, np.ndarray] = {}
        for index, image in enumerate(rainy):
            if image.dtype not in _KINDS or image.shape[2:] != (3,) or not image.size:
                _refuse(image)
            size = image.shape[:2]
            tiling = self.tiling(size)
            if tiling is None:
                together.setdefault(self.bucket(size), []).append(index)
            else:
                restored[index] = self._restore_tiles(tiling, _pad(image, padded(size)))
        for bucket, indices in together.items():
            group = max(len(indices), count)
            while group > 1 and not self._holds(bucket, group):
                group //= 2
            for first in range(0, len(indices), group):
                chosen = indices[first : first + group]
                images = [_pad(rainy[index], padded(rainy[index].shape[:2])) for index in chosen]
                done = self._restore(bucket, images, group)
                restored.update(zip(chosen, done, strict=True))
        return [_cut(restored[index], image) for index, image in enumerate(rainy)]

    def _restore(self, bucket: Size, images: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """Restores images whose sides are multiples of 8 to 16 bits, as `count` in a bucket."""
        rows = self.rows(bucket)
        if rows is None:
            raise InputError(
                f"{bucket[1]}x{bucket[0]} pixels do not fit into {self._memory:,} bytes of memory, "
                "not even in strips; expected a smaller image, or tiles, which approximate"
            )
        # One program for 8 and 16 bits.
        rainy = np.zeros((count, *bucket, 3), np.uint16)
        white = np.ones((count, 1, 1, 1), np.float32)
        size = np.full((count, 2), SIZE_MULTIPLE, np.int32)
        for index, image in enumerate(images):
            size[index] = height, width = image.shape[:2]
            rainy[index, :height, :width] = image
            white[index] = np.iinfo(image.dtype).max
        try:
            restored = np.asarray(
                _restore(self.config, rows, self._params_for(rows), rainy, white, size)
            )
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
                raise
            raise InputError(
                f"{count} of {bucket[1]}x{bucket[0]} pixels need more memory than there is; "
                "expected a smaller batch or image, or smaller tiles, which approximate"
            ) from error
        with self._counting:
            self.programs[count, bucket] += 1
        return [
            whole[: image.shape[0], : image.shape[1]]
            for whole, image in zip(restored, images, strict=False)
        ]

    def _params_for(self, rows: Rows) -> Params:
        """The parameters, on each device that computes."""
        count = rows.count if isinstance(rows, Shards) else 1
        if count not in self._params:
            place = replicated(rows_mesh(count))
            self._params[count] = jax.device_put(self._params[1], place)
        return self._params[count]

    def _restore_tiles(self, tiling: Tiling, image: np.ndarray) -> np.ndarray:
        def restore(tile: np.ndarray) -> np.ndarray:
            return self._restore(self.bucket(tile.shape[:2]), [tile], 1)[0]

        return np.rint(tiling.apply(restore, image)).astype(np.uint16)


def _refuse(rainy: np.ndarray) -> NoReturn:
    raise InputError(
        f"rainy is {rainy.dtype} {rainy.shape}; expected uint8 or uint16, (h, w, 3) or (b, h, w, 3)"
    )


def _pad(image: np.ndarray, to: Size) -> np.ndarray:
    height, width, _ = image.shape
    return np.pad(image, [(0, to[0] - height), (0, to[1] - width), (0, 0)], "reflect")


def _cut(restored: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The image without its padding, in the type it came in."""
    restored = restored[: like.shape[0], : like.shape[1]]
    # 65535 = 255 * 257: rounding twice is rounding once.
    return to_8_bits(restored) if like.dtype == np.uint8 else restored


@functools.partial(jax.jit, static_argnums=(0, 1))
def _restore(
    config: ModelConfig, rows: Rows, params: Params, rainy: Array, white: Array, size: Array
) -> Array:
    def network(params: Params, rainy: Array, white: Array, size: Array) -> Array:
        restored = apply(config, params, rainy.astype(jnp.float32) / white, size, rows)
        return jnp.round(jnp.clip(restored, 0, 1) * 65535).astype(jnp.uint16)

    if isinstance(rows, Shards):
        network = over_rows(network, rows.count)
    return network(params, rainy, white, size)

"""A rainy image in, the image without rain out."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NoReturn

import jax
import numpy as np

from drsformer_jax import weights
from drsformer_jax.config import SIZE_MULTIPLE, DType, Kernels, ModelConfig
from drsformer_jax.errors import InputError, check_device, is_out_of_memory
from drsformer_jax.images.pixels import to_8_bits
from drsformer_jax.nn.functional import Params, wide_types
from drsformer_jax.nn.rows import AT_ONCE, MAX_HALO, Rows, Shards, Spread, Strips
from drsformer_jax.restoring.buckets import Size, bucket_on_ladder, padded, plan_buckets
from drsformer_jax.restoring.compile_cache import use_compile_cache
from drsformer_jax.restoring.memory import budget, forward_bytes, strips_bytes
from drsformer_jax.restoring.program import restore_batch
from drsformer_jax.restoring.tiles import Tiling
from drsformer_jax.sharding import gathered, least, replicate, rows_mesh

_KINDS = (np.uint8, np.uint16)
_OVERLAP = 64
STRIPS = (512, 256, 128, 64, 32, 16)
"""Heights of strips, in pixels. The lower they are the more rows are computed twice."""


class Restorer:
    """Removes rain from images of any size; safe to call from several threads.

    An image is restored inside a bucket, an array of one of few sizes, and each bucket compiles
    once. The result is exactly that without the bucket, up to the order of floating-point sums. So
    it is where memory does not hold the intermediate arrays of the whole image: then several
    accelerators share its rows, or it is computed in strips. Where an estimate was too low and
    memory runs out all the same, the next of these ways is tried, and a warning says so once.

    A network with float64 is computed in float64 whether or not `jax_enable_x64` is set.

    Args:
        config: the network.
        params: its parameters.
        tile: `auto` to choose between these ways by estimated memory; 0 to always compute images
            at once; or a side in pixels, a multiple of 8, to restore larger images in tiles. Tiles
            are an approximation: each sees its own pixels alone, where the network's attention
            looks at the whole image.
        overlap: pixels that neighboring tiles share at least; default: 64, or half of a smaller
            tile.
        memory: bytes of a device that may be used; default: as measured once in this process.
        devices: number of those that may share an image, or images of one bucket; default: all
            accelerators of this process. More than it has are those of all processes, which then
            call the restorer together, with the same images, from one thread each.

    Attributes:
        config: the network.
        together: images that `batch` takes best at a time: one for each device.
        memory: bytes of a device that may be used; lowered to less than what did not fit.
        programs: how often each (number of images, bucket) was computed.

    Raises:
        InputError: if tile and overlap are impossible, or there are fewer devices, or they belong
            to some of the processes.
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
        self._by_memory = tile != 0
        self.memory = memory or budget()
        # The devices that JAX makes of a CPU share its memory and its cores.
        local, alone = jax.local_device_count(), jax.default_backend() == "cpu"
        self._devices = devices or (1 if alone else local)
        if self._devices > local:
            if self._devices != jax.device_count():
                expected = f"at most {local}, those of this process, or all {jax.device_count()}"
                raise InputError(f"the devices are {devices}; expected {expected}")
            self.memory = least(self.memory)
        self.together = self._devices if self._devices <= local else 1
        self._planned: list[Size] = []
        self.programs: Counter[tuple[int, Size]] = Counter()
        self._lock = threading.Lock()
        self._has_warned = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        step: int | None = None,
        *,
        dtype: DType | None = None,
        kernels: Kernels | None = None,
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
    ) -> Restorer:
        """Reads a network in any form that `drsformer_jax.weights.load` reads.

        Compiled programs are kept in the user's cache folder from here on.

        Args:
            path: where it is.
            step: checkpoint of a training run; default: the best one.
            dtype: what the network computes in; default: as it was trained.
            kernels: see `ModelConfig`; default: as it was trained.
            tile: see `Restorer`.
            overlap: see `Restorer`.

        Raises:
            InputError: if JAX finds no device, there is no network, or not that step, or tile and
                overlap are impossible.
        """
        check_device(jax.devices)
        use_compile_cache()
        config, params = weights.load(path, step)
        config = dataclasses.replace(
            config, dtype=dtype or config.dtype, kernels=kernels or config.kernels
        )
        return cls(config, params, tile=tile, overlap=overlap)

    def in_tiles(self, side: int) -> Restorer:
        """The same network, which restores larger images in tiles of this side."""
        return Restorer(self.config, self._params[1], tile=side, memory=self.memory)

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
        if self._devices > 1:
            shards = Shards(count=self._devices)
            if self._bytes(bucket, shards) <= self.memory:
                return shards
        for strip in STRIPS:
            if self._bytes(bucket, Strips(height=strip)) <= self.memory:
                return Strips(height=strip)
        return None

    def _holds(self, bucket: Size, count: int = 1) -> bool:
        """Whether memory is enough for images at once."""
        return self._bytes(bucket, AT_ONCE, count) <= self.memory

    def _fits(self, bucket: Size) -> bool:
        return self.rows(bucket) is not None

    def _bytes(self, bucket: Size, rows: Rows, count: int = 1) -> int:
        """Estimated bytes of a device."""
        height, width = bucket
        if isinstance(rows, Strips):
            return count * strips_bytes(self.config, height, width, rows.height)
        if isinstance(rows, Shards):
            # A device computes less than an image of its own rows and their halo takes.
            own = SIZE_MULTIPLE * math.ceil(height / (SIZE_MULTIPLE * rows.count))
            height = own + 2 * MAX_HALO
        return count * forward_bytes(self.config, height, width)

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
            _reject(rainy)
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
                _reject(image)
            size = image.shape[:2]
            tiling = self.tiling(size)
            if tiling is None:
                together.setdefault(self.bucket(size), []).append(index)
            else:
                restored[index] = self._restore_tiles(tiling, _pad(image, padded(size)))
        for bucket, indices in together.items():
            images = [_pad(rainy[index], padded(rainy[index].shape[:2])) for index in indices]
            restored.update(zip(indices, self._in_bucket(bucket, images, count), strict=True))
        return [_cut(restored[index], image) for index, image in enumerate(rainy)]

    def _restore_tiles(self, tiling: Tiling, image: np.ndarray) -> np.ndarray:
        def restore(tile: np.ndarray) -> np.ndarray:
            return self._in_bucket(self.bucket(tile.shape[:2]), [tile])[0]

        return np.rint(tiling.apply(restore, image)).astype(np.uint16)

    def _in_bucket(
        self, bucket: Size, images: Sequence[np.ndarray], count: int = 1
    ) -> list[np.ndarray]:
        """Restores images of one bucket to 16 bits, as many at a time as memory holds.

        Args:
            bucket: where they fit in.
            images: uint8 or uint16 (h, w, 3), both sides multiples of 8.
            count: images at a time at least, if memory holds them.

        Raises:
            InputError: if memory is too small.
        """
        restored: list[np.ndarray] = []
        retrying = False
        while len(restored) < len(images):
            group = self.group(bucket, max(len(images), count))
            rows = self.rows(bucket) if group == 1 else self._spread
            if rows is None:
                image = "a smaller image, or tiles, which approximate"
                expected = image if self._tiling is None else "smaller tiles"
                raise InputError(
                    f"{bucket[1]}x{bucket[0]} pixels do not fit into {self.memory:,} bytes of "
                    f"memory, not even in strips; expected {expected}"
                )
            try:
                restored += self._run(bucket, rows, images[len(restored) :][:group], group)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and not is_out_of_memory(error):
                    raise
                if self._devices > jax.local_device_count():
                    raise  # The other processes do not try again, nor know of less memory.
                if group == 1 and not self._by_memory:
                    raise InputError(
                        f"{bucket[1]}x{bucket[0]} pixels do not fit into memory at once; expected "
                        "a smaller image, or the tile auto, which takes less memory"
                    ) from error
                retrying = True
                each = group // rows.count if isinstance(rows, Spread) else group
                with self._lock:
                    self.memory = min(self.memory, self._bytes(bucket, rows, each) - 1)
                bucket = self.bucket(bucket)  # Devices share a multiple of their number of rows.
            else:
                if retrying:
                    self._warn_once(bucket, rows, group)
        return restored

    def group(self, bucket: Size, count: int) -> int:
        """How many of so many images of a bucket are computed at a time.

        As many as memory holds, and equally many by each device.
        """
        if count == 1:
            return 1
        each = math.ceil(count / self.together)
        while each > 1 and not self._holds(bucket, each):
            each //= 2
        return each * self.together if self._holds(bucket, each) else 1

    @property
    def _spread(self) -> Rows:
        """How several images at a time are computed."""
        return Spread(count=self.together) if self.together > 1 else AT_ONCE

    def _run(
        self, bucket: Size, rows: Rows, images: Sequence[np.ndarray], count: int
    ) -> list[np.ndarray]:
        """Restores at most `count` images by the program for `count` of them in a bucket."""
        # One program for 8 and 16 bits.
        rainy = np.zeros((count, *bucket, 3), np.uint16)
        white = np.ones((count, 1, 1, 1), np.float32)
        size = np.full((count, 2), SIZE_MULTIPLE, np.int32)
        for index, image in enumerate(images):
            size[index] = height, width = image.shape[:2]
            rainy[index, :height, :width] = image
            white[index] = np.iinfo(image.dtype).max
        # JAX compiles anew for each value; without it float64 would silently become float32.
        with wide_types(self.config):
            params = self._params_for(rows)
            result = restore_batch(self.config, rows, params, rainy, white, size)
            if isinstance(rows, Shards) and not result.is_fully_addressable:
                result = gathered(result, rows_mesh(rows.count))
            restored = np.asarray(result)
        with self._lock:
            self.programs[count, bucket] += 1
        return [
            whole[: image.shape[0], : image.shape[1]]
            for whole, image in zip(restored, images, strict=False)
        ]

    def _params_for(self, rows: Rows) -> Params:
        """The parameters, replicated over the devices that compute."""
        count = rows.count if isinstance(rows, Shards | Spread) else 1
        if count not in self._params:
            self._params[count] = replicate(self._params[1], rows_mesh(count))
        return self._params[count]

    def _warn_once(self, bucket: Size, rows: Rows, group: int) -> None:
        with self._lock:
            if self._has_warned:
                return
            self._has_warned = True
        if isinstance(rows, Strips):
            how = f"in strips of {rows.height} rows"
        else:
            how = f"by {rows.count} devices" if isinstance(rows, Shards) else f"{group} at a time"
        warnings.warn(
            f"{bucket[1]}x{bucket[0]} pixels took more memory than estimated; such images are "
            f"computed {how} from here on, with the same result",
            RuntimeWarning,
            stacklevel=2,
        )


def _reject(rainy: np.ndarray) -> NoReturn:
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

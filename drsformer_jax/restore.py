"""A rainy picture in, the picture without rain out."""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from drsformer_jax import checkpoint
from drsformer_jax.config import ModelConfig
from drsformer_jax.errors import InputError
from drsformer_jax.nn.drsformer import SIZE_MULTIPLE
from drsformer_jax.nn.functional import Params, apply
from drsformer_jax.types import Array


class Restorer:
    """Removes rain from pictures of any size. Each new size compiles once.

    Args:
        config: the network.
        params: its parameters.
    """

    def __init__(self, config: ModelConfig, params: Params) -> None:
        self._config = config
        self._params = params

    @classmethod
    def load(cls, run: str | os.PathLike[str], step: int | None = None) -> Restorer:
        """Reads the network of a training run: its best checkpoint, or that of a given step.

        Raises:
            InputError: if the folder is no run, or has no checkpoint or not that one.
        """
        return cls(*checkpoint.load(run, step))

    def __call__(self, rainy: np.ndarray) -> np.ndarray:
        """Removes rain.

        As in the official program the picture is padded right and below to a multiple of 8 by
        reflection, and the result cut back, clamped and rounded to 8 bits.

        Args:
            rainy: uint8 (h, w, 3), RGB.

        Returns:
            uint8 (h, w, 3).

        Raises:
            InputError: if it is no such array.
        """
        if rainy.dtype != np.uint8 or rainy.ndim != 3 or rainy.shape[2] != 3 or rainy.size == 0:
            raise InputError(f"rainy is {rainy.dtype} {rainy.shape}; expected uint8 (h, w, 3)")
        height, width, _ = rainy.shape
        missing = [(0, -side % SIZE_MULTIPLE) for side in (height, width)]
        padded = np.pad(rainy, [*missing, (0, 0)], mode="reflect")
        restored = _restore(self._config, self._params, padded[None])
        return np.asarray(restored)[0, :height, :width]


@functools.partial(jax.jit, static_argnums=0)
def _restore(config: ModelConfig, params: Params, rainy: Array) -> Array:
    restored = apply(config, params, rainy.astype(jnp.float32) / 255)
    return jnp.round(jnp.clip(restored, 0, 1) * 255).astype(jnp.uint8)

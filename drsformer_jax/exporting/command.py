"""The command `drsformer export`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from drsformer_jax import remote, weights
from drsformer_jax.config import ModelConfig
from drsformer_jax.errors import InputError, check_device
from drsformer_jax.exporting.stablehlo import PLATFORMS, Shape, stablehlo
from drsformer_jax.files import check_writable, write_bytes
from drsformer_jax.flags import check_unused, image_size
from drsformer_jax.images.formats import MAX_PIXELS
from drsformer_jax.nn.functional import Params, is_wide
from drsformer_jax.scoring.complexity import parameters

_DYNAMIC = "dynamic"
_DTYPES = {"stablehlo": ("float32", "bfloat16"), "onnx": ("float32",)}
"""What a program may compute in, by the format of its file."""
_PLATFORMS = ", ".join(PLATFORMS)


@dataclass(frozen=True)
class Export:
    """Writes a network as one program that runs without this package, with its weights inside."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A training run, a model folder, a .pth or .safetensors file of PyTorch, or builtin."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The new file: .stablehlo for JAX on CPUs, NVIDIA GPUs and TPUs, .onnx, or any name with
    --format."""
    format: Literal["stablehlo", "onnx"] | None = None
    """Format of the file; default: what OUT ends in."""
    size: str = _DYNAMIC
    """WIDTHxHEIGHT of the images that the program takes, or dynamic for any number of images of
    any size."""
    batch: int | None = None
    """Images that the program takes together, of a fixed size; default: 1."""
    step: int | None = None
    """Checkpoint of a training run; default: the best one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the network computes in, which is float32 in ONNX; default: as it was trained."""

    def run(self) -> None:
        """Writes the file and says what it takes.

        Raises:
            InputError: if a flag or the checkpoint is wrong, the file is there already or cannot be
                written, or what the format needs is not installed or cannot express the network.
        """
        named = self.out.suffix.removeprefix(".")
        format = self.format or named
        if format not in _DTYPES or (named in _DTYPES and named != format):
            expected = f".{self.format}" if self.format else ".stablehlo, .onnx or --format"
            raise InputError(f"{self.out} ends in {self.out.suffix!r}; expected {expected}")
        shape = self._shape()
        if self.out.exists():
            raise InputError(f"{self.out} is there already; expected a new name")
        check_device(jax.devices)
        config, params = self._network(format)
        check_writable(self.out.parent)
        if format == "onnx":
            content, what = _onnx_file()(config, params, shape), "ONNX"
        else:
            content, what = stablehlo(config, params, shape), f"StableHLO for {_PLATFORMS}"
        write_bytes(self.out, content)
        print(
            f"{remote.shown(self.checkpoint)} is {weights.describe(config)}, "
            f"{parameters(config):,} parameters; written to {self.out}: {what}, {config.dtype}, "
            f"{_shown(shape)}, {len(content):,} bytes"
        )

    def _shape(self) -> Shape:
        if self.size == _DYNAMIC:
            check_unused(self, ["batch"], "beside a dynamic size, which takes any number of images")
            return None, None, None
        width, height = image_size("--size", self.size)
        if self.batch is not None and self.batch < 1:
            raise InputError(f"--batch is {self.batch}; expected at least 1")
        images = self.batch or 1
        if images * height * width > MAX_PIXELS:
            raise InputError(
                f"the program would take {_shown((images, height, width))}, "
                f"{images * height * width:,} pixels; expected at most {MAX_PIXELS:,}"
            )
        return images, height, width

    def _network(self, format: str) -> tuple[ModelConfig, Params]:
        """The network in one of the types that the format can express, without our own kernels.

        Raises:
            InputError: if it computes in another one, or there is no network.
        """
        config, params = weights.load(self.checkpoint, self.step)
        dtype = self.dtype or ("float64" if is_wide(config) else config.dtype)
        if dtype not in (dtypes := _DTYPES[format]):
            raise InputError(
                f"{remote.shown(self.checkpoint)} would compute in {dtype}, which a "
                f".{format} file cannot; expected --dtype {' or '.join(dtypes)}"
            )
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
        plain: dict[str, Any] = {"dtype": dtype, "param_dtype": "float32", "kernels": "xla"}
        return replace(config.without_remat(), **plain), params


def _onnx_file() -> Callable[[ModelConfig, Params, Shape], bytes]:
    try:
        from drsformer_jax.exporting.onnx_file import onnx_file
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; expected pip install 'drsformer_jax[onnx]' for .onnx"
        ) from None
    return onnx_file


def _shown(shape: Shape) -> str:
    images, height, width = shape
    if images is None:
        return "any number of images of any size"
    return f"{images} {'image' if images == 1 else 'images'} of {width}x{height}"

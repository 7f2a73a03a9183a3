"""The command `drsformer convert`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from drsformer_jax import remote, weights
from drsformer_jax.errors import InputError
from drsformer_jax.weights.convert import describe, notes, params_to_torch
from drsformer_jax.weights.tensor_files import write_pth, write_safetensors

_FILES = (".pt", ".ckpt")
"""What names of files of PyTorch end in, too."""


@dataclass(frozen=True)
class Convert:
    """Turns an official checkpoint into a model folder, or any network into an official one."""

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """A .pth or .safetensors file of PyTorch, a training run, a model folder, or builtin."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """The new folder; with --to-torch the new .pth or .safetensors file."""
    to_torch: bool = False
    """Write a file that the official programs load."""
    step: int | None = None
    """Checkpoint of a training run; default: the best one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type that the weights are stored in; default: the network's own, float32 for what comes from
    PyTorch. The 16-bit ones halve the file, and are read back as the network's own type."""

    def run(self) -> None:
        """Reads, says which network it is, and writes.

        Raises:
            InputError: if the input is no network, the output is there already, or a weight is
                beyond the type.
        """
        writers: dict[str, Callable[..., None]]
        writers = {".pth": write_pth, ".safetensors": write_safetensors}
        is_file = self.output.suffix in writers
        named_as_file = self.output.suffix.lower() in (*writers, *_FILES)
        if is_file != self.to_torch or named_as_file != is_file:
            expected = "--to-torch for a file" if is_file else f"one of {' '.join(writers)}"
            if not self.to_torch and not is_file:
                expected = f"--to-torch and {expected} for a file, or a folder's name"
            raise InputError(f"{self.output} ends in {self.output.suffix!r}; expected {expected}")
        if os.path.lexists(self.output):
            raise InputError(f"{self.output} is there already; expected a new name")
        config, params = weights.load(self.input, self.step)
        if self.dtype is not None:
            params = weights.stored_as(params, self.dtype)
        if self.to_torch:
            noted = notes(config)
            writers[self.output.suffix](self.output, params_to_torch(params, config), notes=noted)
            if noted:
                warnings.warn(
                    f"topk_fractions are {' '.join(config.topk_fractions)}, which {self.output} "
                    "notes for drsformer alone: the official programs have the published ones, and "
                    "compute another network",
                    stacklevel=1,
                )
        else:
            weights.save(self.output, config, params)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(
            f"{remote.shown(self.input)} is {describe(config)}, {count:,} parameters; "
            f"written to {self.output}"
        )

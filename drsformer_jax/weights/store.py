"""The network on disk in every form that users have: runs, model folders, official checkpoints."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from drsformer_jax import remote
from drsformer_jax.config import ModelConfig
from drsformer_jax.config.file import CONFIG_FILE, read_config, write_config
from drsformer_jax.errors import InputError
from drsformer_jax.files import new_folder
from drsformer_jax.nn.functional import Params, abstract_params, wide_types
from drsformer_jax.weights.convert import (
    infer_config,
    mismatches,
    noted_fractions,
    params_from_torch,
    shapes_of,
)
from drsformer_jax.weights.state_dict import state_dict
from drsformer_jax.weights.tensor_files import read_tensors, write_safetensors

BUILTIN = "builtin"
"""Names the network that comes with the package, wherever a path of a network is expected."""
_OFFICIAL = (".pth", ".safetensors")
_PARAMS = "params.safetensors"
_PRETRAINED = Path(__file__).parents[1] / "pretrained"


def load(
    path: str | os.PathLike[str] | None = None, step: int | None = None
) -> tuple[ModelConfig, Params]:
    """Reads a network, whatever holds it.

    Args:
        path: the folder of a training run, or of one of its checkpoints; a folder that `save`
            wrote; a `.pth` or `.safetensors` file with the official programs' keys; or `BUILTIN`,
            unless something has this name here. Default: the built-in network.
        step: checkpoint of a training run; default: the best one.

    Raises:
        InputError: if there is no network, or not that step of it.
    """
    if path is None or is_builtin(path):
        _reject_step(BUILTIN, step)
        path = _PRETRAINED
    path, step = run_of(path, step)
    if remote.address(path):
        return _read_bucket(path, step)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; expected a run, a model folder, a .pth or a .safetensors "
            f"file, or {BUILTIN}"
        )
    if path.is_dir() and not (path / _PARAMS).exists():
        from drsformer_jax.training import checkpoint  # Orbax takes seconds to import.

        return checkpoint.load(path, step)
    _reject_step(path, step)
    return _read_folder(path) if path.is_dir() else _read_official(path)


def is_builtin(path: str | os.PathLike[str]) -> bool:
    """Whether a path names the built-in network."""
    return os.fspath(path) == BUILTIN and not os.path.exists(path)


def run_of(path: str | os.PathLike[str], step: int | None = None) -> tuple[Path, int | None]:
    """The run and the step of `RUN/checkpoints/STEP`; anything else as it is.

    Raises:
        InputError: if another step is given beside it.
    """
    path = Path(path)
    if path.absolute().parent.name != "checkpoints" or not path.name.isdecimal():
        return path, step
    folder = path.parent.parent if len(path.parts) > 1 else path.absolute().parent.parent
    in_bucket = bool(remote.address(path))
    if not in_bucket and not (path.is_dir() and (folder / CONFIG_FILE).is_file()):
        return path, step
    if step not in (None, int(path.name)):
        raise InputError(f"{path} is given beside step {step}; expected --checkpoint RUN --step N")
    return folder, int(path.name)


def save(folder: str | os.PathLike[str], config: ModelConfig, params: Params) -> None:
    """Writes a folder that holds a network and needs nothing else: `config.json` and parameters.

    Raises:
        InputError: if something is there already.
        OSError: if the file system fails; nothing is left half written.
    """
    flat = traverse_util.flatten_dict(params, sep=".")
    with new_folder(Path(folder)) as temporary:
        write_safetensors(
            temporary / _PARAMS, {name: np.asarray(leaf) for name, leaf in flat.items()}
        )
        write_config(temporary, {"model": dataclasses.asdict(config)})


def stored_as(params: Params, dtype: str) -> Params:
    """Parameters in another type, such as float16, which halves a file.

    Raises:
        InputError: if one is beyond the type.
    """
    with np.errstate(over="ignore"):  # It is reported below.
        stored = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)
    if not all(np.isfinite(leaf.astype(np.float32)).all() for leaf in jax.tree.leaves(stored)):
        largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(params))
        raise InputError(f"a weight is {largest:g}; expected all to be within {dtype}")
    return stored


def _reject_step(where: str | Path, step: int | None) -> None:
    if step is not None:
        raise InputError(f"{where} is no training run; expected one to take step {step} of")


def _read_bucket(path: Path, step: int | None) -> tuple[ModelConfig, Params]:
    """The network of a run, a folder or a file in a bucket."""
    where = remote.address(path)
    official = path.suffix in _OFFICIAL
    if not official and not remote.exists(f"{where}/{_PARAMS}"):
        from drsformer_jax.training import checkpoint  # Orbax takes seconds to import.

        return checkpoint.load(path, step)
    _reject_step(where, step)
    if official:
        with remote.local(path.parent, path.name) as local:
            return _read_official(local / path.name)
    with remote.local(path, _PARAMS, CONFIG_FILE) as local:
        return _read_folder(local)


def _read_folder(folder: Path) -> tuple[ModelConfig, Params]:
    config, path = read_config(folder).model, folder / _PARAMS
    stored = read_tensors(path)
    expected = traverse_util.flatten_dict(abstract_params(config), sep=".")
    problems = mismatches(shapes_of(stored), shapes_of(expected))
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        listed = "; ".join(problems[:3]) + more
        raise InputError(f"{path} does not fit the config.json beside it: {listed}")
    with wide_types(config):
        # NumPy converts: `jnp.asarray` would compile a program for each shape.
        leaves = jax.device_put(
            {name: stored[name].astype(leaf.dtype, copy=False) for name, leaf in expected.items()}
        )
    return config, traverse_util.unflatten_dict(leaves, sep=".")


def _read_official(path: Path) -> tuple[ModelConfig, Params]:
    content = read_tensors(path)
    try:
        state = state_dict(content)
        numbers, size = sum(value.size for value in state.values()), path.stat().st_size
        if numbers > size:  # A few bytes can stand for an array of any size.
            raise InputError(f"it claims {numbers:,} elements in {size:,} bytes; expected fewer")
        config = infer_config(shapes_of(state), noted_fractions(content))
        return config, params_from_torch(state, config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None

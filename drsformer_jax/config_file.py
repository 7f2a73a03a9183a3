"""Configurations in files: the `config.json` of a run or a model folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drsformer_jax.config import DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.files import write_text

_FILE = "config.json"


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested dicts that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undoes `to_dict`, also after a passage through JSON.

    Raises:
        InputError: if a field is unknown or a value impossible.
    """

    def build(kind: Any, values: Mapping[str, Any]) -> Any:
        known = {field.name for field in dataclasses.fields(kind)}
        if unknown := sorted(values.keys() - known):
            raise InputError(
                f"a field of {kind.__name__} is {unknown}; expected some of {sorted(known)}"
            )
        return kind(**{name: _tuples(value) for name, value in values.items()})

    parts = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "mesh": MeshConfig}
    nested = {name: build(kind, values[name]) for name, kind in parts.items() if name in values}
    return build(TrainConfig, {**values, **nested})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Writes a configuration, whole as `to_dict` gives it or in part, to a folder's `config.json`.

    Raises:
        OSError: if the file system fails; the old file is then still there.
    """
    write_text(folder / _FILE, json.dumps(values, indent=2) + "\n")


def read_config(folder: Path) -> TrainConfig:
    """Reads the `config.json` of a run or a model folder.

    Raises:
        InputError: if the folder has none, or it is damaged.
    """
    path = folder / _FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {_FILE}; expected a training run or a model folder")
    try:
        return from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); expected what was written there") from None

"""Configurations in files: Python files to train by, `config.json` of runs and model folders."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from drsformer_jax.config.train import TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.files import write_text

_FILE = "config.json"
_HARMLESS = {
    *("steps", "log-every", "eval-every", "checkpoint-every", "keep-checkpoints", "init-from"),
    *("data.data-dir", "data.cache-mib", "data.cache-dir", "data.workers"),
    *("model.remat", "model.unroll", "optim.nonfinite-steps"),
}
"""Fields that change no step of a run that has begun."""


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested dicts that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undoes `to_dict`, also after a passage through JSON.

    Raises:
        InputError: if a field is unknown or a value impossible.
    """
    return _build(TrainConfig, values)


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    """A configuration of a kind, with those inside it."""
    kinds = get_type_hints(kind)
    if unknown := sorted(values.keys() - kinds.keys()):
        raise InputError(f"a field of {kind.__name__} is {unknown}; expected some of {list(kinds)}")
    return kind(
        **{
            name: _build(kinds[name], value)
            if dataclasses.is_dataclass(kinds[name])
            else _tuples(value)
            for name, value in values.items()
        }
    )


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


def changes(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, named as on the command line, with the old and the new value."""
    before, after = _flat(to_dict(old)), _flat(to_dict(new))
    return {name: (before[name], value) for name, value in after.items() if before[name] != value}


def changes_learning(name: str) -> bool:
    """Whether another value of a field means other steps, up to the order of sums."""
    return name not in _HARMLESS and not name.startswith("mesh.")


def load_config(path: Path) -> TrainConfig:
    """Runs get_config() of a Python file.

    Raises:
        InputError: if there is no such file, it fails, or gives something else.
    """
    if not path.is_file():
        raise InputError(f"--config {path} is no file; expected one such as configs/quickstart.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config {path} is no Python file; expected one with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # the file is the user's, and may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} fails ({reason}); expected get_config() to work") from error
    if not isinstance(config, TrainConfig):
        raise InputError(f"get_config() of {path} returns {config!r}; expected a TrainConfig")
    return config


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flag = prefix + name.replace("_", "-")
        flat |= _flat(value, f"{flag}.") if isinstance(value, dict) else {flag: value}
    return flat

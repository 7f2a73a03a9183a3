"""Configurations in files: Python files to train by, `config.json` of runs and model folders."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, get_type_hints

from drsformer_jax.config.train import TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.files import write_text

CONFIG_FILE = "config.json"
"""Its name in the folder of a run or of a model."""
_VERSION = 2
"""Of the fields' names. A file without `version` is of version 1."""
_RENAMED: Mapping[int, Mapping[str, str]] = {
    2: {
        f"data.rain.fine_{name}": f"data.rain.fine_noise.{name}"
        for name in ("length", "blur", "density", "contrast")
    }
}
"""The one table of renamed fields: version that renamed them, then old name to new one.

A field is named from the top, as in `{3: {"data.symmetries": "data.augment"}}`; it may move to
another part of the configuration. Whoever renames a field adds a line here and raises `_VERSION`,
and older runs and model folders load as before.
"""
_ADDED: Mapping[int, Mapping[str, Any]] = {
    2: {"data.rain.ragged_share": 0.0, "data.rain.veil_share": 1.0}
}
"""Values by which older versions behaved, where the default of a new field is another: version
that added the fields, then name to value."""
_HARMLESS = {
    *("steps", "log-every", "eval-every", "checkpoint-every", "keep-checkpoints"),
    *("data.data-dir", "data.cache-mib", "data.cache-dir", "data.workers"),
    *("model.remat", "model.save-convolutions", "model.unroll", "model.kernels"),
    "optim.nonfinite-steps",
}
"""Fields that change no step of a run that has begun."""


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested dicts that JSON can hold, with the version of its names."""
    return {"version": _VERSION, **dataclasses.asdict(config)}


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undoes `to_dict`, also after a passage through JSON and for older names of fields.

    Raises:
        InputError: if the version or a field is unknown or a value impossible.
    """
    version = values.get("version", 1)
    if not (type(version) is int and 1 <= version <= _VERSION):
        raise InputError(
            f"version is {version!r}; expected at most {_VERSION}, or a newer drsformer_jax"
        )
    current = {name: value for name, value in values.items() if name != "version"}
    for newer in range(version + 1, _VERSION + 1):
        for old, new in _RENAMED.get(newer, {}).items():
            current = _moved(current, old.split("."), new.split("."))
        for name, value in _ADDED.get(newer, {}).items():
            current = _with(current, name.split("."), value)
    return _build(TrainConfig, current)


def _moved(values: Mapping[str, Any], old: list[str], new: list[str]) -> dict[str, Any]:
    """Nested dicts with the value at one path at another one, if it is there."""
    result = deepcopy(dict(values))
    source = result
    for name in old[:-1]:
        source = source.get(name, {})
    if old[-1] in source:
        value, target = source.pop(old[-1]), result
        for name in new[:-1]:
            target = target.setdefault(name, {})
        target[new[-1]] = value
    return result


def _with(values: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """Nested dicts with a value at a path, if the part of the configuration is there."""
    result = deepcopy(dict(values))
    part: Any = result
    for name in path[:-1]:
        part = part.get(name, {})
    part.setdefault(path[-1], value)
    return result


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
    versioned = {"version": _VERSION, **values}
    write_text(folder / CONFIG_FILE, json.dumps(versioned, indent=2) + "\n")


def read_config(folder: Path) -> TrainConfig:
    """Reads the `config.json` of a run or a model folder.

    Raises:
        InputError: if the folder has none, it is damaged, or a newer version wrote it.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {CONFIG_FILE}; expected a training run or a model folder"
        )
    try:
        return from_dict(json.loads(path.read_text()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); expected what was written there") from None


def changes(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, named as on the command line, with the old and the new value."""
    before, after = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return {name: (before[name], value) for name, value in after.items() if before[name] != value}


def changes_learning(name: str) -> bool:
    """Whether another value of a field changes the steps by more than the order of sums."""
    return name not in _HARMLESS and not name.startswith("mesh.")


def load_config(path: Path) -> TrainConfig:
    """Runs get_config() of a Python file; `~/` at the start of a text is the home folder.

    Raises:
        InputError: if there is no such file, it fails (names its line), or gives something else.
    """
    if not path.is_file():
        raise InputError(f"--config {path} is no file; expected one such as configs/quickstart.py")
    spec = importlib.util.spec_from_file_location(f"drsformer_configs.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config {path} is no Python file; expected one with get_config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Where dataclasses look up their annotations.
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # the file is the user's, and may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path}{_line(path, error)} fails ({reason}); expected get_config() to work "
            "(DRSFORMER_DEBUG=1 shows the traceback)"
        ) from error
    if not isinstance(config, TrainConfig):
        raise InputError(f"get_config() of {path} returns {config!r}; expected a TrainConfig")
    return _expanded(config)


def _expanded(value: Any) -> Any:
    """The value with the home folder in place of `~/`, as flags have it."""
    if isinstance(value, str) and value.startswith("~/"):
        return os.path.expanduser(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _expanded(each) for name, each in found.items()})
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    return value


def _line(path: Path, error: Exception) -> str:
    """`:LINE` of a Python file where it failed, the innermost of its lines; empty if unknown."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flag = prefix + name.replace("_", "-")
        flat |= _flat(value, f"{flag}.") if isinstance(value, dict) else {flag: value}
    return flat

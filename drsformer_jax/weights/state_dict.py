"""Finds the state dict of a network in what a checkpoint file holds, whichever program wrote it."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from drsformer_jax.errors import InputError
from drsformer_jax.weights.torch_pickle import shown

_FIRST = "patch_embed.proj.weight"
"""A key of every network of this family. What is before it, is before all of its keys."""
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of keys that PyTorch adds: DataParallel, torch.compile, FSDP, activation checkpoints."""
_COUNTERS = {"total_ops", "total_params", "__flops__", "__params__"}  # thop, ptflops
_COUNTERS |= {"n_averaged", "num_batches_tracked", "_extra_state"}  # PyTorch
_PARAMETER = re.compile(r"(.*\.)?(weight|bias|temperature|attn\d+)")
_AVERAGE = re.compile(r"(^|[^a-z])(ema|average|averaged|avg)([^a-z]|$)", re.IGNORECASE)
_MAX_DEPTH = 4
SAVE = "save it alone with `torch.save({'params': model.state_dict()}, 'net.pth')`"
"""How to make a file that is read of one that is not."""


class _Place(NamedTuple):
    """Where a network is: in a dict, under keys with a prefix."""

    path: str
    entries: Mapping[Any, Any]
    prefix: str

    def __str__(self) -> str:
        return ".".join(part for part in (self.path, self.prefix.rstrip(".")) if part)


def state_dict(content: Mapping[str, Any]) -> dict[str, Any]:
    """Finds the state dict in what a checkpoint file holds.

    It is bare or under any key (`params`, `state_dict`, `model`, `generator`), which may itself
    be inside another one, and its own keys may have any prefix (`module.`, `net_g.`). Of several
    networks the one that is named an average (`params_ema`) is taken. Counters of profilers, and
    what is not under the prefix, such as the networks of a loss, are dropped with a warning.

    Returns:
        Official keys to arrays.

    Raises:
        InputError: names what was found, if there is no network, there are several, or one of its
            tensors is none or is there twice.
    """
    places = list(_places(content, "", 0))
    if not places:
        arrays = [key for key, value in _entries(content, 0) if hasattr(value, "shape")]
        found = (
            f"{_FIRST} is missing among {_listed(arrays)}"
            if arrays
            else f"the checkpoint holds {_described(content)}"
        )
        raise InputError(f"{found}; expected a state dict of DRSformer or Restormer; {SAVE}")
    averages = [place for place in places if _AVERAGE.search(str(place))]
    chosen, *others = averages or places
    if others:
        raise InputError(
            f"the checkpoint holds networks under {_listed(map(str, (averages or places)))}; "
            f"expected one, or one average; {SAVE}"
        )
    return _cleaned(chosen)


def _places(content: object, path: str, depth: int) -> Iterator[_Place]:
    if not isinstance(content, Mapping):
        return
    prefixes: dict[str, None] = {}
    for key, value in content.items():
        name = _unwrapped(key)
        if hasattr(value, "shape") and f".{name}".endswith(f".{_FIRST}"):
            prefixes[name.removesuffix(_FIRST)] = None
        elif depth < _MAX_DEPTH:
            yield from _places(value, f"{path}.{key}" if path else str(key), depth + 1)
    for prefix in prefixes:
        yield _Place(path, content, prefix)


def _entries(content: object, depth: int) -> Iterator[tuple[Any, Any]]:
    """Keys and values of nested dicts, those inside as well."""
    if isinstance(content, Mapping) and depth <= _MAX_DEPTH:
        for key, value in content.items():
            yield key, value
            yield from _entries(value, depth + 1)


def _cleaned(place: _Place) -> dict[str, Any]:
    """The parameters at a place by their official keys."""
    state: dict[str, Any] = {}
    ignored = []
    for key, value in place.entries.items():
        name = _unwrapped(key)
        official = name.removeprefix(place.prefix)
        is_array, last = hasattr(value, "shape"), name.rpartition(".")[2]
        foreign = not name.startswith(place.prefix) or last in _COUNTERS
        if foreign or not (is_array or _PARAMETER.fullmatch(official)):
            ignored.append(key)
        elif not is_array:
            raise InputError(f"{key} is {kind(value)}; expected a tensor; {SAVE}")
        elif official in state:
            raise InputError(
                f"the checkpoint has {official} with and without {' or '.join(sorted(_WRAPPERS))}; "
                f"expected it once; {SAVE}"
            )
        else:
            state[official] = _array(value)
    if ignored:
        warnings.warn(
            f"the checkpoint holds {len(ignored)} entries beside the network, which are ignored: "
            f"{_listed(ignored)}",
            stacklevel=2,
        )
    return state


def _array(value: Any) -> Any:
    """The array of a tensor that a running PyTorch holds, or what is an array already."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:  # NumPy has no bfloat16.
        return tensor.float().numpy()


def _unwrapped(key: object) -> str:
    return ".".join(part for part in str(key).split(".") if part not in _WRAPPERS)


def _described(content: object) -> str:
    """What a file holds in place of a network: its keys, with the kinds of objects."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "nothing"
    return _listed(content, (f" ({kind(value)})" for value in content.values()))


def kind(value: object) -> str:
    """Type of a value; of a placeholder the class that it stands for."""
    name = getattr(value, "name", None)
    return shown(name) if isinstance(name, str) else f"a {type(value).__name__}"


def _listed(keys: Iterable[Any], notes: Iterable[str] = itertools.repeat("")) -> str:
    """The first keys; all are counted."""
    keys = list(keys)
    names = [
        f"{str(key)[:60]!r}{note}"
        for key, note in zip(keys[:5], itertools.islice(notes, 5), strict=False)
    ]
    return ", ".join(names) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")

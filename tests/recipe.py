"""Golden files, and the weights that they were made with: read and sampled without PyTorch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.functional import Params
from drsformer_jax.weights.convert import params_from_torch

SMALL = ModelConfig(
    dim=4,
    blocks=(1, 1, 1, 1),
    heads=(1, 1, 1, 1),
    encoder_level0="none",
    refinement="none",
    attention="dense",
    feed_forward="fn",
)
"""A network that compiles in a moment."""
FOLDER = Path(__file__).parent / "golden"
EXPERTS = ("encoder_level0", "refinement")
FORWARD = ("drsformer", "no_mefc", "restormer", "dfn", "fn", "dense", "bias", "bias_free")


class Golden(NamedTuple):
    """A network, and the numbers that it must give."""

    architecture: dict[str, Any]
    """Fields of `ModelConfig`."""
    weights: dict[str, np.ndarray]
    """By official key."""
    arrays: dict[str, np.ndarray]

    def config(self, dtype: str = "float32", **fields: Any) -> ModelConfig:
        fields = {**self.architecture, **fields}
        return ModelConfig(dtype=dtype, param_dtype=dtype, **fields)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def stages(self) -> dict[str, np.ndarray]:
        start = "stage/"
        return {
            name.removeprefix(start): value
            for name, value in self.arrays.items()
            if name.startswith(start)
        }


def load(path: Path, architecture: Mapping[str, Any], keys: Mapping[str, Sequence[int]]) -> Golden:
    """Reads a golden file of the network with these official keys."""
    with np.load(path) as file:
        arrays = dict(file)
    return Golden(dict(architecture), recipe_weights(keys, int(arrays["seed"])), arrays)


def load_small(name: str) -> Golden:
    """Reads a file of tests/golden, which names its network itself."""
    path = FOLDER / f"{name}.npz"
    with np.load(path) as file:
        variant, keys = json.loads(str(file["variant"])), json.loads(str(file["keys"]))
    architecture = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in variant.items()
    }
    return load(path, architecture, keys)


def dfn_with_experts(dtype: str) -> tuple[ModelConfig, Params]:
    """The golden network with DFN, and the experts of another one: fewer taps to compile than MSFN.

    It has every layer that a network can have beside the other feed-forward networks.
    """
    plain, other = load_small("dfn"), load_small("drsformer")
    params, experts = (
        params_from_torch(each.weights, each.config(dtype)) for each in (plain, other)
    )
    config = plain.config(dtype, **dict.fromkeys(EXPERTS, "mefc"))
    return config, {**params, **{stage: experts[stage] for stage in EXPERTS}}


def recipe_weights(keys: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """Float32 weights that depend on nothing but their key and shape, and the seed."""
    return {key: _recipe_weight(key, shape, seed) for key, shape in keys.items()}


def _recipe_weight(key: str, shape: Sequence[int], seed: int) -> np.ndarray:
    g = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape)
    leaf = key.rsplit(".", 1)[-1]
    if "norm" in key and leaf == "weight":
        w = 1 + 0.1 * g
    elif leaf == "temperature":
        w = 1 + 0.2 * g
    elif leaf in {"attn1", "attn2", "attn3", "attn4"}:
        w = 0.25 + 0.1 * g
    elif leaf == "bias":
        w = 0.1 * g
    else:
        w = g / np.sqrt(np.prod(shape[1:]))
    return w.astype(np.float32)


def relative_error(found: Any, expected: Any) -> float:
    """L2 norm of the difference, relative to that of `expected`."""
    expected = np.asarray(expected, np.float64)
    difference = np.asarray(found).astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))

"""Parameters of the official PyTorch programs into ours, and back.

One table: each rule names leaves of ours, the official key that fills them, and their axes.
`{i}` in a key counts along the leaf's first axis, the stack of blocks or steps; `{j}` along its
last, the branches of the sparse attention, from 1.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from drsformer_jax.config import PRESETS, ModelConfig
from drsformer_jax.errors import InputError
from drsformer_jax.nn import DRSformer
from drsformer_jax.nn.experts import DILATED_SIZES, SEPARABLE_SIZES
from drsformer_jax.nn.feedforward import hidden_order
from drsformer_jax.nn.functional import Params, abstract_params, build, wide_types
from drsformer_jax.weights.state_dict import state_dict
from drsformer_jax.weights.tensor_files import NOTE


class _Layout(NamedTuple):
    """How an official array's axes become ours, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    official: Callable[[np.ndarray], np.ndarray]


_SAME = _Layout(lambda w: w, lambda w: w)
_LINEAR = _Layout(lambda w: w.T, lambda w: w.T)
_CONV = _Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
_POINTWISE = _Layout(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])
_DEPTHWISE = _Layout(lambda w: w[:, 0].transpose(1, 2, 0), lambda w: w.transpose(2, 0, 1)[:, None])
_HEADS = _Layout(lambda w: w[:, 0, 0], lambda w: w[:, None, None])
_SCALAR = _Layout(lambda w: w[0], lambda w: w[None])

_STAGE = r"(\w+)\.layers\."
_STEP = r"(\w+)\.steps\.layers\."
_STEP_KEY = r"\1.layers.1._ops.{i}."
_EXPERT_KEY = _STEP_KEY + r"_ops.\2.op."
# Official keys number the experts.
_EXPERTS = [f"separable{size}" for size in SEPARABLE_SIZES]
_EXPERTS += [f"dilated{size}" for size in DILATED_SIZES]

_RULES: tuple[tuple[str, str, _Layout], ...] = (
    (r"patch_embed\.kernel", r"patch_embed.proj.weight", _CONV),
    (r"((?:down|up)\d_\d)\.kernel", r"\1.body.0.weight", _CONV),
    (r"output\.kernel", r"output.weight", _CONV),
    (r"(reduce_chan_level\d)\.kernel", r"\1.weight", _POINTWISE),
    (r"(output|reduce_chan_level\d)\.bias", r"\1.bias", _SAME),
    (_STAGE + r"(norm[12])\.(weight|bias)", r"\1.{i}.\2.body.\3", _SAME),
    (_STAGE + r"attn\.temperature", r"\1.{i}.attn.temperature", _HEADS),
    (_STAGE + r"attn\.branches", r"\1.{i}.attn.attn{j}", _SCALAR),
    (_STAGE + r"attn\.(qkv|project_out)\.kernel", r"\1.{i}.attn.\2.weight", _POINTWISE),
    (_STAGE + r"attn\.qkv_dwconv\.kernel", r"\1.{i}.attn.qkv_dwconv.weight", _DEPTHWISE),
    (_STAGE + r"ffn\.(project_in|project_out)\.kernel", r"\1.{i}.ffn.\2.weight", _POINTWISE),
    (_STAGE + r"ffn\.(dwconv|dwconv3x3|dwconv5x5)\.kernel", r"\1.{i}.ffn.\2.weight", _DEPTHWISE),
    (_STAGE + r"ffn\.(dwconv\dx\d_1)\.kernel", r"\1.{i}.ffn.\2.weight", _CONV),
    (_STAGE + r"(attn|ffn)\.(\w+)\.bias", r"\1.{i}.\2.\3.bias", _SAME),
    (r"(\w+)\.gate_in\.kernel", r"\1.layers.0.ca_fc.0.weight", _LINEAR),
    (r"(\w+)\.gate_in\.bias", r"\1.layers.0.ca_fc.0.bias", _SAME),
    (r"(\w+)\.gate_out\.kernel", r"\1.layers.0.ca_fc.2.weight", _LINEAR),
    (r"(\w+)\.gate_out\.bias", r"\1.layers.0.ca_fc.2.bias", _SAME),
    (r"(\w+)\.preprocess\.kernel", r"\1.layers.1.preprocess.op.0.weight", _POINTWISE),
    (_STEP + r"join\.kernel", _STEP_KEY + r"_out.0.weight", _POINTWISE),
    (_STEP + r"(separable\d)\.depthwise_first\.kernel", _EXPERT_KEY + "0.weight", _DEPTHWISE),
    (_STEP + r"(separable\d)\.pointwise_first\.kernel", _EXPERT_KEY + "1.weight", _POINTWISE),
    (_STEP + r"(separable\d)\.depthwise_last\.kernel", _EXPERT_KEY + "3.weight", _DEPTHWISE),
    (_STEP + r"(separable\d)\.pointwise_last\.kernel", _EXPERT_KEY + "4.weight", _POINTWISE),
    (_STEP + r"(dilated\d)\.depthwise\.kernel", _EXPERT_KEY + "0.weight", _DEPTHWISE),
    (_STEP + r"(dilated\d)\.pointwise_last\.kernel", _EXPERT_KEY + "1.weight", _POINTWISE),
)
# Leaves whose last axis holds the hidden channels in the order of `MixedScale`.
_REORDERED = re.compile(_STAGE + r"ffn\.(project_in|dwconv3x3|dwconv5x5)\.(kernel|bias)")


class _Entry(NamedTuple):
    """One official key: the place it fills in a leaf, and how."""

    leaf: str
    place: tuple[Any, ...]
    layout: _Layout
    order: np.ndarray | None

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        value = self.layout.ours(value)
        return value if self.order is None else value[..., self.order]

    def to_official(self, value: np.ndarray) -> np.ndarray:
        return self.layout.official(
            value if self.order is None else value[..., np.argsort(self.order)]
        )


def _entries(config: ModelConfig) -> dict[str, _Entry]:
    """Every official key of the architecture."""
    entries: dict[str, _Entry] = {}
    for leaf, abstract in _flat(abstract_params(config)).items():
        template, layout = _rule(leaf)
        reordered = config.feed_forward == "msfn" and _REORDERED.fullmatch(leaf)
        order = np.array(hidden_order(abstract.shape[-1] // 2)) if reordered else None
        for key, place in _places(template, abstract.shape):
            entries[key] = _Entry(leaf, place, layout, order)
    return entries


def _rule(leaf: str) -> tuple[str, _Layout]:
    found = [
        (match.expand(key), layout)
        for pattern, key, layout in _RULES
        if (match := re.fullmatch(pattern, leaf))
    ]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} rules of the conversion table match {leaf}")
    key, layout = found[0]
    return re.sub("|".join(_EXPERTS), lambda match: str(_EXPERTS.index(match[0])), key), layout


def _places(template: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for i in range(shape[0]) if "{i}" in template else [None]:
        stack = () if i is None else (i,)
        for j in range(shape[-1]) if "{j}" in template else [None]:
            key = template.replace("{i}", str(i)).replace("{j}", str(1 if j is None else j + 1))
            yield key, stack if j is None else (*stack, ..., j)


def _flat(tree: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep=".")


def from_torch(
    state: Mapping[str, Any], topk_fractions: tuple[str, ...] | None = None
) -> DRSformer:
    """Builds the network from an official state dict; its `config` says which variant it is.

    Args:
        state: official keys to arrays or tensors of PyTorch, channels first as PyTorch has them; or
            what holds such a mapping, as `state_dict` reads it.
        topk_fractions: those of a network that was trained with other than the published ones,
            which a state dict does not hold; default: those noted beside it, or the published ones.

    Raises:
        InputError: names every missing, unused and wrongly shaped key.
    """
    found = state_dict(state)
    config = infer_config(shapes_of(found), topk_fractions or noted_fractions(state))
    return build(config, params_from_torch(found, config))


def to_torch(model: DRSformer) -> dict[str, np.ndarray]:
    """The official state dict of a network; undoes `from_torch`.

    It cannot hold `config.topk_fractions`: where they are not the published ones, `from_torch`
    must be given them, and the official programs compute another network of it.
    """
    return params_to_torch(nnx.to_pure_dict(nnx.state(model, nnx.Param)), model.config)


def notes(config: ModelConfig) -> dict[str, str]:
    """What to note beside official parameters, which lack it; nothing for a published network."""
    if config.topk_fractions == ModelConfig.topk_fractions:
        return {}
    return {NOTE: json.dumps({"topk_fractions": config.topk_fractions})}


def noted_fractions(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The top-k fractions that `notes` wrote beside parameters, or else the published ones.

    Raises:
        InputError: if the note is damaged.
    """
    if NOTE not in content:
        return ModelConfig.topk_fractions
    try:
        return tuple(map(str, json.loads(content[NOTE])["topk_fractions"]))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"the note {NOTE} is damaged ({type(error).__name__}); expected topk_fractions"
        ) from None


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of arrays by name."""
    return {name: value.shape for name, value in state.items()}


def describe(config: ModelConfig) -> str:
    """Says in a few words which network it is: a preset, or how it differs from the nearest one."""

    def differences(preset: ModelConfig) -> dict[str, Any]:
        ours, theirs = config.architecture(), preset.architecture()
        return {name: value for name, value in ours.items() if value != theirs[name]}

    name, differing = min(
        ((name, differences(preset)) for name, preset in PRESETS.items()),
        key=lambda item: len(item[1]),
    )
    return name + "".join(f", {field} {value}" for field, value in differing.items())


def params_from_torch(state: Mapping[str, Any], config: ModelConfig) -> Params:
    """The parameters of `config` from a bare state dict; raises as `from_torch` does."""
    entries = _entries(config)
    abstract = _flat(abstract_params(config))
    empty = {leaf: np.broadcast_to(np.int8(0), value.shape) for leaf, value in abstract.items()}
    expected = {
        key: entry.to_official(empty[entry.leaf][entry.place]).shape
        for key, entry in entries.items()
    }
    problems = mismatches(shapes_of(state), expected)
    problems += [
        f"{key} is {value.dtype}, expected floating point"
        for key, value in state.items()
        if not jnp.issubdtype(value.dtype, jnp.floating)
    ]
    _reject(problems)
    leaves = {leaf: np.zeros(value.shape, value.dtype) for leaf, value in abstract.items()}
    for key, entry in entries.items():
        target = leaves[entry.leaf][entry.place] = entry.to_ours(state[key])
        if not np.isfinite(target).all():
            problems.append(f"{key} holds values that are not finite")
    _reject(problems)
    with wide_types(config):
        params = jax.device_put(leaves)  # `jnp.asarray` compiles a program for each shape.
    return traverse_util.unflatten_dict(params, sep=".")


def mismatches(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Everything in which named arrays differ from those expected, one text each.

    Args:
        found: shapes by name.
        expected: likewise.
    """
    missing = [f"{name} is missing" for name in expected if name not in found]
    unused = [f"{name} is not used" for name in found if name not in expected]
    wrong = [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    return missing + unused + wrong


def _reject(problems: list[str]) -> None:
    if problems:
        raise InputError("the checkpoint does not fit the network: " + "; ".join(problems))


def params_to_torch(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """The official state dict of parameters, or of anything of their structure (gradients)."""
    leaves = {leaf: np.asarray(value) for leaf, value in _flat(params).items()}
    return {
        key: np.ascontiguousarray(entry.to_official(leaves[entry.leaf][entry.place]))
        for key, entry in _entries(config).items()
    }


def infer_config(
    shapes: Mapping[str, tuple[int, ...]],
    topk_fractions: tuple[str, ...] = ModelConfig.topk_fractions,
) -> ModelConfig:
    """Reads the architecture off the keys and shapes of an official state dict.

    Args:
        shapes: shape of each array by its official key.
        topk_fractions: of the top-k attention, of which a state dict holds the number alone.

    Raises:
        InputError: if the keys belong to no network of this family, or not to so many fractions.
    """
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    first = "encoder_level1.0"

    def length(key: str, axis: int) -> int:
        if len(shapes.get(key, ())) <= axis:
            found = f"has shape {shapes[key]}" if key in shapes else "is missing"
            raise InputError(f"{key} {found}; expected the arrays of DRSformer or Restormer")
        return shapes[key][axis]

    dim = length("patch_embed.proj.weight", 0)
    heads = tuple(length(f"{level}.0.attn.temperature", 0) for level in levels)
    hidden = [length(f"{level}.0.ffn.project_out.weight", 1) for level in levels]
    widened = length(f"{first}.ffn.project_in.weight", 0)
    if f"{first}.ffn.dwconv3x3.weight" in shapes:
        feed_forward, hidden = "msfn", [width // 2 for width in hidden]
    elif f"{first}.ffn.dwconv.weight" in shapes:
        feed_forward = "gdfn" if widened == 2 * hidden[0] else "dfn"
    else:
        feed_forward = "fn"
    refinement_blocks = _count(shapes, "refinement")
    has_experts = any(key.startswith("refinement.layers.") for key in shapes)
    fields: dict[str, Any] = {
        "dim": dim,
        "blocks": tuple(_count(shapes, level) for level in levels),
        "heads": heads,
        "encoder_level0": (
            "mefc" if any(key.startswith("encoder_level0.") for key in shapes) else "none"
        ),
        "refinement": "mefc" if has_experts else "blocks" if refinement_blocks else "none",
        "refinement_blocks": refinement_blocks or ModelConfig.refinement_blocks,
        "attention": "topk" if f"{first}.attn.attn1" in shapes else "dense",
        "feed_forward": feed_forward,
        "norm": "with_bias" if f"{first}.norm1.body.bias" in shapes else "bias_free",
        "bias": f"{first}.attn.qkv.bias" in shapes,
        "topk_fractions": topk_fractions,
    }
    branches = sum(re.fullmatch(rf"{first}\.attn\.attn\d+", key) is not None for key in shapes)
    if branches not in (0, len(topk_fractions)):
        raise InputError(
            f"the attention has {branches} branches for top-k fractions {topk_fractions}; expected "
            "a fraction for each, noted in the file by `drsformer convert --to-torch`"
        )
    config = ModelConfig(**fields)
    return dataclasses.replace(config, expansion=_expansion(config, hidden))


def _count(shapes: Mapping[str, tuple[int, ...]], stage: str) -> int:
    pattern = re.compile(rf"{stage}\.(\d+)\..*")
    return len({match[1] for key in shapes if (match := pattern.fullmatch(key))})


def _expansion(config: ModelConfig, hidden: list[int]) -> float:
    """The expansion that gives the hidden channels found; the published one where it does."""
    widths = [config.channels(level) for level in range(4)]
    if [config.hidden(width) for width in widths] == hidden:
        return config.expansion
    low = max(found / width for found, width in zip(hidden, widths, strict=True))
    high = min((found + 1) / width for found, width in zip(hidden, widths, strict=True))
    if low >= high:
        raise InputError(f"hidden channels are {hidden} for {widths}; expected one ratio")
    return (low + high) / 2

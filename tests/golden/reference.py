"""DRSformer, Restormer and the slides' ablations in PyTorch, written for reading rather than speed.

An independent check on the package: each line follows a description of the networks of "Learning A
Sparse Transformer Network for Effective Image Deraining" (CVPR 2023) and "Restormer" (CVPR 2022),
nothing is fused, and nothing is imported from the package. Weights are a dict under the official
checkpoints' keys. A variant is a dict with the architecture fields of
`drsformer_jax.config.ModelConfig`. Images go in and out as b h w c; inside, arrays are b c h w.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Variant = Mapping[str, Any]
Weights = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

EXPERT_SIZES = {"separable": (1, 3, 5, 7), "dilated": (3, 5, 7)}
MEFC_STEPS = 4
MEFC_EXPERTS = 8


class Forward(NamedTuple):
    """What one forward pass gives: b h w c arrays, and the closest of all top-k decisions."""

    output: Tensor
    stages: dict[str, Tensor]
    smallest_topk_gap: float


class Training(NamedTuple):
    """What some optimizer steps on one batch give; norms are of the gradients before clipping."""

    output: np.ndarray
    losses: np.ndarray
    total_grad_norms: np.ndarray
    grad_norms: np.ndarray
    smallest_topk_gap: float


def official_shapes(variant: Variant) -> Shapes:
    """Every key of the official state dict with its shape, in the official order."""
    return dict(_network_shapes(variant))


def recipe_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """Float32 weights that anyone can draw again from a key, its shape and the seed."""
    return {key: _recipe_weight(key, shape, seed) for key, shape in shapes.items()}


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


_Keys = Iterator[tuple[str, tuple[int, ...]]]


def _conv_shapes(name: str, inputs: int, outputs: int, size: int, bias: bool) -> _Keys:
    """`inputs` is what one output channel reads: the channels divided by the groups."""
    yield f"{name}.weight", (outputs, inputs, size, size)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm_shapes(name: str, channels: int, variant: Variant) -> _Keys:
    yield f"{name}.body.weight", (channels,)
    if variant["norm"] == "with_bias":
        yield f"{name}.body.bias", (channels,)


def _attention_shapes(name: str, channels: int, heads: int, variant: Variant) -> _Keys:
    bias = variant["bias"]
    yield f"{name}.temperature", (heads, 1, 1)
    if variant["attention"] == "topk":
        for n in range(len(variant["topk_fractions"])):
            yield f"{name}.attn{n + 1}", (1,)
    yield from _conv_shapes(f"{name}.qkv", channels, 3 * channels, 1, bias)
    yield from _conv_shapes(f"{name}.qkv_dwconv", 1, 3 * channels, 3, bias)
    yield from _conv_shapes(f"{name}.project_out", channels, channels, 1, bias)


def _feed_forward_shapes(name: str, channels: int, variant: Variant) -> _Keys:
    kind, bias = variant["feed_forward"], variant["bias"]
    hidden = int(channels * variant["expansion"])
    wide = 2 * hidden if kind in ("msfn", "gdfn") else hidden
    yield from _conv_shapes(f"{name}.project_in", channels, wide, 1, bias)
    if kind == "msfn":
        yield from _conv_shapes(f"{name}.dwconv3x3", 1, wide, 3, bias)
        yield from _conv_shapes(f"{name}.dwconv5x5", 1, wide, 5, bias)
        yield from _conv_shapes(f"{name}.dwconv3x3_1", 2, hidden, 3, bias)
        yield from _conv_shapes(f"{name}.dwconv5x5_1", 2, hidden, 5, bias)
    elif kind in ("gdfn", "dfn"):
        yield from _conv_shapes(f"{name}.dwconv", 1, wide, 3, bias)
    narrow = wide if kind == "msfn" else hidden
    yield from _conv_shapes(f"{name}.project_out", narrow, channels, 1, bias)


def _blocks_shapes(name: str, count: int, channels: int, heads: int, variant: Variant) -> _Keys:
    for i in range(count):
        block = f"{name}.{i}"
        yield from _norm_shapes(f"{block}.norm1", channels, variant)
        yield from _attention_shapes(f"{block}.attn", channels, heads, variant)
        yield from _norm_shapes(f"{block}.norm2", channels, variant)
        yield from _feed_forward_shapes(f"{block}.ffn", channels, variant)


def _mefc_shapes(name: str, channels: int) -> _Keys:
    gates = MEFC_STEPS * MEFC_EXPERTS
    yield f"{name}.layers.0.ca_fc.0.weight", (2 * gates, channels)
    yield f"{name}.layers.0.ca_fc.0.bias", (2 * gates,)
    yield f"{name}.layers.0.ca_fc.2.weight", (gates, 2 * gates)
    yield f"{name}.layers.0.ca_fc.2.bias", (gates,)
    yield f"{name}.layers.1.preprocess.op.0.weight", (channels, channels, 1, 1)
    for step in range(MEFC_STEPS):
        place = f"{name}.layers.1._ops.{step}"
        for n, size in enumerate(EXPERT_SIZES["separable"]):
            op = f"{place}._ops.{n}.op"
            yield f"{op}.0.weight", (channels, 1, size, size)
            yield f"{op}.1.weight", (channels, channels, 1, 1)
            yield f"{op}.3.weight", (channels, 1, size, size)
            yield f"{op}.4.weight", (channels, channels, 1, 1)
        for n, size in enumerate(EXPERT_SIZES["dilated"], start=len(EXPERT_SIZES["separable"])):
            op = f"{place}._ops.{n}.op"
            yield f"{op}.0.weight", (channels, 1, size, size)
            yield f"{op}.1.weight", (channels, channels, 1, 1)
        yield f"{place}._out.0.weight", (channels, MEFC_EXPERTS * channels, 1, 1)


def _network_shapes(variant: Variant) -> _Keys:
    c, blocks, heads, bias = variant["dim"], variant["blocks"], variant["heads"], variant["bias"]
    yield "patch_embed.proj.weight", (c, 3, 3, 3)
    if variant["encoder_level0"] == "mefc":
        yield from _mefc_shapes("encoder_level0", c)
    yield from _blocks_shapes("encoder_level1", blocks[0], c, heads[0], variant)
    yield "down1_2.body.0.weight", (c // 2, c, 3, 3)
    yield from _blocks_shapes("encoder_level2", blocks[1], 2 * c, heads[1], variant)
    yield "down2_3.body.0.weight", (c, 2 * c, 3, 3)
    yield from _blocks_shapes("encoder_level3", blocks[2], 4 * c, heads[2], variant)
    yield "down3_4.body.0.weight", (2 * c, 4 * c, 3, 3)
    yield from _blocks_shapes("latent", blocks[3], 8 * c, heads[3], variant)
    yield "up4_3.body.0.weight", (16 * c, 8 * c, 3, 3)
    yield from _conv_shapes("reduce_chan_level3", 8 * c, 4 * c, 1, bias)
    yield from _blocks_shapes("decoder_level3", blocks[2], 4 * c, heads[2], variant)
    yield "up3_2.body.0.weight", (8 * c, 4 * c, 3, 3)
    yield from _conv_shapes("reduce_chan_level2", 4 * c, 2 * c, 1, bias)
    yield from _blocks_shapes("decoder_level2", blocks[1], 2 * c, heads[1], variant)
    yield "up2_1.body.0.weight", (4 * c, 2 * c, 3, 3)
    yield from _blocks_shapes("decoder_level1", blocks[0], 2 * c, heads[0], variant)
    if variant["refinement"] == "mefc":
        yield from _mefc_shapes("refinement", 2 * c)
    elif variant["refinement"] == "blocks":
        count = variant["refinement_blocks"]
        yield from _blocks_shapes("refinement", count, 2 * c, heads[0], variant)
    yield from _conv_shapes("output", 2 * c, 3, 3, bias)


def forward(weights: Weights, image: Tensor, variant: Variant) -> Forward:
    """Runs the network on `image` (b h w 3, in [0, 1]) in the type of its arguments."""
    _check_weights(weights, variant)
    w, v, blocks, heads = weights, variant, variant["blocks"], variant["heads"]
    x = image.permute(0, 3, 1, 2)
    s: dict[str, Tensor] = {}
    gaps = [math.inf]

    def level(name: str, number: int, feature: Tensor) -> None:
        s[name] = _blocks(w, name, feature, blocks[number], heads[number], v, gaps)

    s["patch_embed"] = _conv(w, "patch_embed.proj", x)
    first = s["patch_embed"]
    if v["encoder_level0"] == "mefc":
        first = s["encoder_level0"] = _mefc(w, "encoder_level0", first)
    level("encoder_level1", 0, first)
    s["down1_2"] = F.pixel_unshuffle(_conv(w, "down1_2.body.0", s["encoder_level1"]), 2)
    level("encoder_level2", 1, s["down1_2"])
    s["down2_3"] = F.pixel_unshuffle(_conv(w, "down2_3.body.0", s["encoder_level2"]), 2)
    level("encoder_level3", 2, s["down2_3"])
    s["down3_4"] = F.pixel_unshuffle(_conv(w, "down3_4.body.0", s["encoder_level3"]), 2)
    level("latent", 3, s["down3_4"])

    s["up4_3"] = F.pixel_shuffle(_conv(w, "up4_3.body.0", s["latent"]), 2)
    joined = torch.cat([s["up4_3"], s["encoder_level3"]], dim=1)
    s["reduce_chan_level3"] = _conv(w, "reduce_chan_level3", joined)
    level("decoder_level3", 2, s["reduce_chan_level3"])
    s["up3_2"] = F.pixel_shuffle(_conv(w, "up3_2.body.0", s["decoder_level3"]), 2)
    joined = torch.cat([s["up3_2"], s["encoder_level2"]], dim=1)
    s["reduce_chan_level2"] = _conv(w, "reduce_chan_level2", joined)
    level("decoder_level2", 1, s["reduce_chan_level2"])
    s["up2_1"] = F.pixel_shuffle(_conv(w, "up2_1.body.0", s["decoder_level2"]), 2)
    level("decoder_level1", 0, torch.cat([s["up2_1"], s["encoder_level1"]], dim=1))

    last = s["decoder_level1"]
    if v["refinement"] == "mefc":
        last = s["refinement"] = _mefc(w, "refinement", last)
    elif v["refinement"] == "blocks":
        count = v["refinement_blocks"]
        last = s["refinement"] = _blocks(w, "refinement", last, count, heads[0], v, gaps)
    s["output"] = _conv(w, "output", last)
    stages = {name: feature.permute(0, 2, 3, 1) for name, feature in s.items()}
    return Forward(image + stages["output"], stages, min(gaps))


def _check_weights(weights: Weights, variant: Variant) -> None:
    found = {key: tuple(weight.shape) for key, weight in weights.items()}
    wrong = found.items() ^ official_shapes(variant).items()
    if wrong:
        raise ValueError(f"keys or shapes are not the variant's: {sorted(wrong)[:4]}")


def _conv(w: Weights, name: str, x: Tensor, dilation: int = 1) -> Tensor:
    """Same-size convolution; the groups follow from the weight's shape."""
    weight = w[f"{name}.weight"]
    padding = dilation * (weight.shape[-1] // 2)
    groups = x.shape[1] // weight.shape[1]
    bias = w.get(f"{name}.bias")
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=groups)


def _blocks(
    w: Weights, name: str, x: Tensor, count: int, heads: int, v: Variant, gaps: list[float]
) -> Tensor:
    for i in range(count):
        block = f"{name}.{i}"
        x = x + _attention(w, f"{block}.attn", _norm(w, f"{block}.norm1", x, v), heads, v, gaps)
        x = x + _feed_forward(w, f"{block}.ffn", _norm(w, f"{block}.norm2", x, v), v)
    return x


def _norm(w: Weights, name: str, x: Tensor, v: Variant) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    deviation = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + 1e-5)
    weight = w[f"{name}.body.weight"].reshape(1, -1, 1, 1)
    if v["norm"] == "bias_free":
        return x / deviation * weight
    bias = w[f"{name}.body.bias"].reshape(1, -1, 1, 1)
    return (x - mean) / deviation * weight + bias


def _attention(
    w: Weights, name: str, x: Tensor, heads: int, v: Variant, gaps: list[float]
) -> Tensor:
    """Attention across channels: over each row's largest scores, or over all."""
    b, c, height, width = x.shape
    qkv = _conv(w, f"{name}.qkv_dwconv", _conv(w, f"{name}.qkv", x))
    q, k, value = (part.reshape(b, heads, c // heads, -1) for part in qkv.chunk(3, dim=1))
    q, k = F.normalize(q, dim=-1, eps=1e-12), F.normalize(k, dim=-1, eps=1e-12)
    scores = q @ k.transpose(-2, -1) * w[f"{name}.temperature"]
    if v["attention"] == "dense":
        out = scores.softmax(dim=-1) @ value
    else:
        out = torch.zeros_like(value)
        for n, fraction in enumerate(v["topk_fractions"]):
            kept = int(Fraction(fraction) * (c // heads))
            gaps.append(_topk_gap(scores, kept))
            out = out + w[f"{name}.attn{n + 1}"] * (_sparse_softmax(scores, kept) @ value)
    return _conv(w, f"{name}.project_out", out.reshape(b, c, height, width))


def _sparse_softmax(scores: Tensor, kept: int) -> Tensor:
    index = torch.topk(scores, kept, dim=-1).indices
    mask = torch.zeros_like(scores).scatter(-1, index, 1.0)
    return torch.where(mask > 0, scores, -math.inf).softmax(dim=-1)


def _topk_gap(scores: Tensor, kept: int) -> float:
    """Smallest difference between the last score that is kept and the first that is not."""
    if kept >= scores.shape[-1]:
        return math.inf
    ordered = scores.detach().sort(dim=-1, descending=True).values
    return float((ordered[..., kept - 1] - ordered[..., kept]).min())


def _feed_forward(w: Weights, name: str, x: Tensor, v: Variant) -> Tensor:
    kind = v["feed_forward"]
    x = _conv(w, f"{name}.project_in", x)
    if kind == "msfn":
        a1, a2 = F.relu(_conv(w, f"{name}.dwconv3x3", x)).chunk(2, dim=1)
        b1, b2 = F.relu(_conv(w, f"{name}.dwconv5x5", x)).chunk(2, dim=1)
        x1 = F.relu(_conv(w, f"{name}.dwconv3x3_1", torch.cat([a1, b1], dim=1)))
        x2 = F.relu(_conv(w, f"{name}.dwconv5x5_1", torch.cat([a2, b2], dim=1)))
        x = torch.cat([x1, x2], dim=1)
    elif kind == "gdfn":
        x1, x2 = _conv(w, f"{name}.dwconv", x).chunk(2, dim=1)
        x = F.gelu(x1) * x2
    elif kind == "dfn":
        x = F.gelu(_conv(w, f"{name}.dwconv", x))
    else:
        x = F.gelu(x)
    return _conv(w, f"{name}.project_out", x)


def _mefc(w: Weights, name: str, x: Tensor) -> Tensor:
    """The mixture of experts feature compensator."""
    fc, place = f"{name}.layers.0.ca_fc", f"{name}.layers.1"
    gate = F.relu(F.linear(x.mean(dim=(2, 3)), w[f"{fc}.0.weight"], w[f"{fc}.0.bias"]))
    gate = F.linear(gate, w[f"{fc}.2.weight"], w[f"{fc}.2.bias"])
    gate = gate.reshape(-1, MEFC_STEPS, MEFC_EXPERTS).softmax(dim=-1)
    s = F.relu(_conv(w, f"{place}.preprocess.op.0", x))
    for step in range(MEFC_STEPS):
        experts = _experts(w, f"{place}._ops.{step}._ops", s)
        scaled = [expert * gate[:, step, n, None, None, None] for n, expert in enumerate(experts)]
        mixed = F.relu(_conv(w, f"{place}._ops.{step}._out.0", torch.cat(scaled, dim=1)))
        s = F.relu(mixed + s)
    return s


def _experts(w: Weights, place: str, s: Tensor) -> list[Tensor]:
    experts = []
    for n in range(len(EXPERT_SIZES["separable"])):
        op = f"{place}.{n}.op"
        half = F.relu(_conv(w, f"{op}.1", _conv(w, f"{op}.0", s)))
        experts.append(_conv(w, f"{op}.4", _conv(w, f"{op}.3", half)))
    for n in range(len(EXPERT_SIZES["dilated"])):
        op = f"{place}.{n + len(EXPERT_SIZES['separable'])}.op"
        experts.append(_conv(w, f"{op}.1", _conv(w, f"{op}.0", s, dilation=2)))
    experts.append(F.avg_pool2d(s, 3, stride=1, padding=1, count_include_pad=False))
    return experts


def train(
    weights: Mapping[str, np.ndarray],
    rainy: np.ndarray,
    clean: np.ndarray,
    variant: Variant,
    steps: int = 4,
) -> Training:
    """The first steps of the official recipe on one batch (b h w 3), in float64.

    AdamW at 3e-4 with decay 1e-4 on every weight, the gradient clipped to norm 0.01, mean L1 loss.
    """
    parameters = {key: torch.from_numpy(w).double().requires_grad_() for key, w in weights.items()}
    every = list(parameters.values())
    optimizer = torch.optim.AdamW(every, lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4)
    x, target = torch.from_numpy(rainy).double(), torch.from_numpy(clean).double()
    results, losses, totals, gaps = [], [], [], []
    for _ in range(steps):
        result = forward(parameters, x, variant)
        loss = F.l1_loss(result.output, target)
        optimizer.zero_grad()
        loss.backward()
        if not results:
            results.append(result.output.detach().numpy())
            grad_norms = np.array([float(p.grad.norm()) for p in every])
        totals.append(float(torch.nn.utils.clip_grad_norm_(every, 0.01)))
        optimizer.step()
        losses.append(loss.item())
        gaps.append(result.smallest_topk_gap)
    return Training(results[0], np.array(losses), np.array(totals), grad_norms, min(gaps))

"""Times every implementation of the operations of `drsformer_jax.ops`, and plain XLA, in turn.

python benchmarks/ops.py [--all] [--only mixed_scale] [--dtype float32] [--runs 7] [--json ops.json]
    [--without-plain]
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from timing import compiled, jitted, machine, race, ready, seconds

from drsformer_jax.config import ModelConfig
from drsformer_jax.files import write_text
from drsformer_jax.nn.experts import DILATED_SIZES, EXPERTS, SEPARABLE_SIZES, Step
from drsformer_jax.nn.rows import AT_ONCE
from drsformer_jax.ops.attention import (
    ChannelSums,
    QueryKeyWeights,
    channel_scores,
    channel_sums,
    query_key_sums,
    sparse_softmax,
)
from drsformer_jax.ops.depthwise import average_pool, depthwise_conv, grouped_conv
from drsformer_jax.ops.gated import GatedWeights, gated
from drsformer_jax.ops.linear import Affine, linear
from drsformer_jax.ops.mixed_scale import mixed_scale
from drsformer_jax.ops.mixed_scale_channels import MixedScaleWeights
from drsformer_jax.ops.pixels import pixel_shuffle, pixel_unshuffle

Variant = Callable[..., jax.Array]
LEVELS = ((64, 192), (256, 48), (256, 96), (128, 96), (32, 384))
"""Side and channels of the network's levels for an image of 256x256; the first is the default."""
EXPANSION = 2.66
HOPELESS = 20
"""Times the fastest: what takes longer is not repeated."""


def plain_conv(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """XLA's own convolution: kernel k k i o, output channel n reads the n-th i channels."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding="SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def plain_pairs(first: jax.Array, second: jax.Array, kernel: jax.Array) -> jax.Array:
    """The grouped convolution by XLA, of channels that are neighbors."""
    return plain_conv(jnp.stack([first, second], -1).reshape(*first.shape[:3], -1), kernel)


def plain_mixed_scale(x: jax.Array, weights: MixedScaleWeights) -> jax.Array:
    """The mixed-scale network by XLA, its channels in the official order."""
    x = x @ weights.project_in.kernel.astype(x.dtype)
    paths = [
        jax.nn.relu(plain_conv(x, path.kernel[:, :, None]))
        for path in (weights.depthwise3x3, weights.depthwise5x5)
    ]
    halves = zip(*(jnp.split(path, 2, axis=-1) for path in paths), strict=True)
    kernels = weights.grouped3x3.kernel, weights.grouped5x5.kernel
    mixed = [
        jax.nn.relu(plain_conv(jnp.concatenate(half, -1), kernel))
        for half, kernel in zip(halves, kernels, strict=True)
    ]
    return jnp.concatenate(mixed, -1) @ weights.project_out.kernel.astype(x.dtype)


def plain_gated(x: jax.Array, weights: GatedWeights) -> jax.Array:
    """The gated network by XLA."""
    both = plain_conv(
        x @ weights.project_in.kernel.astype(x.dtype), weights.depthwise.kernel[:, :, None]
    )
    gate, value = jnp.split(both, 2, -1)
    product = jax.nn.gelu(gate, approximate=False) * value
    return product @ weights.project_out.kernel.astype(x.dtype)


def plain_sums(x: jax.Array, weights: QueryKeyWeights, heads: int) -> ChannelSums:
    """Queries, keys and their sums by XLA."""
    y = x @ weights.pointwise.kernel.astype(x.dtype)
    both = plain_conv(y, weights.depthwise.kernel[:, :, None])
    query, key = (
        part.reshape(len(x), -1, heads, x.shape[-1] // heads) for part in jnp.split(both, 2, -1)
    )
    return channel_sums(query, key)


def plain_pool(x: jax.Array) -> jax.Array:
    """The average pool by XLA."""
    window = {"window_dimensions": (1, 3, 3, 1), "window_strides": (1,) * 4, "padding": "SAME"}
    total, count = (
        jax.lax.reduce_window(values, np.zeros((), x.dtype), jax.lax.add, **window)
        for values in (x, jnp.ones((1, *x.shape[1:3], 1), x.dtype))
    )
    return total / count


def plain_step(x: jax.Array, gates: jax.Array, step: Step) -> jax.Array:
    """A step of the mixture of experts by XLA, expert by expert."""
    cast = x.dtype
    experts = []
    for size in SEPARABLE_SIZES:
        own = getattr(step, f"separable{size}")
        y = plain_conv(x, own.depthwise_first.kernel[:, :, None])
        y = jax.nn.relu(y @ own.pointwise_first.kernel[...].astype(cast))
        y = plain_conv(y, own.depthwise_last.kernel[:, :, None])
        experts.append(y @ own.pointwise_last.kernel[...].astype(cast))
    for size in DILATED_SIZES:
        own = getattr(step, f"dilated{size}")
        y = plain_conv(x, own.depthwise.kernel[:, :, None], dilation=2)
        experts.append(y @ own.pointwise_last.kernel[...].astype(cast))
    experts.append(plain_pool(x))
    gated = [gates[:, n, None, None, None].astype(cast) * y for n, y in enumerate(experts)]
    joined = jnp.concatenate(gated, axis=-1) @ step.join.kernel[...].astype(cast)
    return jax.nn.relu(x + jax.nn.relu(joined))


def pallas() -> tuple[str, ...]:
    """The name of the implementation with Pallas kernels, on platforms that have some."""
    return ("pallas",) if jax.default_backend() in ("tpu", "gpu") else ()


def step_variants(draw: Variant, channels: int) -> tuple[Any, dict[str, Variant]]:
    """Parameters of a step of the mixture of experts, and functions of an image, gates and them."""
    definitions = {
        name: nnx.split(Step(channels, ModelConfig(kernels=kernels)))
        for name, kernels in (("single", "xla"), *((name, name) for name in pallas()))
    }
    definition, empty = definitions["single"]
    params = jax.tree.map(lambda leaf: draw(*leaf.shape), empty)
    variants = {
        name: lambda x, gates, params, own=own: nnx.merge(own, params)(x, gates, AT_ONCE)
        for name, (own, _) in definitions.items()
    }
    variants["plain"] = lambda x, gates, params: plain_step(x, gates, nnx.merge(definition, params))
    return params, variants


def cases(
    draw: Variant, dtype: str, side: int, channels: int, every: bool
) -> Iterator[tuple[str, dict, tuple]]:
    """The name of an operation, its variants by name, and their arguments, at one level's shape.

    Images are of `dtype`, parameters and scores of float32, as in the network.
    """
    hidden = int(channels * EXPANSION)
    x, wide = (draw(1, side, side, size).astype(dtype) for size in (channels, 2 * hidden))
    conv_names = ("by_pixel", "by_tap", *pallas())
    kernels = [(3, 1), (5, 1)]
    if every:
        kernels += [(1, 1), (7, 1), (3, 2), (5, 2), (7, 2)]
    for size, dilation in kernels:
        variants: dict[str, Variant] = {
            name: functools.partial(depthwise_conv, dilation=dilation, implementation=name)
            for name in conv_names
        }
        variants["plain"] = lambda x, k, d=dilation: plain_conv(x, k[:, :, None], d)
        yield f"depthwise {size}x{size}/{dilation}", variants, (wide, draw(size, size, 2 * hidden))
    for size in (3, 5):
        variants = {
            name: lambda a, b, k, name=name: grouped_conv([a, b], k, name) for name in conv_names
        }
        arguments = (wide[..., :hidden], wide[..., hidden:], draw(size, size, 2, hidden))
        yield f"grouped {size}x{size}", {**variants, "plain": plain_pairs}, arguments
    shapes = ((channels, 2 * hidden), (3, 3, 2 * hidden), (5, 5, 2 * hidden))
    shapes += ((3, 3, 2, hidden), (5, 5, 2, hidden), (2 * hidden, channels))
    mixed_weights = MixedScaleWeights(*(Affine(draw(*shape), None) for shape in shapes))
    variants = {
        name: functools.partial(mixed_scale, implementation=name)
        for name in ("whole", "aligned", "strips", *pallas())
    }
    yield "mixed_scale", {**variants, "plain": plain_mixed_scale}, (x, mixed_weights)
    shapes = ((channels, 2 * hidden), (3, 3, 2 * hidden), (hidden, channels))
    gated_weights = GatedWeights(*(Affine(draw(*shape), None) for shape in shapes))
    variants = {
        name: functools.partial(gated, implementation=name)
        for name in ("whole", "strips", *pallas())
    }
    yield "gated", {**variants, "plain": plain_gated}, (x, gated_weights)
    yield "average_pool", {"single": average_pool, "plain": plain_pool}, (x,)
    params, variants = step_variants(draw, channels)
    yield "expert_step", variants, (jnp.abs(x), jnp.full((1, EXPERTS), 1 / EXPERTS), params)
    variants = {"own gradient": linear, "plain": lambda x, k: x @ k.astype(x.dtype)}
    yield "linear", variants, (x, draw(channels, 2 * hidden))
    heads = channels // 48
    both = (
        Affine(draw(*shape), None) for shape in ((channels, 2 * channels), (3, 3, 2 * channels))
    )
    variants = {
        name: functools.partial(query_key_sums, heads=heads, implementation=name)
        for name in ("whole", "strips", *pallas())
    }
    variants["plain"] = functools.partial(plain_sums, heads=heads)
    yield "query_key_sums", variants, (x, QueryKeyWeights(*both))
    pixels = draw(1, side * side, heads, 48).astype(dtype)
    variants = {"single": lambda q, k, t: channel_scores(channel_sums(q, k), t)}
    yield "channel_scores", variants, (pixels, pixels[:, ::-1], draw(heads))
    softmax = functools.partial(sparse_softmax, top_k=(24, 32, 36, 38))
    one = {"single": lambda scores, weights: softmax(scores, weights=weights)}
    yield "sparse_softmax", one, (draw(1, heads, 48, 48), draw(4))
    for move in (pixel_unshuffle, pixel_shuffle):
        yield move.__name__, {"single": move}, (x,)


def normal(random: np.random.Generator) -> Variant:
    """Draws arrays of a shape; products over all but the last axis keep their size."""

    def draw(*shape: int) -> jax.Array:
        values = random.standard_normal(shape, np.float32) / math.sqrt(math.prod(shape[:-1]))
        return jnp.asarray(values)

    return draw


def gradients(variant: Variant, count: int) -> Variant:
    """Gradients to all arguments, of a loss that is not linear."""

    def loss(*arguments: jax.Array) -> jax.Array:
        leaves = jax.tree.leaves(variant(*arguments))
        return sum(jnp.sin(leaf.astype(jnp.float32)).sum() for leaf in leaves)

    return jax.grad(loss, argnums=tuple(range(count)))


def times(
    programs: Mapping[str, Callable[[], object]], runs: int
) -> tuple[dict[str, float], list[str]]:
    """Milliseconds of each, and which took so long at first that they did not run again."""
    spent = {name: seconds(program) for name, program in programs.items()}
    once = [name for name, first in spent.items() if first > HOPELESS * min(spent.values())]
    spent |= race({name: programs[name] for name in programs if name not in once}, runs)
    return {name: 1e3 * found for name, found in spent.items()}, once


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every level, kernel and dilation")
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument(
        "--without-plain",
        action="store_true",
        help="leaves plain XLA out, which takes minutes for some gradients on a CPU",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each (default 7)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def main() -> None:
    """Prints a table of milliseconds."""
    options = arguments()
    draw = normal(np.random.default_rng(0))
    if options.dtype == "float32":  # For plain XLA on accelerators too, as for our operations.
        jax.config.update("jax_default_matmul_precision", "highest")
    title = f"{machine()}, {options.dtype}, median of {options.runs} runs in turn, milliseconds"
    print(title)
    rows = []
    for side, channels in LEVELS if options.all else LEVELS[:1]:
        for name, variants, inputs in cases(draw, options.dtype, side, channels, options.all):
            if options.only not in name:
                continue
            if options.without_plain:
                variants.pop("plain", None)
            back = {variant: gradients(run, len(inputs)) for variant, run in variants.items()}
            for what, programs in (("forward", variants), ("gradient", back)):
                ready_programs = {
                    variant: ready(compiled(jitted(run), *inputs)[0], *inputs)
                    for variant, run in programs.items()
                }
                found, once = times(ready_programs, options.runs)
                row = {"operation": name, "what": what, "side": side, "channels": channels}
                rows.append({**row, "milliseconds": found, "once": once})
                text = "  ".join(
                    f"{variant} {spent:.1f}{' (once)' * (variant in once)}"
                    for variant, spent in found.items()
                )
                print(f"{side:4}x{channels:<4} {name:16} {what:9} {text}", flush=True)
    if options.json:
        write_text(options.json, json.dumps({"title": title, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

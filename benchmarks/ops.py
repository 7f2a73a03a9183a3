"""Times the operations of `drsformer_jax.ops` against plain XLA ones, in turn in one run.

python benchmarks/ops.py [--runs 7] [--json ops.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from drsformer_jax.files import write_text
from drsformer_jax.ops.depthwise import depthwise_conv
from drsformer_jax.ops.linear import linear

SHAPES = ((8, 64, 64, 84), (8, 16, 16, 336))


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The plain depthwise convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def forward(conv: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The convolution alone."""
    return conv


def gradients(conv: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Gradients to input and kernel, of a loss that is not linear."""
    return jax.grad(lambda x, kernel: jnp.sin(conv(x, kernel)).sum(), argnums=(0, 1))


def before_convolution(project: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Gradients of a linear map whose output a depthwise convolution reads."""

    def loss(x: jax.Array, weight: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(depthwise_conv(project(x, weight), kernel)).sum()

    return jax.grad(loss, argnums=(0, 1))


def race(
    ours: Callable[..., jax.Array], plain: Callable[..., jax.Array], inputs: tuple, runs: int
) -> tuple[float, float]:
    """Median milliseconds of two programs that take turns."""
    compiled = [jax.jit(function).lower(*inputs).compile() for function in (ours, plain)]
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for program, spent in zip(compiled, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            if run:  # The first run warms up.
                spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Prints a table of milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each (default 7)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    print(f"{jax.devices()[0].device_kind}, float32, median of {arguments.runs}, milliseconds")
    print(f"{'operation':34} {'shape':>18} {'ours':>8} {'plain':>8} {'plain/ours':>10}")
    rows = []

    def report(name: str, shape: tuple[int, ...], ours: float, plain: float) -> None:
        rows.append({"operation": name, "shape": shape, "ours_ms": ours, "plain_ms": plain})
        size = "x".join(map(str, shape))
        print(f"{name:34} {size:>18} {ours:8.1f} {plain:8.1f} {plain / ours:10.1f}", flush=True)

    for shape in SHAPES:
        x = jnp.asarray(random.standard_normal(shape, np.float32))
        for size in (3, 5):
            kernel = jnp.asarray(random.standard_normal((size, size, shape[-1]), np.float32))
            for name, of in (("forward", forward), ("gradients", gradients)):
                figures = race(of(depthwise_conv), of(grouped_conv), (x, kernel), arguments.runs)
                report(f"depthwise {size}x{size} {name}", shape, *figures)
        narrow = x[..., : shape[-1] // 5]
        weight = jnp.asarray(random.standard_normal((shape[-1] // 5, shape[-1]), np.float32))
        both = before_convolution(linear), before_convolution(jnp.matmul)
        figures = race(*both, (narrow, weight, kernel), arguments.runs)
        report("1x1 gradients before a depthwise", shape, *figures)
    if arguments.json:
        write_text(arguments.json, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Holds an accelerator's values and gradients against the CPU's: every operation, and the network.

python benchmarks/device_parity.py [--skip network] [--preset drsformer] [--size 128x128] [--json F]

A row is one implementation in one type on the first device, and its relative L2 distance from
the first implementation in float32 on the CPU, which has the same inputs. It exits with 1 where one
is farther than rounding explains.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from against_torch import CLOSE, CLOSE_GRADIENTS, KERNELS
from ops import LEVELS, cases, gradients, normal
from timing import Table, image_size, machine

from drsformer_jax.config import PRESETS, ModelConfig
from drsformer_jax.errors import InputError, one_line_errors, reason
from drsformer_jax.nn.functional import apply, init_params

DTYPES = ("float32", "bfloat16")
ROUNDING = {"float32": 2e-5, "bfloat16": 3e-2}
"""Most that operations may differ by, in relative L2, values and gradients."""
PARTS = ("network", "operations")

Row = dict[str, Any]


def main() -> None:
    """Prints each distance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip", choices=PARTS, help="leaves a part out")
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--preset", choices=PRESETS, default="drsformer", help="(%(default)s)")
    parser.add_argument(
        "--size", type=image_size, default=(128, 128), metavar="WxH", help="(128x128)"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    # Accelerators would multiply float32 in fewer bits.
    jax.config.update("jax_default_matmul_precision", "highest")
    with one_line_errors():
        table = Table(
            f"relative L2 distance from float32 on the CPU; {machine()}",
            {
                "what": "<16",
                "pass": "<8",
                "implementation": "<14",
                "dtype": "<8",
                "distance": "9.1e",
                "bound": "7.0e",
            },
        )
        for part, rows in (("operations", operations), ("network", network)):
            if part != arguments.skip:
                for row in rows(arguments):
                    table.add(**row)
                    table.write(arguments.json)  # What is known stays if the rest fails.
        sys.exit(verdict(table.rows))


def verdict(rows: list[Row]) -> int:
    """Exit status, after a line for each row that failed."""
    if not rows:
        print("nothing was compared; expected a name of an operation after --only")
        return 1
    bad = [row for row in rows if "failed" in row or not row["distance"] <= row["bound"]]
    for row in bad:
        name = f"{row['what']}, {row['pass']}, {row['implementation']}, {row['dtype']}"
        found = row.get("failed") or f"{row['distance']:.1e}; expected at most {row['bound']:.0e}"
        print(f"{name}: {found}")
    print(f"{len(rows) - len(bad)} of {len(rows)} are close")
    return 1 if bad else 0


def operations(arguments: argparse.Namespace) -> Iterator[Row]:
    """Every implementation of the operations."""
    side, channels = LEVELS[0]
    for dtype in DTYPES:
        draw = normal(np.random.default_rng(0))
        for name, variants, inputs in cases(draw, dtype, side, channels, False):
            if arguments.only not in name:
                continue
            variants.pop("plain", None)  # Its gradients take minutes on a CPU.
            back = {variant: gradients(run, len(inputs)) for variant, run in variants.items()}
            for which, programs in (("forward", variants), ("gradient", back)):
                reference = on_cpu(next(iter(programs.values())), inputs)
                for variant, program in programs.items():
                    row = {"what": name, "pass": which, "implementation": variant, "dtype": dtype}
                    yield row | compared(program, inputs, reference, ROUNDING[dtype])


def network(arguments: argparse.Namespace) -> Iterator[Row]:
    """The whole network, and the gradient of the L1 loss to its parameters."""
    random = np.random.default_rng(0)
    shape = (2, *arguments.size, 3)
    rainy, clean = (jnp.asarray(random.random(shape, np.float32)) for _ in range(2))
    base = PRESETS[arguments.preset]
    inputs = (init_params(base, jax.random.key(0)), rainy, clean)

    def forward(config: ModelConfig) -> Callable[..., Any]:
        return lambda params, rainy, _: apply(config, params, rainy)

    def gradient(config: ModelConfig) -> Callable[..., Any]:
        return jax.grad(
            lambda params, rainy, clean: jnp.abs(apply(config, params, rainy) - clean).mean()
        )

    for which, program, close in (
        ("forward", forward, CLOSE),
        ("gradient", gradient, CLOSE_GRADIENTS),
    ):
        reference = on_cpu(program(base), inputs)
        for dtype in DTYPES:
            for kernels in KERNELS:
                config = dataclasses.replace(base, dtype=dtype, kernels=kernels)
                row = {
                    "what": arguments.preset,
                    "pass": which,
                    "implementation": kernels,
                    "dtype": dtype,
                }
                yield row | compared(program(config), inputs, reference, close[dtype])


def on_cpu(program: Callable[..., Any], inputs: Any) -> np.ndarray:
    """What the CPU computes of the same inputs, all in float32."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), inputs)
    device = jax.devices("cpu")[0]
    with jax.default_device(device):
        return flat(jax.jit(program)(*jax.device_put(wide, device)))


def compared(program: Callable[..., Any], inputs: Any, reference: np.ndarray, bound: float) -> Row:
    """The distance of what the first device computes; why, if it does not."""
    try:
        found = flat(jax.jit(program)(*inputs))
    except Exception as error:  # Compilers let out errors of many kinds.
        return {"distance": None, "bound": bound, "failed": reason(error)}
    if found.shape != reference.shape:
        raise InputError(f"{found.size} numbers came; expected {reference.size}")
    distance = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    return {"distance": float(distance), "bound": bound}


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree in one vector."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


if __name__ == "__main__":
    main()

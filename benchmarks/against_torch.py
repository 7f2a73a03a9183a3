"""Times the network beside the same in PyTorch, with the same weights, in turn in one process.

python benchmarks/against_torch.py [--preset drsformer] [--size 256x256] [--train] [--json F.json]
python benchmarks/against_torch.py --dtypes float32 --modes eager --runtimes OpenVINO "ONNX Runtime"
python benchmarks/against_torch.py --verify
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# PyTorch's part of a GPU's memory is not to be taken at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import runtimes
from timing import Table, image_size, jitted, machine, race, ready, size_text

from drsformer_jax.config import PRESETS, ModelConfig
from drsformer_jax.errors import InputError, one_line_errors, reason
from drsformer_jax.nn.functional import Params, apply, init_params
from drsformer_jax.weights.convert import params_to_torch

try:
    import torch
    from torch.nn import functional

    from drsformer_jax.exporting.torch_network import DRSformer, with_weights
except ImportError:
    torch = None

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"
NETWORKS = ("drsformer", "drsformer_no_mefc")
DTYPES = ("float32", "bfloat16")
KERNELS = ("xla", "pallas")
MODES = ("eager", "channels last", "compiled", "compiled channels last")
CLOSE = {"float32": 5e-3, "bfloat16": 5e-2}
"""Relative L2 between ours and PyTorch's: the choice of scores is discontinuous, and rounding
decides on the place of close ones. On the default image ours is within 5e-8 of the result in
float64, and PyTorch's, where one such score goes the other way, within 1.2e-3. `--verify` holds
PyTorch's network to 1e-5 on an image without close scores."""
CLOSE_GRADIENTS = {"float32": 1e-2, "bfloat16": 0.5}
"""Likewise of all gradients together; a sum over pixels has little left of bfloat16's 8 bits."""
SETTLED = 0.2
"""Seconds between turns: PyTorch's threads spin on for a while and would slow the next."""


Key = tuple[str, str]
"""Name of a program and the type that it computes in."""


class Program(NamedTuple):
    """One program to time."""

    run: Callable[[], Any]
    """Ends when the result is there."""
    array: Callable[[Any], np.ndarray]
    """Makes a result comparable: images as b h w c, or all gradients in one vector."""


def main() -> None:
    """Prints milliseconds of each program, and ours over it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=NETWORKS, default=NETWORKS[0], help="(%(default)s)")
    parser.add_argument(
        "--size", type=image_size, default=(256, 256), metavar="WxH", help="(256x256)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="(all)")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, help="of PyTorch, such as 'eager' (all)"
    )
    parser.add_argument(
        "--runtimes",
        nargs="+",
        choices=runtimes.PROGRAMS,
        default=(),
        help="that run PyTorch's network too, forward in float32 on a CPU (none)",
    )
    parser.add_argument(
        "--kernels", nargs="+", choices=KERNELS, default=KERNELS[:1], help="of ours (xla)"
    )
    parser.add_argument("--train", action="store_true", help="the gradient of the L1 loss")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turn (default 5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument(
        "--verify", action="store_true", help="compare with the official numbers, and time nothing"
    )
    arguments = parser.parse_args()
    if arguments.runtimes and (arguments.train or "float32" not in arguments.dtypes):
        parser.error("--runtimes compute forward in float32; expected no --train, and float32")
    if arguments.runtimes and torch is None:
        parser.error("--runtimes run PyTorch's network; expected PyTorch to be installed")
    with one_line_errors():
        if arguments.verify:
            verify()
        else:
            compare(arguments)


def verify() -> None:
    """Holds the PyTorch network against outputs of the official program."""
    if torch is None:
        raise InputError("PyTorch is not installed; expected it, to be verified")
    sys.path.append(str(ROOT / "tests"))
    from recipe import load, relative_error

    for preset in NETWORKS:
        path, config = GOLDEN / f"{preset}.npz", PRESETS[preset]
        if not path.exists():
            print(f"{path} is missing: {preset} is not verified")
            continue
        keys = json.loads((GOLDEN / f"{preset}_keys.json").read_text())
        golden = load(path, config.architecture(), keys)
        model = with_weights(config, golden.weights)
        with torch.inference_mode():
            found = model(torch.from_numpy(golden["input"]).permute(0, 3, 1, 2))
        error = relative_error(found.permute(0, 2, 3, 1), golden["output"])
        if not error <= 1e-5:
            raise InputError(f"{preset} is off by {error:.1e} relative L2; expected 1e-5 at most")
        print(f"{preset} equals the official program to {error:.1e} relative L2")


def compare(arguments: argparse.Namespace) -> None:
    """Checks that all compute the same, and times them."""
    with jax.default_device(shared_device()):
        programs = all_programs(arguments)
        first, failed = start(programs, CLOSE_GRADIENTS if arguments.train else CLOSE)
        times = race({key: programs[key].run for key in first}, arguments.runs, pause=SETTLED)
    what = "gradient of the L1 loss" if arguments.train else "forward"
    table = Table(
        f"{arguments.preset}, {what}, {arguments.batch} of {size_text(*arguments.size)}; "
        f"{surroundings()}; median of {arguments.runs} runs in turn",
        {
            "program": "<30",
            "dtype": "<8",
            "first_run_s": "7.1f",
            "ms": "9.1f",
            "megapixels_per_s": "8.3f",
            **{over(dtype): "6.2f" for dtype in arguments.dtypes},
        },
    )
    pixels = arguments.batch * math.prod(arguments.size)
    first_of_ours = f"ours {arguments.kernels[0]}"
    for (name, dtype), spent in times.items():
        table.add(
            program=name,
            dtype=dtype,
            first_run_s=first[name, dtype],
            ms=1e3 * spent,
            megapixels_per_s=pixels / spent / 1e6,
            **{over(of): times[first_of_ours, of] / spent for of in arguments.dtypes},
        )
    for (name, dtype), why in failed.items():
        table.add(program=name, dtype=dtype, failed=why)
        print(f"  did not run: {why}")
    table.write(arguments.json)


def over(dtype: str) -> str:
    """Name of the column that has our time in this type over a row's."""
    return f"ours_{dtype}_over_it"


def all_programs(arguments: argparse.Namespace) -> dict[Key, Program]:
    """Ours first, and PyTorch's where it is installed, all with the same weights."""
    random = np.random.default_rng(0)
    shape = (arguments.batch, *arguments.size, 3)
    pair = random.random(shape, np.float32), random.random(shape, np.float32)
    config = PRESETS[arguments.preset]
    params = init_params(config, jax.random.key(0))
    programs = {
        (f"ours {kernels}", dtype): our_program(
            dataclasses.replace(config, dtype=dtype, kernels=kernels), params, pair, arguments.train
        )
        for kernels, dtype in itertools.product(arguments.kernels, arguments.dtypes)
    }
    if torch is None:
        print("PyTorch is not installed: ours alone")
        return programs
    weights = params_to_torch(params, config)
    for mode, dtype in itertools.product(arguments.modes, arguments.dtypes):
        model = with_weights(config, weights)
        programs[f"PyTorch {mode}", dtype] = torch_program(
            model, mode, dtype, pair, arguments.train
        )
    for name in arguments.runtimes:
        model = with_weights(config, weights)
        programs[name, "float32"] = runtime_program(model, name, pair[0])
    return programs


def start(
    programs: Mapping[Key, Program], close: Mapping[str, float]
) -> tuple[dict[Key, float], dict[Key, str]]:
    """Runs each once, which compiles, and holds the results against the first of their type.

    Args:
        programs: ours before the others.
        close: most that results of a type may differ by, in relative L2.

    Returns:
        Seconds of those that ran, and why the others did not.

    Raises:
        InputError: if the first of a type did not, or a result differs.
    """
    first: dict[Key, float] = {}
    failed: dict[Key, str] = {}
    reference: dict[str, np.ndarray] = {}
    for (name, dtype), program in programs.items():
        start = time.perf_counter()
        try:
            result = program.run()
        except Exception as error:  # Compilers let out errors of many kinds.
            if dtype not in reference:
                raise InputError(f"{name} in {dtype} does not run: {reason(error)}") from error
            failed[name, dtype] = reason(error)
            continue
        first[name, dtype] = time.perf_counter() - start
        found = program.array(result)
        expected = reference.setdefault(dtype, found)
        if expected is found:
            continue
        difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        if not difference <= close[dtype]:
            raise InputError(
                f"{name} in {dtype} differs from ours by {difference:.1e} relative L2; expected "
                f"{close[dtype]:g} at most"
            )
        print(f"{name} in {dtype} agrees with ours to {difference:.1e} relative L2", flush=True)
    return first, failed


def our_program(
    config: ModelConfig, params: Params, pair: tuple[np.ndarray, np.ndarray], train: bool
) -> Program:
    """The network of this package."""
    rainy, clean = map(jnp.asarray, pair)

    def loss(params: Params, rainy: jax.Array, clean: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(apply(config, params, rainy) - clean))

    if not train:
        restore = jitted(functools.partial(apply, config))
        return Program(ready(restore, params, rainy), np.asarray)
    return Program(
        ready(jitted(jax.grad(loss)), params, rainy, clean),
        lambda found: joined(params_to_torch(found, config)),
    )


def torch_program(
    model: DRSformer, mode: str, dtype: str, pair: tuple[np.ndarray, np.ndarray], train: bool
) -> Program:
    """The network of PyTorch: as it is, or with what its users do for speed."""
    kind = "cpu" if shared_device().platform == "cpu" else "cuda"
    layout = torch.channels_last if "channels last" in mode else torch.contiguous_format
    rainy, clean = (
        torch.from_numpy(each).permute(0, 3, 1, 2).to(kind).contiguous(memory_format=layout)
        for each in pair
    )
    model = model.to(kind, memory_format=layout)
    network = torch.compile(model) if "compiled" in mode else model
    autocast = torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward() -> torch.Tensor:
        with torch.inference_mode(), autocast:
            return finished(network(rainy))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        with autocast:
            loss = functional.l1_loss(network(rainy), clean)
        loss.backward()
        return finished({key: value.grad for key, value in model.named_parameters()})

    def finished(result: Any) -> Any:
        if kind == "cuda":
            torch.cuda.synchronize()
        return result

    if not train:
        return Program(forward, lambda found: found.float().permute(0, 2, 3, 1).cpu().numpy())
    return Program(
        gradients, lambda found: joined({key: grad.cpu().numpy() for key, grad in found.items()})
    )


def runtime_program(model: DRSformer, name: str, rainy: np.ndarray) -> Program:
    """PyTorch's network in another runtime; its first run includes the conversion."""
    pixels = np.ascontiguousarray(rainy.transpose(0, 3, 1, 2))
    restore = functools.cache(lambda: runtimes.PROGRAMS[name](model, pixels.shape))
    return Program(lambda: restore()(pixels), lambda found: found.transpose(0, 2, 3, 1))


def joined(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """All numbers of a state dict in one vector."""
    return np.concatenate([state[key].ravel() for key in sorted(state)])


def shared_device() -> jax.Device:
    """A GPU where JAX and PyTorch both see one, else the CPU."""
    if torch is not None and torch.cuda.is_available() and jax.default_backend() == "gpu":
        return jax.devices()[0]
    return jax.devices("cpu")[0] if torch is not None else jax.devices()[0]


def surroundings() -> str:
    """The machine, and what PyTorch's speed depends on."""
    if torch is None:
        return machine(shared_device())
    threads = f"PyTorch {torch.__version__} with {torch.get_num_threads()} threads"
    return f"{machine(shared_device())}, {threads}"


if __name__ == "__main__":
    main()

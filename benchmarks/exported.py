"""Times exported programs beside the network that they were made of, in turn in one process.

python benchmarks/exported.py [--checkpoint RUN] [--preset drsformer] [--size 256x256] [--json F]

The image is a photograph with synthetic rain. ONNX Runtime and OpenVINO take part where they are
installed, in float32 with all cores that they are allowed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from runtimes import OPENVINO_HINTS
from timing import Table, image_size, jitted, machine, race, size_text

from drsformer_jax import weights
from drsformer_jax.config import PRESETS
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.errors import one_line_errors
from drsformer_jax.exporting.command import Export
from drsformer_jax.exporting.stablehlo import program_of
from drsformer_jax.nn.functional import init_params

KINDS = ("one size", "any size")
Program = Callable[[np.ndarray], np.ndarray]
SETTLED = 0.2
"""Seconds between turns: threads of a runtime spin on for a while and would slow the next."""


def main() -> None:
    """Prints bytes, milliseconds and the difference from the network, of each program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="default: the built-in network")
    parser.add_argument("--preset", choices=PRESETS, help="this network, untrained, in its place")
    parser.add_argument(
        "--size", type=image_size, default=(256, 256), metavar="WxH", help="(256x256)"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of files (both)")
    parser.add_argument("--runs", type=int, default=5, help="of each, in turn (default 5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Exports the network in every way, and times what came of it."""
    checkpoint = arguments.checkpoint or Path(weights.BUILTIN)
    if arguments.preset:
        config = PRESETS[arguments.preset]
        checkpoint = folder / arguments.preset
        weights.save(checkpoint, config, init_params(config, jax.random.key(0)))
    height, width = arguments.size
    rainy = np.float32(SyntheticRain(photographs("skimage")[1], 1, 0)[0]["rainy"]) / 255
    beyond = np.maximum(np.subtract((height, width), rainy.shape[:2]), 0)
    rainy = np.pad(rainy, [(0, beyond[0]), (0, beyond[1]), (0, 0)], "symmetric")
    rainy = np.ascontiguousarray(rainy[None, :height, :width])
    config, params = weights.load(checkpoint)
    ours = jitted(program_of(config.without_remat(), params))
    programs: dict[str, Program] = {"ours": lambda rainy: np.asarray(ours(rainy))}
    files: dict[str, Path] = {}
    for kind in arguments.kinds:
        size = "dynamic" if kind == "any size" else size_text(height, width)
        for runtime, (extension, needed, opened) in RUNTIMES.items():
            if not all(map(importlib.util.find_spec, needed)):
                continue
            file = folder / f"{kind}{extension}"
            if not file.exists():
                Export(checkpoint, file, size=size).run()
            name = f"{runtime}, {kind}"
            programs[name], files[name] = opened(file), file
    results, first = {}, {}
    for name, program in programs.items():
        start = time.perf_counter()
        results[name] = program(rainy)
        first[name] = time.perf_counter() - start
    turns = {name: functools.partial(program, rainy) for name, program in programs.items()}
    times = race(turns, arguments.runs, SETTLED)
    table = Table(
        f"{checkpoint.name}, 1 of {size_text(*rainy.shape[1:3])}, float32; {machine()}; median of "
        f"{arguments.runs} runs in turn",
        {
            "program": "<24",
            "bytes": "11,d",
            "first_run_s": "7.1f",
            "ms": "9.1f",
            "over_ours": "6.2f",
            "difference": "9.1e",
        },
    )
    for name, spent in times.items():
        table.add(
            program=name,
            bytes=files[name].stat().st_size if name in files else None,
            first_run_s=first[name],
            ms=1e3 * spent,
            over_ours=spent / times["ours"],
            difference=float(np.abs(results[name] - results["ours"]).max()),
        )
    table.write(arguments.json)


def jax_program(file: Path) -> Program:
    """A StableHLO file."""
    program = jax.jit(jax.export.deserialize(file.read_bytes()).call)
    return lambda rainy: np.asarray(program(rainy))


def onnxruntime_program(file: Path) -> Program:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda rainy: session.run(None, {"rainy": rainy})[0]


def openvino_program(file: Path) -> Program:
    """An ONNX file in OpenVINO."""
    import openvino

    program = openvino.Core().compile_model(file, "CPU", OPENVINO_HINTS)
    return lambda rainy: program(rainy)[0]


_ONNX = ("onnx", "torch")
RUNTIMES: dict[str, tuple[str, tuple[str, ...], Callable[[Path], Program]]] = {
    "StableHLO": (".stablehlo", (), jax_program),
    "ONNX Runtime": (".onnx", (*_ONNX, "onnxruntime"), onnxruntime_program),
    "OpenVINO": (".onnx", (*_ONNX, "openvino"), openvino_program),
}
"""What runs which kind of file, and the modules that writing and running it need."""


if __name__ == "__main__":
    main()

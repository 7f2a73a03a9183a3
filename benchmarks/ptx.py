"""Counts what the kernels of a program for NVIDIA's GPUs run, from their PTX.

XLA writes the PTX of all kernels that it generates itself (`--xla_dump_to`), and NVIDIA's assembler
(`pip install nvidia-cuda-nvcc-cu12`) tells what a kernel keeps in registers, and what it spills to
memory. Kernels of cuBLAS and cuDNN are not among them.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_ENTRY = re.compile(r"^(?:\.visible )?\.entry (\w+)\(", re.MULTILINE)
_TARGET = re.compile(r"^\.target (\w+)", re.MULTILINE)
_SPILLED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: after the instruction that it was made for.
        instructions: of its PTX, each once: a thread of a kernel without loops runs so many.
        spilled: bytes that a thread stores and loads again; None if the assembler is missing.
    """

    name: str
    instructions: int
    spilled: int | None


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Of what this process compiles; removed at its end."""
    return tempfile.TemporaryDirectory(prefix="ptx-")


def flags() -> str:
    """Value of XLA_FLAGS, before JAX is imported, for the PTX of all that is compiled."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={_folder().name}"


def clear() -> None:
    """Forgets earlier programs."""
    for path in Path(_folder().name).iterdir():
        path.unlink()


@functools.cache
def assembler() -> Path | None:
    """Where `ptxas` is; None if it is not installed."""
    try:
        files = metadata.files("nvidia-cuda-nvcc-cu12") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(file.locate()) for file in files if file.name == "ptxas"), None)


def kernels(folder: Path | None = None) -> list[Kernel]:
    """The kernels of what was compiled, longest first.

    Args:
        folder: where their PTX is; default: where `flags` has it written.
    """
    found = []
    for path in sorted((folder or Path(_folder().name)).glob("*.ptx")):
        text = path.read_text()
        spilled = spills(_assembled(path, text))
        # What is before the first entry, then in turn a name and what follows it.
        _, *parts = _ENTRY.split(text)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            code = (line.partition("//")[0].strip() for line in body.partition("{")[2].splitlines())
            count = sum(line.endswith(";") and not line.startswith(".") for line in code)
            found.append(Kernel(name, count, spilled.get(name)))
    return sorted(found, key=lambda kernel: -kernel.instructions)


def _assembled(path: Path, text: str) -> str:
    """What the assembler says of a file; empty if it is missing or cannot read the file."""
    tool, target = assembler(), _TARGET.search(text)
    if tool is None or target is None:
        return ""
    command = [tool, "-v", f"--gpu-name={target[1]}", path, "--output-file", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(f"ptxas fails ({result.stderr.strip().splitlines()[-1]}): spills are unknown")
        return ""
    return result.stderr


def spills(said: str) -> dict[str, int]:
    """Bytes that each kernel spills, of what the assembler says."""
    return {name: int(store) + int(load) for name, store, load in _SPILLED.findall(said)}

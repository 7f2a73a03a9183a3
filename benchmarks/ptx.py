"""Counts what the kernels of a program for NVIDIA's GPUs run, from their PTX.

XLA writes the PTX of all kernels that it generates itself (`--xla_dump_to`), and NVIDIA's assembler
(`pip install nvidia-cuda-nvcc-cu12`) tells what a kernel keeps in registers, and what it spills to
memory. Kernels of cuBLAS and cuDNN are not among them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_FOLDER = tempfile.TemporaryDirectory(prefix="ptx-")
"""Of what this process compiles; removed at its end."""
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


def flags() -> str:
    """Value of XLA_FLAGS, before JAX is imported, for the PTX of all that is compiled."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={_FOLDER.name}"


def clear() -> None:
    """Forgets earlier programs."""
    for path in Path(_FOLDER.name).iterdir():
        path.unlink()


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
    for path in sorted((folder or Path(_FOLDER.name)).glob("*.ptx")):
        text = path.read_text()
        spilled = _spilled(path, text)
        # What is before the first entry, then in turn a name and what follows it.
        _, *parts = _ENTRY.split(text)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            code = (line.partition("//")[0].strip() for line in body.partition("{")[2].splitlines())
            count = sum(line.endswith(";") and not line.startswith(".") for line in code)
            found.append(Kernel(name, count, spilled.get(name)))
    return sorted(found, key=lambda kernel: -kernel.instructions)


def _spilled(path: Path, text: str) -> dict[str, int]:
    """Bytes that each kernel of a file spills."""
    tool, target = assembler(), _TARGET.search(text)
    if tool is None or target is None:
        return {}
    command = [tool, "-v", f"--gpu-name={target[1]}", path, "--output-file", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True)
    return {name: int(store) + int(load) for name, store, load in _SPILLED.findall(result.stderr)}

"""What holds an accelerator against the CPU finds what differs, and needs a GPU only on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import device_parity
import jax.numpy as jnp
import pytest

BENCHMARKS = Path(device_parity.__file__).parent


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["device_parity.py", "--skip", "network", *arguments])
    with pytest.raises(SystemExit) as stop:
        device_parity.main()
    return stop.value.code


def test_values_and_gradients_of_an_operation_are_held_against_float32(
    monkeypatch, tmp_path, capsys
):
    file = tmp_path / "parity.json"
    assert run(monkeypatch, "--only", "average_pool", "--json", str(file)) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["pass"], row["dtype"]) for row in rows] == [
        (which, dtype) for dtype in ("float32", "bfloat16") for which in ("forward", "gradient")
    ]
    assert all(row["distance"] == 0 for row in rows[:2])  # Here both sides are the same CPU.
    assert all(0 < row["distance"] < 3e-2 for row in rows[2:])
    assert capsys.readouterr().out.endswith("4 of 4 are close\n")


def test_an_implementation_that_differs_or_fails_is_a_line_and_the_program_fails(
    monkeypatch, capsys
):
    def fails(x):
        raise RuntimeError("no such kernel")

    def cases(*_):
        x = jnp.ones((2, 3))
        yield (
            "square",
            {"first": lambda x: x * x, "off": lambda x: 1.001 * x * x, "no": fails},
            (x,),
        )

    monkeypatch.setattr(device_parity, "cases", cases)
    monkeypatch.setattr(device_parity, "DTYPES", ("float32",))
    assert run(monkeypatch) == 1
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert lines[0] == "square, forward, off, float32: 1.0e-03; expected at most 2e-05"
    assert lines[1] == "square, forward, no, float32: no such kernel"
    assert lines[-1] == "2 of 6 are close"


def test_script_for_gpus_says_in_one_line_that_there_is_none(tmp_path):
    done = subprocess.run(
        ["bash", BENCHMARKS / "on_gpu.sh", tmp_path / "out"],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX runs on 'cpu cpu'; expected a GPU")

"""eval.py in this process, and images for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.images.pixels import write_image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("eval_program", ROOT / "eval.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Where dataclasses look up their annotations.
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder: rainy, restored and clean images under three kinds of names."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in (1, 2):
        clean = rng.integers(40, 200, (24, 32, 3), dtype=np.uint8)
        for folder, name, noise in (
            ("data/target", f"{index}.png", 0),
            ("data/input", f"{index}.png", 40),
            ("restored", f"{index}.png", 10),
            ("tagged", f"{index}_DR.png", 10),
        ):
            error = rng.integers(-noise, noise + 1, clean.shape)
            write_image(tmp_path / folder / name, (clean + error).astype(np.uint8))
    return tmp_path


@pytest.fixture
def score(program, capsys):
    """Scores with these flags; returns what was printed."""

    def score(**flags):
        program.score(program.Command(**flags))
        return capsys.readouterr().out

    return score

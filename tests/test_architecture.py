"""Who may import whom: a part of the package imports only from parts that stand above it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "drsformer_jax"

LEAVES = {"__version__", "clusters", "errors", "files", "flags", "locks", "remote", "types"}
"""What every part may import; they import one another at most."""
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "ops": set(),
    "metrics": {"config"},
    "sharding": {"config"},
    "nn": {"config", "ops"},
    "images": set(),
    "data": {"config", "sharding", "images"},
    "training": {"config", "metrics", "nn", "ops", "sharding"},
    "weights": {"config", "nn", "training"},
    "restoring": {"config", "data", "images", "nn", "ops", "sharding", "weights"},
    "demo": {"config", "data", "images", "restoring", "weights"},
    "scoring": {"config", "data", "metrics", "nn", "restoring", "sharding", "training"},
    "exporting": {"config", "images", "nn", "scoring", "weights"},
    "planning": {"config", "nn", "restoring", "sharding", "training"},
    "report": {"config", "data", "images", "restoring", "scoring", "training"},
}
"""The other parts in order, and what each may import beside itself and the leaves."""
EVERYTHING = {"cli", "__init__", "__main__"}
"""What joins the parts: imports any of them, and is imported by none."""


def files() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


def imports(source: str, module: tuple[str, ...]) -> Iterator[str]:
    """Every module that the source of `module` imports, wherever in the file; names too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module[: len(module) - node.level] if node.level else ()
            start = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def forbidden(source: str, part: str, module: tuple[str, ...]) -> list[str]:
    """What `source`, a file of `part`, imports of the package and may not."""
    allowed = LEAVES | ALLOWED.get(part, set()) | {part}
    inside = [name for name in imports(source, module) if name.split(".")[0] == PACKAGE]
    starts = [f"{PACKAGE}.{name}" for name in allowed]
    return [
        name
        for name in inside
        if not any(name == start or name.startswith(f"{start}.") for start in starts)
    ]


def module_of(file: Path) -> tuple[str, ...]:
    return file.relative_to(ROOT).with_suffix("").parts


def test_every_file_belongs_to_a_part():
    assert {part_of(file) for file in files()} <= ALLOWED.keys() | LEAVES | EVERYTHING


def test_every_part_stands_below_what_it_may_import():
    order = list(ALLOWED)
    for row, part in enumerate(order):
        assert ALLOWED[part] <= set(order[:row])


@pytest.mark.parametrize(
    "file",
    [file for file in files() if part_of(file) not in EVERYTHING],
    ids=lambda file: str(file.relative_to(ROOT / PACKAGE)),
)
def test_file_imports_only_what_its_part_may(file):
    assert forbidden(file.read_text(), part_of(file), module_of(file)) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import drsformer_jax.nn", "ops.pixels"),
        ("from drsformer_jax import training", "ops.pixels"),
        ("from drsformer_jax import DRSformer", "nn.norm"),
        ("import drsformer_jax", "nn.norm"),
        ("from ..training import train_step", "nn.norm"),
        ("def late():\n    from drsformer_jax.cli import main", "images"),
        ("from drsformer_jax.data.synthetic import rain", "weights"),
        ("from drsformer_jax.data import synthetic", "weights"),
        ("from drsformer_jax.config_of_mine import x", "nn.norm"),
        ("from drsformer_jax.config import TrainConfig", "flags"),
    ],
)
def test_walk_sees_an_import_upwards(source, module):
    names = (PACKAGE, *module.split("."))
    assert forbidden(source, names[1], names) != []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from drsformer_jax.images.pixels import read", "data.pairs"),
        ("from drsformer_jax.images import pixels", "data.pairs"),
        ("from .norm import LayerNorm", "nn.drsformer"),
        ("import drsformer_jax.errors", "flags"),
        ("import numpy\nfrom jax import numpy as jnp", "ops.pixels"),
    ],
)
def test_walk_permits_an_import_downwards(source, module):
    names = (PACKAGE, *module.split("."))
    assert forbidden(source, names[1], names) == []


def test_configuration_and_errors_need_the_standard_library_alone():
    for file in [*(ROOT / PACKAGE / "config").glob("*.py"), ROOT / PACKAGE / "errors.py"]:
        roots = {name.split(".")[0] for name in imports(file.read_text(), module_of(file))}
        assert roots <= sys.stdlib_module_names | {PACKAGE}


def test_run_configurations_import_the_configuration_alone():
    for file in (ROOT / "configs").glob("*.py"):
        names = list(imports(file.read_text(), module_of(file)))
        inside = [name for name in names if name.split(".")[0] == PACKAGE]
        assert all(name.startswith(f"{PACKAGE}.config.") for name in inside), (file.name, inside)

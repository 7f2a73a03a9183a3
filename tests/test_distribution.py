"""What is published: the contents of the wheel, and the files around it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from programs import ROOT

import drsformer_jax

DATA = {
    "py.typed",
    "planning/gpus/h100.txtpb",
    "pretrained/README.md",
    "pretrained/config.json",
    "pretrained/params.safetensors",
    "report/page.css",
    "report/page.html.jinja",
    "scoring/published_results.json",
}


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_data_alone(tmp_path):
    # Of a copy, because setuptools builds beside its sources.
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "drsformer_jax", tmp_path / "drsformer_jax", ignore=ignored)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", "dist", "."], cwd=tmp_path, check=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.startswith(f"drsformer_jax-{drsformer_jax.__version__}-")
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {name.parts[0] for name in names} == {
        "drsformer_jax",
        f"drsformer_jax-{drsformer_jax.__version__}.dist-info",
    }
    sources = {
        path.relative_to(tmp_path)
        for path in (tmp_path / "drsformer_jax").rglob("*")
        if path.is_file()
    }
    assert {Path("drsformer_jax", name) for name in DATA} <= sources
    assert {name for name in names if name.parts[0] == "drsformer_jax"} == sources


def test_version_is_the_one_to_cite():
    version = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version
    assert version[1] == drsformer_jax.__version__


def test_constraints_fit_the_requirements():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = [line.split("#")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    wanted += [each for name in ("dev", "dist", "docs", "test") for each in extras[name]]
    for requirement in map(Requirement, filter(str.strip, wanted)):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name != "drsformer-jax":
            assert exact[name] in requirement.specifier, requirement

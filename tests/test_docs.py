"""What the documentation shows: its blocks are run, and its flags and links exist.

A block of shell (`sh`: commands, `console`: commands after `$` and what they print) or `python` is
run in a folder with photographs, pairs and a network, page by page and in order. Printed lines are
compared without their numbers. `<!-- not run: WHY -->` above a block leaves it out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro
from programs import ROOT, UNOPTIMIZED

from drsformer_jax import cli

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
NOTEBOOK = ROOT / "docs" / "notebooks" / "restore.ipynb"
BLOCK = re.compile(r"^( *)```([^\n`]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- not run: (\S.*) -->\n\s*\Z")
NUMBER = re.compile(r"[0-9a-f]{64}|[+-]?(\d[\d,.]*|inf|nan)")
LOADED = """
from drsformer_jax.images.pixels import read_image
rainy = read_image("photos/cup.png")
"""
"""Run before a block of Python, which may be an excerpt of a program."""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    why_not_run: str

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Each command, and the lines that it prints."""
        if self.language != "console":
            yield self.text, []
            return
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, printed = re.sub(r"\\\n", " ", part).partition("\n")
            yield command, printed.splitlines()


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        mark = MARK.search(text[: match.start()])
        found.append(Block(match[2], match[3], mark[1] if mark else ""))
    return found


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_run(block: Block) -> bool:
    return block.language in ("sh", "console", "python") and not block.why_not_run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Rainy photographs, pairs, a network called as in the README, and the programs."""
    from drsformer_jax.data.synthetic import SyntheticRain, photographs
    from drsformer_jax.images.pixels import write_image

    folder = tmp_path_factory.mktemp("docs") / "prepared"
    rain = SyntheticRain(photographs("skimage")[0], 1, 0)
    for index, photograph in enumerate(("cat.png", "cup.png", "trip/portrait.jpg", "")):
        pair = {side: rain[0][side][32 * index :][:64, :96] for side in ("rainy", "clean")}
        if photograph:
            write_image(folder / "photos" / photograph, pair["rainy"])
            write_image(folder / "clean" / photograph, pair["clean"])
        for split in ("train", "test"):
            for side, image in (("input", pair["rainy"]), ("target", pair["clean"])):
                write_image(folder / "pairs" / split / side / f"0{index}.png", image)
    shutil.copytree(model, folder / "runs" / "rain100l")
    for program in ("configs", "train.py", "eval.py"):
        (folder / program).symlink_to(ROOT / program)
    return folder


def run(command: str, folder: Path, *, python: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a command of a page, with the package and the programs of this checkout."""
    shell = 'drsformer() { python -m drsformer_jax "$@"; }\n'
    program = [sys.executable, "-c", LOADED + command]
    environment = {
        **os.environ,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "TFDS_DATA_DIR": str(folder / "tensorflow_datasets"),
        "XLA_FLAGS": UNOPTIMIZED,
    }
    return subprocess.run(
        program if python else ["bash", "-euc", shell + command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def without_numbers(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(map(is_run, blocks(p)))], ids=name)
def test_blocks_run_and_print_what_the_page_shows(page, prepared, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(prepared, folder, symlinks=True)
    for block in filter(is_run, blocks(page)):
        for command, shown in block.commands():
            ended = run(command, folder, python=block.language == "python")
            fails = any(line.startswith("error: ") for line in shown)
            assert (ended.returncode != 0) == fails, f"{command}\n{ended.stdout}"
            printed = {without_numbers(line) for line in ended.stdout.splitlines()}
            missing = {without_numbers(line) for line in shown if line != "..."} - printed
            assert not missing, f"{command}\n{ended.stdout}"


@pytest.mark.slow
def test_notebook_runs(prepared, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(prepared, folder, symlinks=True)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    ended = run(code, folder, python=True)
    assert ended.returncode == 0, ended.stdout


def test_notebook_is_stored_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_with_commands_say_so(page):
    command = re.compile(r"^(\$ |python |drsformer [a-z-]+ |make |pip )", re.MULTILINE)
    unlabeled = [block.text for block in blocks(page) if not block.language]
    assert not list(filter(command.search, unlabeled))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_exist(page):
    folders = "benchmarks|configs|docs|drsformer_jax|tests|tools"
    pattern = rf"(?<![\w./-])(?:{folders})/[\w./-]*\.(?:csv|ipynb|jpg|json|md|png|py|sh)\b"
    named = re.findall(pattern, page.read_text())
    assert [path for path in named if not (ROOT / path).is_file()] == []


def flags_of(application, *arguments: str) -> set[str]:
    """All flags that the help of a program lists."""
    box = io.StringIO()
    with contextlib.redirect_stdout(box), contextlib.suppress(SystemExit):
        application(args=[*arguments, "--help"])
    return set(re.findall(r"--[\w.-]+", box.getvalue()))


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Those of each program, by how it is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        train, score = (importlib.import_module(module) for module in ("train", "eval"))
    found = {f"drsformer {command}": cli.load(command) for command in cli.COMMANDS}
    found |= {"eval.py": score.Command}
    programs = {each: functools.partial(tyro.cli, kind) for each, kind in found.items()}
    programs["train.py"] = lambda args: train.parse_command(args)
    return {each: flags_of(program) for each, program in programs.items()}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_of_commands_exist(page, flags):
    shell = [block.text for block in blocks(page) if block.language in ("sh", "console")]
    commands = re.findall(
        r"(drsformer [a-z-]+|train\.py|eval\.py)([^\n|;&]*)", "\n".join(shell).replace("\\\n", " ")
    )
    for program, arguments in commands:
        given = re.findall(r"(?<!\S)--[a-z][\w.-]*", arguments)
        assert set(given) <= flags[program], program


def test_every_page_is_in_a_table_of_contents():
    docs = ROOT / "docs"
    trees = [block.text for block in blocks(docs / "index.md") if block.language == "{toctree}"]
    listed = {docs / f"{line}.md" for text in trees for line in text.split() if line[0] != ":"}
    assert set(PAGES[2:]) - listed == {docs / "index.md"}


def test_links_of_pages_outside_the_site_lead_somewhere():
    for page in PAGES[:2]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), link

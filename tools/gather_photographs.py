"""Gathers the photographs that the built-in network is trained on, from packages of Debian and pip.

python tools/gather_photographs.py OUT [--list tools/photographs.csv] [--packages DIR]
python tools/gather_photographs.py --credits CREDITS.md

Writes OUT/train/NAME.png, OUT/validation/NAME.png and OUT/CREDITS.md. The list tells which file of
which package a photograph is, and its SHA-256, which decides whether it is the right one.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib.metadata
import itertools
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from containers import QtResources, largest_jpeg
from PIL import Image

from drsformer_jax.errors import InputError, one_line_errors, reason
from drsformer_jax.files import check_writable, write_bytes, write_text
from drsformer_jax.images.pixels import decode_image, encode_image

LIST = Path(__file__).with_name("photographs.csv")
SPLITS = ("train", "validation")
LICENSES = {
    "public domain": None,
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "BSD-2-Clause": "https://opensource.org/license/bsd-2-clause",
}
"""The licenses that a photograph may have, and their texts."""
KINDS = {"deb": "Debian", "wheel": "Python", "installed": "Python"}
"""How a package comes, and whose it is."""

_RIGHT = {
    "name": "[a-z0-9][a-z0-9-]*",
    "split": "|".join(SPLITS),
    "kind": "|".join(KINDS),
    "downscale": "1|2",
    "sha256": "[0-9a-f]{64}",
    "license": "|".join(map(re.escape, LICENSES)),
}
_PLATFORM = "--platform manylinux2014_x86_64 --python-version 3.11"


class Photograph(NamedTuple):
    """One row of the list."""

    name: str
    """The result's name without .png."""
    split: str
    scene: str
    """Photographs of one scene share it and are in one split; empty where there is no other."""
    kind: str
    package: str
    version: str
    """The one that the list was made with; of a wheel, the one that is asked for."""
    container: str
    """The file in the package: an image, a Qt resource file (.rcc) or an Edje file (.edj)."""
    member: str
    """The path in a .rcc file, else empty."""
    downscale: int
    """2 halves a strongly compressed photograph, 1 leaves it as it is."""
    sha256: str
    """Of the original file, as it is in the container."""
    author: str
    license: str
    source: str
    """Where the license is stated."""


def read_list(path: Path) -> list[Photograph]:
    """Reads the list of photographs, a CSV file with the columns of `Photograph`.

    Raises:
        InputError: if columns, values or a name that is there twice are wrong.
        OSError: if the file cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is damaged ({reason(error)}); expected a CSV file") from error
    if tuple(header) != Photograph._fields:
        raise InputError(
            f"{path} has the columns {','.join(header)}; expected {','.join(Photograph._fields)}"
        )
    photographs: dict[str, Photograph] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number}, has {len(row)} values; expected {len(header)}")
        values: dict[str, Any] = dict(zip(header, row, strict=True))
        for column, right in _RIGHT.items():
            if not re.fullmatch(right, values[column]):
                raise InputError(
                    f"{path}, row {number}: {column} is {values[column]!r}; expected {right}"
                )
        if values["name"] in photographs:
            raise InputError(f"{path} has {values['name']} twice; expected names that differ")
        one = Photograph(**values)
        photographs[one.name] = one._replace(downscale=int(one.downscale))
    return list(photographs.values())


def credits_text(photographs: Iterable[Photograph]) -> str:
    """Gives the credits as a Markdown table with one row a photograph, and what was changed."""
    lines = [
        "Photographs marked as halved have half the width and height, by the mean of 2x2 pixels; "
        "all are stored as PNG without loss. The notice of a BSD license is in the package.",
        "",
        "| name | author | license | source | package | split | change |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in photographs:
        link = LICENSES[one.license]
        cells = (
            one.name,
            one.author,
            f"[{one.license}]({link})" if link else one.license,
            f"<{one.source}>" if "://" in one.source else one.source,
            f"{one.package} {one.version} ({KINDS[one.kind]})",
            one.split,
            "halved" if one.downscale == 2 else "none",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_credits(path: Path, photographs: Iterable[Photograph]) -> None:
    """Writes the credits as a Markdown file, whole; raises as `write_text` does."""
    write_text(path, f"# Credits of the photographs\n\n{credits_text(photographs)}")


def gather(photographs: list[Photograph], out: Path, packages: Path | None = None) -> list[str]:
    """Writes the photographs and their credits. Files that are right already are kept.

    Args:
        photographs: the list.
        out: folder of the results, uint8 RGB in train/NAME.png and validation/NAME.png.
        packages: folder of .deb and .whl files; without it they are downloaded.

    Returns:
        a line for each thing that is wrong; the photographs that it names are not written.

    Raises:
        InputError: if `out` cannot be written.
        OSError: if the file system fails.
    """
    check_writable(out)
    wrong: list[str] = []
    right: dict[Photograph, bool] = {}
    for of_package in _groups(photographs, "kind", "package", "version"):
        with _noting(wrong, of_package), tempfile.TemporaryDirectory() as work:
            folder = _unpacked(of_package[0], packages, Path(work))
            for of_container in _groups(of_package, "container"):
                with _noting(wrong, of_container):
                    original = _opened(folder, of_container[0])
                    for one in of_container:
                        with _noting(wrong, [one]):
                            right[one] = _write(one, original(one.member), out)
    write_credits(out / "CREDITS.md", [one for one in photographs if one in right])
    known = {out / one.split / f"{one.name}.png" for one in right}
    there = {path for split in SPLITS for path in (out / split).glob("[!.]*")}
    wrong += [
        f"{path} is not of the list, or lost; expected no such file"
        for path in sorted(there - known)
    ]
    print(
        f"{len(photographs)} photographs: {sum(right.values())} written, "
        f"{len(right) - sum(right.values())} were there already"
    )
    return wrong


def _groups(photographs: list[Photograph], *columns: str) -> list[list[Photograph]]:
    key = attrgetter(*columns)
    return [list(group) for _, group in itertools.groupby(sorted(photographs, key=key), key)]


@contextlib.contextmanager
def _noting(wrong: list[str], lost: list[Photograph]) -> Iterator[None]:
    """Turns an error into a line, so that the rest is still gathered."""
    try:
        yield
    except InputError as error:
        wrong.append(f"{error} (lost: {', '.join(one.name for one in lost)})")


def _write(one: Photograph, original: bytes, out: Path) -> bool:
    """Writes a photograph; returns whether that was needed."""
    found = hashlib.sha256(original).hexdigest()
    if found != one.sha256:
        place = f"{one.package}: {one.container} {one.member}".rstrip()
        raise InputError(f"{place} has the SHA-256 {found}; expected {one.sha256}")
    pixels = decode_image(original, one.name)
    if one.downscale == 2:
        pixels = np.array(Image.fromarray(pixels).reduce(2))
    content, path = encode_image(pixels, ".png"), out / one.split / f"{one.name}.png"
    if path.is_file() and path.read_bytes() == content:
        return False
    write_bytes(path, content)
    return True


def _opened(folder: Path, one: Photograph) -> Callable[[str], bytes]:
    """Opens a container; gives the function from a member's path to the original file."""
    name = f"{one.package}: {one.container}"
    try:
        content = (folder / one.container).read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); expected a file") from error
    if name.endswith(".rcc"):
        return QtResources(content, name).read
    if name.endswith(".edj"):
        content = largest_jpeg(content, name)
    return lambda _: content


def _unpacked(one: Photograph, packages: Path | None, work: Path) -> Path:
    """Gets the package of a photograph; gives the folder of its files."""
    folder, version = {"deb": _deb, "wheel": _wheel, "installed": _installed}[one.kind](
        one, packages, work
    )
    print(f"{one.package} {version}", flush=True)
    if version != one.version:
        print(f"note: the list was made with version {one.version} of it")
    return folder


def _deb(one: Photograph, packages: Path | None, work: Path) -> tuple[Path, str]:
    if packages is None:
        _run(work, "apt-get", "download", one.package)
    file = _only(packages or work, f"{one.package}_*.deb")
    _run(work, "dpkg", "-x", str(file), "unpacked")
    return work / "unpacked", _run(work, "dpkg-deb", "-f", str(file), "Version").strip()


def _wheel(one: Photograph, packages: Path | None, work: Path) -> tuple[Path, str]:
    if packages is None:
        # One platform's for all, because the photographs in it are the same.
        pip = f"-m pip download --no-deps --only-binary :all: {_PLATFORM}".split()
        _run(work, sys.executable, *pip, f"{one.package}=={one.version}")
    file = _only(packages or work, f"{one.package.replace('-', '_')}-*.whl")
    try:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(work / "unpacked")
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} is damaged ({reason(error)}); expected a wheel") from error
    return work / "unpacked", file.name.split("-")[1]


def _installed(one: Photograph, packages: Path | None, work: Path) -> tuple[Path, str]:
    try:
        found = importlib.metadata.distribution(one.package)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{one.package} is not installed; expected it") from None
    return Path(str(found.locate_file(""))), found.version


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.resolve().glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder} has {len(found)} files {pattern}; expected one")
    return found[0]


def _run(folder: Path, *command: str) -> str:
    """Runs a program; gives what it prints."""
    try:
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout
    except FileNotFoundError:
        raise InputError(f"{command[0]} is not installed; expected a Debian machine") from None
    except subprocess.CalledProcessError as error:
        last = next(reversed(error.stderr.strip().splitlines()), "no reason given")
        raise InputError(f"{' '.join(command)} failed ({last}); expected success") from error


def main() -> None:
    """Gathers the photographs, or writes their credits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder of the results")
    target.add_argument("--credits", type=Path, metavar="FILE", help="write only the credits there")
    parser.add_argument("--list", type=Path, default=LIST, help="CSV file (default %(default)s)")
    parser.add_argument("--packages", type=Path, help="folder of .deb and .whl files to take")
    arguments = parser.parse_args()
    with one_line_errors():
        photographs = read_list(arguments.list)
        if arguments.credits:
            write_credits(arguments.credits, photographs)
            return
        wrong = gather(photographs, arguments.out, arguments.packages)
        for line in wrong:
            print(f"error: {line}".replace("\n", "\\n"), file=sys.stderr)
        if wrong:
            raise InputError(f"errors reported above: {len(wrong)}; expected none")


if __name__ == "__main__":
    main()

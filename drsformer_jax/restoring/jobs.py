"""Which image files are restored, and where each result goes."""

from __future__ import annotations

import contextlib
import functools
import glob
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drsformer_jax.data.folders import is_image_file, natural_order, no_image_in, scan_folder
from drsformer_jax.errors import InputError, reason
from drsformer_jax.images.pixels import WRITABLE_EXTENSIONS, check_extension

_ASKED = 10
"""Names that may be tried before one shows whether a folder ignores case."""


@dataclass(frozen=True)
class Job:
    """One image: the file it is read from, and the files that are written."""

    source: Path
    target: Path
    comparison: Path | None = None
    """Where the rainy and the restored image are written side by side."""

    def outputs(self) -> list[Path]:
        """All files that are written."""
        return [self.target] if self.comparison is None else [self.target, self.comparison]


def plan_jobs(
    inputs: Sequence[Path],
    output: Path,
    *,
    is_folder: bool = False,
    extension: str | None = None,
    compare: Path | None = None,
) -> tuple[list[Job], list[Path]]:
    """Finds the images and names each result.

    Results and comparisons of an earlier run inside an input folder are not taken as inputs.

    Args:
        inputs: images, folders, whose subfolders are kept in the output, or patterns such as
            `photos/**/*.jpg`.
        output: the result's file where `inputs` is one image, no folder of this name exists and
            the name has an extension; else a folder.
        is_folder: whether `output` is a folder in any case.
        extension: of the results, such as `.png`; default: that of each source.
        compare: folder for side-by-side images.

    Returns:
        (jobs, files and links that an input holds but that are no images).

    Raises:
        InputError: if nothing is found, a result would replace a source or another result, or an
            extension is unknown.
        OSError: if a folder cannot be read.
    """
    files = _Files()
    earlier = [folder for folder in (output, compare) if folder is not None]
    found: list[tuple[Path, Path]] = []
    left_out: list[Path] = []
    for path in inputs:
        images, others = _find(path, earlier, files)
        found += images
        left_out += others
    if not found:
        raise InputError(f"{output} holds all the images of {inputs[0]}; expected others")
    is_file = (
        len(inputs) == 1
        and inputs[0].is_file()
        and not (is_folder or output.is_dir())
        and output.suffix != ""
    )
    if is_file:
        _check_file(output, extension)
    elif output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; expected a folder for {len(found)} images")
    jobs = []
    for source, name in found:
        if extension is not None:
            name = name.with_suffix(extension)
        elif name.suffix.lower() == ".gif":  # which is read, not written
            name = name.with_suffix(".png")
        target = output if is_file else output / name
        jobs.append(Job(source, target, None if compare is None else compare / name))
    jobs = list(dict.fromkeys(jobs))
    _check_outputs(jobs, files)
    return jobs, left_out


def _find(
    path: Path, earlier: Sequence[Path], files: _Files
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Lists the images that an input stands for.

    Args:
        path: an image, a folder or a pattern.
        earlier: folders that hold the results of earlier runs.
        files: tells which of them are one.

    Returns:
        ((image, its name below the output folder) of each, what is no image).
    """
    if path.is_file():
        return [(path, Path(path.name))], []
    root, images, others = _scan(path) if path.is_dir() else _match(path)
    # Results may also go into the input's folder itself, or into one above it.
    apart = [folder for folder in earlier if not files.within(root, folder)]

    def is_input(file: Path) -> bool:
        return not any(files.within(file, folder) for folder in apart)

    return (
        [(image, image.relative_to(root)) for image in images if is_input(image)],
        [other for other in others if is_input(other)],
    )


def _scan(folder: Path) -> tuple[Path, list[Path], list[Path]]:
    """(the folder, its images, what is no image)."""
    images, others = scan_folder(folder, nested=True)
    if not images:
        raise no_image_in(folder, others)
    return folder, images, others


def _match(path: Path) -> tuple[Path, list[Path], list[Path]]:
    """(the folder before the first wildcard, images that match, what else matches)."""
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    root, pattern = Path(*plain), path.parts[len(plain) :]
    try:
        found = list(root.glob(str(Path(*pattern)))) if pattern else []
    except ValueError as error:
        raise InputError(
            f"{path} is no pattern ({reason(error)}); expected one such as 'photos/**/*.jpg'"
        ) from error
    matches: list[Path] = []
    links: set[Path] = set()
    for match in found:
        names = match.relative_to(root).parts
        if any(name.startswith(".") for name in names):
            continue
        folders = [root.joinpath(*names[: count + 1]) for count in range(len(names) - 1)]
        if link := next((folder for folder in folders if folder.is_symlink()), None):
            links.add(link)
        else:
            matches.append(match)
    images = {match for match in matches if is_image_file(match)}
    if not images:
        raise InputError(
            f"{path} is missing or no image; expected images, folders or patterns, or one video"
        )
    entered = {parent for match in matches for parent in match.parents}
    others = set(matches) - images - entered | links
    return root, natural_order(images), natural_order(others)


def _check_file(output: Path, extension: str | None) -> None:
    """Checks the name of a single result."""
    if output.suffix.lower() not in WRITABLE_EXTENSIONS:
        raise InputError(
            f"{output} has the extension '{output.suffix}'; expected one of "
            f"{' '.join(WRITABLE_EXTENSIONS)}, or a slash behind the name of a folder"
        )
    if extension is not None and check_extension(output) != check_extension(Path(f"x{extension}")):
        raise InputError(f"{output} ends in {output.suffix!r}; expected {extension} as the format")


def _check_outputs(jobs: Sequence[Job], files: _Files) -> None:
    """Rejects jobs of which one would replace a source or what another one writes."""
    sources = {files.of(job.source) for job in jobs}
    owners: dict[str, Path] = {}
    for job in jobs:
        for path in job.outputs():
            check_extension(path)
            if files.of(path) in sources:
                raise InputError(f"{path} is an input itself; expected another place")
            other = owners.setdefault(files.of(path), job.source)
            if other != job.source:
                raise InputError(
                    f"{other} and {job.source} would both be written to {path}; expected one"
                )
        if job.comparison is not None and files.of(job.comparison) == files.of(job.target):
            raise InputError(f"{job.target} is result and comparison; expected another --compare")


class _Files:
    """Tells whether two paths are one file or folder, which need not exist."""

    def __init__(self) -> None:
        self.ignores_case = functools.cache(ignores_case)

    def of(self, path: Path) -> str:
        """The same text for all paths of one file."""
        # Unlike `Path.resolve` this works for a link that leads to itself, too.
        real = os.path.realpath(path)
        return real.casefold() if self.ignores_case(Path(real).parent) else real

    def within(self, path: Path, folder: Path) -> bool:
        """Whether a path is the folder, or in it at any depth."""
        return Path(self.of(path)).is_relative_to(self.of(folder))


def ignores_case(folder: Path) -> bool:
    """Whether names in a folder are one whatever the case of their letters, as on macOS."""
    there = next((each for each in (folder, *folder.parents) if each.is_dir()), folder)
    inside: list[str] = []
    with contextlib.suppress(OSError), os.scandir(there) as entries:
        inside += (entry.path for entry in itertools.islice(entries, _ASKED))
    for path in (*inside, str(there)):
        parent, name = os.path.split(path)
        if name.isascii() and name.swapcase() != name:
            with contextlib.suppress(OSError):  # As where there is no file of that name.
                return os.path.samefile(path, os.path.join(parent, name.swapcase()))
            if os.path.exists(path):
                return False
    return False

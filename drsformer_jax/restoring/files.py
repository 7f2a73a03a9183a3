"""Many image files: which go where, and reading and writing while the network computes."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drsformer_jax.data.folders import find_images
from drsformer_jax.data.sheets import contact_sheet
from drsformer_jax.errors import InputError
from drsformer_jax.images.image import LoadedImage, load_image, save_image
from drsformer_jax.images.pixels import (
    EXTENSIONS,
    check_extension,
    image_size,
    to_8_bits,
    write_image,
)
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.buckets import Size


@dataclass(frozen=True)
class Job:
    """One image: where it is, and where it goes."""

    source: Path
    target: Path
    comparison: Path | None = None
    """Where rainy and restored are written side by side."""

    def places(self) -> list[Path]:
        """All that is written."""
        return [self.target] if self.comparison is None else [self.target, self.comparison]


def plan_jobs(
    inputs: Sequence[Path],
    output: Path,
    *,
    extension: str | None = None,
    compare: Path | None = None,
) -> list[Job]:
    """Finds the images and gives each its place.

    Args:
        inputs: images, folders, whose subfolders are kept in the output, or patterns such as
            `photos/**/*.jpg`.
        output: a file where `inputs` is one image and `output` no folder; else a folder.
        extension: what the results' names end in, such as `.png`; as the source's where it is None.
        compare: folder for side-by-side images.

    Raises:
        InputError: if nothing is found, something would be written in the place of a source or of
            something else that is written, or an extension is unknown.
    """
    found = [each for path in inputs for each in _images(path, output)]
    if not found:
        raise InputError(f"{output} holds all the images of {inputs[0]}; expected others")
    single = len(inputs) == 1 and inputs[0].is_file() and not output.is_dir()
    if not single and output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; expected a folder for {len(found)} images")
    if single and output.suffix and extension not in (None, output.suffix):
        raise InputError(f"{output} ends in {output.suffix!r}; expected {extension} as the format")
    jobs = []
    for source, place in found:
        place = place if extension is None else place.with_suffix(extension)
        target = output if single and output.suffix else output / place
        jobs.append(Job(source, target, None if compare is None else compare / place))
    _check_places(jobs)
    return jobs


def _images(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """(file, its place under the output folder) of every image that a path stands for."""
    if path.is_dir():
        for source in find_images(path, nested=True):
            # Results of an earlier run, where the output lies inside the input.
            if path.resolve() == output.resolve() or not _is_within(source, output):
                yield source, source.relative_to(path)
        return
    if path.is_file():
        yield path, Path(path.name)
        return
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    shared, pattern = Path(*plain), path.parts[len(plain) :]
    matches = sorted(shared.glob(str(Path(*pattern)))) if pattern else []
    files = [
        each
        for each in matches
        if each.suffix.lower() in EXTENSIONS and each.is_file() and not _is_within(each, output)
    ]
    if not files:
        raise InputError(
            f"{path} is missing or no image; expected images, folders or patterns, or one video"
        )
    for source in files:
        yield source, source.relative_to(shared)


def _is_within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _check_places(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    owners: dict[Path, Path] = {}
    for job in jobs:
        for place in job.places():
            check_extension(place)
            if place.resolve() in sources:
                raise InputError(f"{place} is an input itself; expected another place")
            other = owners.setdefault(place.resolve(), job.source)
            if other != job.source:
                raise InputError(
                    f"{other} and {job.source} would both be written to {place}; expected one"
                )
        if job.comparison is not None and job.comparison.resolve() == job.target.resolve():
            raise InputError(f"{job.target} is result and comparison; expected another --compare")


@dataclass(frozen=True)
class Summary:
    """What became of the images."""

    restored: int
    skipped: int
    failed: int
    seconds: float
    programs: int
    """Sizes that the network was compiled for, or that the cache had."""
    waste: float
    """Share of pixels that padding and overlaps added to the images'."""


def restore_files(
    jobs: Sequence[Job],
    restorer: Restorer,
    *,
    workers: int,
    batch: int = 1,
    resume: bool = False,
    quality: int | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Summary:
    """Restores images; one that fails is reported on stderr and the rest goes on.

    Args:
        jobs: what to restore; all sizes together decide on the buckets.
        restorer: the network.
        workers: threads, each with a batch of its own: while one computes, the others read and
            write.
        batch: images of a bucket that are computed together, as far as there are as many and
            memory goes.
        resume: skip images whose result is there, and leave comparisons that are there.
        quality: of JPEG and lossy WebP, 1 to 100.
        background: color under transparent images where the format has no transparency.

    Raises:
        OSError: if the file system fails, for instance because it is full.
    """
    started = time.monotonic()
    sizes = {job: size for job in jobs if (size := _size(job))}
    restorer.plan(sizes.values())
    todo = [job for job in jobs if not (resume and job.target.exists())]
    batches = _batches(todo, sizes, restorer, batch)
    most = {bucket: len(together) for bucket, together in reversed(batches)}
    before = Counter(restorer.programs)
    computing = threading.Lock()

    def read(job: Job) -> LoadedImage | InputError:
        try:
            photo = load_image(job.source)
        except InputError as error:
            return error
        sizes[job] = photo.rgb.shape[:2]  # Some heads tell nothing that Pillow understands.
        return photo

    def write(job: Job, photo: LoadedImage, restored: np.ndarray) -> list[str] | InputError:
        try:
            if job.comparison is not None and not (resume and job.comparison.exists()):
                write_image(job.comparison, _side_by_side(photo.rgb, restored))
            photo = dataclasses.replace(photo, rgb=restored)
            return save_image(job.target, photo, quality=quality, background=background)
        except InputError as error:
            return error

    def restore(bucket: Size | None, together: Sequence[Job]) -> list[list[str] | InputError]:
        """Of each job what is to be told about it, or why it failed."""
        photos = [read(job) for job in together]
        good = [photo for photo in photos if isinstance(photo, LoadedImage)]
        try:
            with computing:
                restored = iter(restorer.batch([photo.rgb for photo in good], most[bucket]))
        except InputError as error:
            return [
                photo if isinstance(photo, InputError) else InputError(f"{job.source}: {error}")
                for job, photo in zip(together, photos, strict=True)
            ]
        return [
            write(job, photo, next(restored)) if isinstance(photo, LoadedImage) else photo
            for job, photo in zip(together, photos, strict=True)
        ]

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = {
                pool.submit(restore, bucket, together): together for bucket, together in batches
            }
            done = _report(futures, alone=len(jobs) == 1)
        finally:
            pool.shutdown(cancel_futures=True)
    return Summary(
        restored=len(done),
        skipped=len(jobs) - len(todo),
        failed=len(todo) - len(done),
        seconds=time.monotonic() - started,
        programs=len(restorer.programs - before),
        waste=_waste(restorer.programs - before, [sizes[job] for job in done]),
    )


def _batches(
    jobs: Sequence[Job], sizes: Mapping[Job, Size], restorer: Restorer, batch: int
) -> list[tuple[Size | None, list[Job]]]:
    """Groups of at most `batch` jobs whose images share a bucket, in the order of the jobs.

    Images whose size is not known, or that are cut into tiles, stay alone.
    """
    batches: list[tuple[Size | None, list[Job]]] = []
    unfilled: dict[Size, list[Job]] = {}
    for job in jobs:
        size = sizes.get(job)
        bucket = None if size is None or restorer.tiling(size) else restorer.bucket(size)
        together = unfilled.get(bucket, []) if bucket else []
        if not together or len(together) == batch:
            together = []
            batches.append((bucket, together))
            if bucket:
                unfilled[bucket] = together
        together.append(job)
    return batches


def _report(
    futures: Mapping[Future[list[list[str] | InputError]], Sequence[Job]], *, alone: bool
) -> list[Job]:
    """Waits for all, prints notes and failures, and returns the jobs that are done."""
    done = []
    with tqdm(total=sum(map(len, futures.values())), unit="image", disable=None) as bar:
        for future, together in futures.items():
            for job, told in zip(together, future.result(), strict=True):
                bar.update()
                if isinstance(told, InputError):
                    if alone:
                        raise told
                    tqdm.write(f"error: {told}", file=sys.stderr)
                    continue
                for note in told:
                    tqdm.write(f"{job.target}: {note}", file=sys.stderr)
                done.append(job)
    return done


def _waste(programs: Mapping[tuple[int, Size], int], sizes: Sequence[Size]) -> float:
    pixels = sum(map(math.prod, sizes))
    computed = sum(count * math.prod(bucket) * runs for (count, bucket), runs in programs.items())
    return computed / pixels - 1 if pixels else 0.0


def _size(job: Job) -> Size | None:
    """(height, width); None where it cannot be read, which is told when its turn comes."""
    try:
        return image_size(job.source)
    except InputError:
        return None


def _side_by_side(rainy: np.ndarray, restored: np.ndarray) -> np.ndarray:
    pair = [image if image.dtype == np.uint8 else to_8_bits(image) for image in (rainy, restored)]
    return contact_sheet([pair], ("rainy", "restored"))

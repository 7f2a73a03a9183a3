"""Restoring many image files: reading and writing while the network computes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType

import numpy as np
from PIL import Image
from tqdm import tqdm

from drsformer_jax.data.pairs import map_in_threads
from drsformer_jax.data.sheets import contact_sheet
from drsformer_jax.errors import InputError, handled_by, held_signals, one_line
from drsformer_jax.images.image import LoadedImage, load_image, save_image
from drsformer_jax.images.pixels import check_extension, image_size, to_8_bits, write_image
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.buckets import Size
from drsformer_jax.restoring.jobs import Job

_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR)
"""What a file system says of a single name; it can hold files of other names."""


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


@dataclass(frozen=True)
class _Batch:
    """Jobs whose images share a bucket."""

    jobs: list[Job]
    count: int = 1
    """Images of the program that computes them; there may be fewer jobs."""


@dataclass(frozen=True)
class _Outcome:
    """What became of one job."""

    job: Job
    pixels: int = 0
    """That were restored, also where the result could not be written."""
    notes: Sequence[str] = ()
    """What the result's format could not keep; one line each."""
    error: InputError | None = None

    def without_cause(self) -> _Outcome:
        """The same without the traceback of its error, which holds the file and its pixels."""
        if self.error is None:
            return self
        return dataclasses.replace(self, error=InputError(str(self.error)))


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
    """Restores images; one that fails is reported on stderr and the others are restored.

    Args:
        jobs: what to restore; all sizes together decide on the buckets.
        restorer: the network.
        workers: threads, each with a batch of its own: while one computes, the others read and
            write.
        batch: images of a bucket that are computed together, as far as there are as many and
            memory goes.
        resume: keep results and comparisons that exist, and skip images that have all of theirs.
        quality: of JPEG, AVIF and lossy WebP, 1 to 100.
        background: color under transparent images where the format has no transparency.

    Raises:
        InputError: if there is one job and it fails.
        OSError: if the file system fails, for instance because it is full.
    """
    started = time.monotonic()
    before = Counter(restorer.programs)
    alone = len(jobs) == 1
    todo = [job for job in jobs if not (resume and all(map(os.path.exists, job.outputs())))]
    files = _Files(restorer, resume, quality, background, keep_causes=alone)
    sizes = _read_sizes(jobs if todo else [])
    restorer.plan(sizes.values())
    batches = _batches(todo, sizes, restorer, batch)
    with ThreadPoolExecutor(workers) as pool:
        try:
            with held_signals():
                running = [pool.submit(files.restore, each) for each in batches]
            results = (outcome for future in running for outcome in future.result())
            outcomes = _report(results, len(todo), alone=alone)
        finally:
            # Not SIGHUP, which a terminal that is closed may send twice.
            with handled_by(_end_at_once, signal.SIGINT, signal.SIGTERM):
                files.stop()
                pool.shutdown(cancel_futures=True)
    programs = restorer.programs - before
    failed = sum(outcome.error is not None for outcome in outcomes)
    return Summary(
        restored=len(todo) - failed,
        skipped=len(jobs) - len(todo),
        failed=failed,
        seconds=time.monotonic() - started,
        programs=len(programs),
        waste=_waste(programs, sum(outcome.pixels for outcome in outcomes)),
    )


def restore_file(job: Job, restorer: Restorer) -> Sequence[str]:
    """Restores one image, exactly as `restore_files` does that one alone.

    Returns:
        what the result's format could not keep, one line each.

    Raises:
        InputError: if it fails.
        OSError: as `restore_files`.
    """
    restorer.plan(_read_sizes([job]).values())
    (outcome,) = _Files(restorer).restore(_Batch([job]))
    if outcome.error is not None:
        raise outcome.error
    return outcome.notes


class _Files:
    """Reads, restores and writes image files; safe to call from several threads.

    Args:
        restorer: the network; one thread at a time computes.
        resume: whether to keep results and comparisons that exist.
        quality: of JPEG, AVIF and lossy WebP.
        background: color under transparent images.
        keep_causes: whether errors keep what caused them, and with it the file and its pixels.
    """

    def __init__(
        self,
        restorer: Restorer,
        resume: bool = False,
        quality: int | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
        *,
        keep_causes: bool = True,
    ) -> None:
        self._keep_causes = keep_causes
        self._restorer = restorer
        self._resume = resume
        self._quality = quality
        self._background = background
        self._computing = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Lets no further batch be computed: threads that wait for their turn give it up.

        A line says so if one is being computed, which cannot be stopped.
        """
        self._stopped.set()
        if self._computing.locked():
            again = " again" if isinstance(sys.exception(), KeyboardInterrupt) else ""
            line = f"waiting for the image that is computed; Ctrl-C{again} ends at once"
            with contextlib.suppress(OSError, ValueError):  # A terminal may be gone.
                print(line, file=sys.stderr, flush=True)

    def restore(self, batch: _Batch) -> list[_Outcome]:
        """Restores the images of a batch together; one that fails spoils no other."""
        outcomes = {job: _Outcome(job) for job in batch.jobs}
        images: dict[Job, LoadedImage] = {}
        for job in batch.jobs:
            try:
                images[job] = load_image(job.source)
            except InputError as error:
                outcomes[job] = _Outcome(job, error=error)
            except MemoryError:
                outcomes[job] = _Outcome(job, error=_too_large(job))
        try:
            with self._computing:
                if self._stopped.is_set():
                    return []
                restored = self._restorer.batch(
                    [image.rgb for image in images.values()], batch.count
                )
        except InputError as error:
            for job in images:
                outcomes[job] = _Outcome(job, error=InputError(f"{job.source}: {error}"))
        except MemoryError:
            outcomes |= {job: _Outcome(job, error=_too_large(job)) for job in images}
        else:
            for (job, image), rgb in zip(images.items(), restored, strict=True):
                outcomes[job] = self._write(job, image, rgb)
        found = list(outcomes.values())
        return found if self._keep_causes else [outcome.without_cause() for outcome in found]

    def _write(self, job: Job, image: LoadedImage, restored: np.ndarray) -> _Outcome:
        pixels = math.prod(restored.shape[:2])
        kept = {path for path in job.outputs() if self._resume and os.path.exists(path)}
        notes: Sequence[str] = ()
        try:
            if job.comparison and job.comparison not in kept:
                most = check_extension(job.comparison).largest_side
                write_image(job.comparison, _side_by_side(image.rgb, restored, most))
            if job.target not in kept:
                notes = save_image(
                    job.target,
                    dataclasses.replace(image, rgb=restored),
                    quality=self._quality,
                    background=self._background,
                )
        except InputError as error:
            return _Outcome(job, pixels, error=error)
        except MemoryError:
            return _Outcome(job, pixels, error=_too_large(job))
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise
            found = f"{error.filename} cannot be written ({error.strerror})"
            return _Outcome(job, pixels, error=InputError(f"{found}; expected another name"))
        return _Outcome(job, pixels, notes)


def _too_large(job: Job) -> InputError:
    return InputError(f"{job.source} does not fit into memory; expected a smaller image")


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Ends not by an exception: Python would crash at its end, as long as a thread computes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # Closed, or amid a line.
            stream.flush()
    os._exit(128 + number)


def _read_sizes(jobs: Sequence[Job]) -> dict[Job, Size]:
    """(height, width) of each image; without those whose size cannot be read.

    A file that cannot be read is reported when its turn comes; some heads say nothing that can be
    understood of an image that can be.
    """

    def read(job: Job) -> Size | None:
        try:
            return image_size(job.source)
        except (InputError, MemoryError):
            return None

    sizes = zip(jobs, map_in_threads(read, jobs, "image sizes"), strict=True)
    return {job: size for job, size in sizes if size is not None}


def _batches(
    jobs: Sequence[Job], sizes: Mapping[Job, Size], restorer: Restorer, most: int
) -> list[_Batch]:
    """Batches of at most `most` jobs whose images share a bucket, in the order of the jobs.

    Images whose size is not known, or that are cut into tiles, stay alone. One program computes all
    batches of a bucket, also the last one, which may have fewer images.
    """
    groups: dict[Size | Job, list[Job]] = {}
    for job in jobs:
        size = sizes.get(job)
        if size is None or restorer.tiling(size) is not None:
            groups[job] = [job]
        else:
            groups.setdefault(restorer.bucket(size), []).append(job)
    batches = [
        _Batch(group[start : start + most], min(most, len(group)))
        for group in groups.values()
        for start in range(0, len(group), most)
    ]
    order = {job: index for index, job in enumerate(jobs)}
    return sorted(batches, key=lambda batch: order[batch.jobs[0]])


def _report(outcomes: Iterable[_Outcome], total: int, *, alone: bool) -> list[_Outcome]:
    """Prints notes and failures, and returns the outcomes."""
    reported = []
    for outcome in tqdm(outcomes, total=total, unit="image", disable=None):
        if outcome.error is not None:
            if alone:
                raise outcome.error
            tqdm.write(one_line(f"error: {outcome.error}"), file=sys.stderr)
        for note in outcome.notes:
            tqdm.write(one_line(f"{outcome.job.target}: {note}"), file=sys.stderr)
        reported.append(outcome)
    return reported


def _waste(programs: Mapping[tuple[int, Size], int], pixels: int) -> float:
    computed = sum(count * math.prod(bucket) * runs for (count, bucket), runs in programs.items())
    return computed / pixels - 1 if pixels else 0.0


def _side_by_side(rainy: np.ndarray, restored: np.ndarray, most: int) -> np.ndarray:
    """The two images, made smaller where a side would be longer than `most` pixels."""
    pair = [image if image.dtype == np.uint8 else to_8_bits(image) for image in (rainy, restored)]
    sheet = contact_sheet([pair], ("rainy", "restored"))
    if max(sheet.shape) <= most:
        return sheet
    smaller = Image.fromarray(sheet)
    smaller.thumbnail((most, most))
    return np.asarray(smaller)

"""The command `drsformer derain`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import jax
import numpy as np
import tyro
from tqdm import tqdm

from drsformer_jax import weights
from drsformer_jax.clusters import share
from drsformer_jax.config import DType, Kernels
from drsformer_jax.config.fields import check
from drsformer_jax.data.folders import describe_left_out
from drsformer_jax.errors import InputError, one_line
from drsformer_jax.flags import check_unused
from drsformer_jax.images.video import VIDEO_EXTENSIONS, is_video, restore_video
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.files import restore_files
from drsformer_jax.restoring.jobs import plan_jobs

T = TypeVar("T")

_BATCH = 8
_FRAMES = 4
"""Frames of a video that are restored together."""


@dataclass(frozen=True)
class Derain:
    """Removes rain from images, folders of images, or a video."""

    paths: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        # Without paths `run` says what is missing: () is no default that a user has.
        tyro.conf.arg(metavar="INPUT [INPUT ...] OUTPUT", help_behavior_hint=""),
    ]
    """Inputs, then the output. An input is an image (PNG, JPEG, WebP, BMP, TIFF, AVIF, GIF), a
    folder with its subfolders, or a pattern such as 'images/**/*.jpg'; the results go into the
    folder OUTPUT under the same names. A single image or video may have a file as OUTPUT. OUTPUT
    is a folder if it exists as one, ends in a slash or has no extension."""
    checkpoint: Path | None = None
    """A training run, a model folder (of drsformer convert), or a .pth or .safetensors file of
    PyTorch; default: the network that comes with the package."""
    step: int | None = None
    """Checkpoint of a training run; default: the best one."""
    format: Literal["png", "jpg", "webp", "bmp", "tif", "avif"] | None = None
    """Format of the results; default: that of each image."""
    quality: int | None = None
    """Quality of JPEG, AVIF and lossy WebP, 1 to 100; default: JPEG 95, AVIF 90, lossless WebP."""
    crf: int | None = None
    """Constant rate factor of a video, 0 to 51 (.webm to 63), less is better; default: 16 (.webm
    18)."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Color (R G B) under transparent images where the format has no transparency."""
    compare: Path | None = None
    """Folder for images that show rainy and restored side by side."""
    dtype: DType | None = None
    """What the network computes in; default: as it was trained. bfloat16 is faster on accelerators
    and changes images by a little."""
    kernels: Kernels | None = None
    """pallas: custom kernels on TPUs and NVIDIA GPUs, which have not run on such hardware yet;
    default: as it was trained."""
    batch: int | None = None
    """Images of like sizes that are computed together, as far as memory goes; default: 8, on CPUs
    1."""
    tile: int | Literal["auto"] = "auto"
    """How images are computed: auto, at once or in strips, whatever memory is enough for, with
    one result; 0, at once always; or in tiles of this side in pixels, a multiple of 8, which are an
    approximation."""
    overlap: int | None = None
    """Pixels that neighboring tiles share; default: 64, or half of a smaller tile. Goes with
    --tile."""
    workers: int = min(4, os.cpu_count() or 1)
    """Threads; while one image is computed, others are read and written."""
    overwrite: bool = False
    """Overwrite results and comparisons that exist."""
    resume: bool = False
    """Keep results and comparisons that exist, and skip images that have all of theirs."""
    num_processes: int | None = None
    """Number of processes that share the images, each started with the same command; default: found
    on Cloud TPU pods and under Slurm and Open MPI. With 1 this one restores all."""
    process_id: int | None = None
    """Number of this process, from 0; default: found as their number is."""

    def run(self) -> None:
        """Restores the images; one that cannot be read is reported and the others are restored.

        Raises:
            InputError: if a flag, a folder, the image or the checkpoint is wrong, or images
                failed.
        """
        if len(self.paths) < 2:
            raise InputError(f"{len(self.paths)} paths are given; expected INPUT and OUTPUT")
        if self.overwrite and self.resume:
            raise InputError("--resume is set beside --overwrite; expected one of them")
        *inputs, output = map(Path, self.paths)
        is_folder = output.is_dir() or self.paths[-1].endswith(("/", os.sep))
        videos = [path for path in inputs if is_video(path)]
        if videos:
            if len(inputs) > 1:
                raise InputError(
                    f"{videos[0]} is a video, beside {len(inputs) - 1} other inputs; expected each "
                    "video alone"
                )
            is_folder = is_folder or output.suffix == ""
            self._restore_video(videos[0], output / videos[0].name if is_folder else output)
        elif output.suffix.lower() in VIDEO_EXTENSIONS and not is_folder:
            raise InputError(
                f"{output} is the name of a video, and {inputs[0]} is none; expected a video as "
                "the input, or an image or a folder as the output"
            )
        else:
            self._restore_images(inputs, output, is_folder)

    def _restore_images(self, inputs: list[Path], output: Path, is_folder: bool) -> None:
        check_unused(self, ["crf"], "for images")
        check(self.quality in (None, *range(1, 101)), "--quality", self.quality, "1 to 100")
        check(self.workers >= 1, "--workers", self.workers, "at least 1")
        check(self.batch is None or self.batch >= 1, "--batch", self.batch, "at least 1")
        color = "three numbers from 0 to 255"
        fits = all(0 <= value <= 255 for value in self.background)
        check(fits, "--background", self.background, color)
        extension = None if self.format is None else f".{self.format}"
        jobs, left_out = plan_jobs(
            inputs,
            output,
            is_folder=is_folder,
            extension=extension,
            compare=self.compare,
        )
        if left_out:
            print(one_line(describe_left_out(left_out)), file=sys.stderr)
        # The results of other processes, which may be writing them, are not looked at.
        jobs = self._own(jobs, "images")
        if not jobs:
            return
        if not self.resume:
            self._check_free([path for job in jobs for path in job.outputs()])
        restorer = self._restorer()
        summary = restore_files(
            jobs,
            restorer,
            workers=self.workers,
            batch=self.batch or (1 if jax.default_backend() == "cpu" else _BATCH),
            resume=self.resume,
            quality=self.quality,
            background=self.background,
        )
        there = f", {summary.skipped} were there already" if summary.skipped else ""
        print(
            f"restored {summary.restored} of {len(jobs)} images into {output} in "
            f"{summary.seconds:.1f} s{there}; sizes compiled: {summary.programs}, pixels added by "
            f"padding and overlaps: {summary.waste:.0%}"
        )
        if summary.failed:
            raise InputError(f"{summary.failed} of {len(jobs)} images failed; expected none to")

    def _restore_video(self, source: Path, target: Path) -> None:
        flags = ("format", "quality", "background", "compare", "workers", "batch")
        check_unused(self, flags, "for a video")
        if not self._own([source], "videos"):
            return
        if target.exists() and os.path.samefile(target, source):
            raise InputError(f"{target} is the input itself; expected another place")
        most = 63 if target.suffix.lower() == ".webm" else 51
        check(self.crf in (None, *range(most + 1)), "--crf", self.crf, f"0 to {most}")
        if self.resume and target.exists():
            print(f"{target} was there already")
            return
        self._check_free([target])
        restorer = self._restorer()

        def restore(frames: np.ndarray) -> np.ndarray:
            restorer.plan([frames.shape[1:3]])
            return restorer(frames)

        with tqdm(unit="frame", disable=None) as bar:

            def progress(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(done - bar.n)

            count, notes = restore_video(
                source, target, restore, batch=_FRAMES, quality=self.crf, progress=progress
            )
        for note in notes:
            print(one_line(f"{target}: {note}"), file=sys.stderr)
        print(f"restored {count} frames into {target}")

    def _own(self, items: list[T], what: str) -> list[T]:
        """The share of this process, which it prints if there are several."""
        index, count = share(self.num_processes, self.process_id, os.environ)
        own = items[index::count]
        if count > 1:
            print(f"process {index} of {count}: {len(own)} of {len(items)} {what}", flush=True)
        return own

    def _restorer(self) -> Restorer:
        if self.checkpoint is None or weights.is_builtin(self.checkpoint):
            print("using the built-in network; --checkpoint selects another")
        return Restorer.load(
            self.checkpoint,
            self.step,
            dtype=self.dtype,
            kernels=self.kernels,
            tile=self.tile,
            overlap=self.overlap,
        )

    def _check_free(self, outputs: list[Path]) -> None:
        existing = [path for path in outputs if os.path.exists(path)]
        if existing and not self.overwrite:
            raise InputError(
                f"{existing[0]} is there already ({len(existing)} of {len(outputs)} results are); "
                "expected --overwrite or --resume"
            )

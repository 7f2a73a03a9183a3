"""The `drsformer` command."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from tqdm import tqdm

from drsformer_jax import remote, weights
from drsformer_jax.config import DataConfig, DType, Kernels
from drsformer_jax.data.datasets import default_data_dir, find_dataset, summary
from drsformer_jax.data.folders import describe_left_out
from drsformer_jax.data.pairs import sizes_of
from drsformer_jax.errors import InputError, one_line_errors
from drsformer_jax.flags import check_unused, parse
from drsformer_jax.images.pixels import check_extension, write_image
from drsformer_jax.images.video import VIDEO_EXTENSIONS, is_video, restore_video
from drsformer_jax.planning.command import Plan
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.files import restore_files
from drsformer_jax.restoring.jobs import plan_jobs
from drsformer_jax.scoring.complexity import parameters
from drsformer_jax.weights import describe, params_to_torch
from drsformer_jax.weights.convert import notes
from drsformer_jax.weights.tensor_files import write_pth, write_safetensors

_BATCH = 8
_FRAMES = 4
"""Frames of a video that are restored together."""


@dataclass(frozen=True)
class Derain:
    """Removes rain from images, folders of images, or a video."""

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT [INPUT ...] OUTPUT")
    ]
    """Images (PNG, JPEG, WebP, BMP, TIFF, AVIF, GIF), folders with subfolders, or patterns such as
    'images/**/*.jpg'; last the folder where the results go under the same names. Or one image or
    video, and the file for the result. OUTPUT is a folder if it exists as one, ends in a slash or
    has no extension."""
    checkpoint: Path | None = None
    """A training run, a converted folder, or an official .pth or .safetensors file; default: the
    network that the package brings along."""
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
    """pallas: kernels of our own for depthwise convolutions on TPUs and NVIDIA GPUs, which no such
    hardware has confirmed yet; default: as it was trained."""
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
    """Skip images whose results exist."""

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
        if any(map(is_video, inputs)):
            self._restore_video(inputs, output)
        elif output.suffix.lower() in VIDEO_EXTENSIONS and not output.is_dir():
            raise InputError(
                f"{output} is the name of a video, and {inputs[0]} is none; expected a video as "
                "the input, or an image or a folder as the output"
            )
        else:
            self._restore_images(inputs, output)

    def _restore_images(self, inputs: list[Path], output: Path) -> None:
        check_unused(self, ["crf"], "for images")
        _check(self.quality in (None, *range(1, 101)), "--quality", self.quality, "1 to 100")
        _check(self.workers >= 1, "--workers", self.workers, "at least 1")
        _check(self.batch is None or self.batch >= 1, "--batch", self.batch, "at least 1")
        color = "three numbers from 0 to 255"
        fits = all(0 <= value <= 255 for value in self.background)
        _check(fits, "--background", self.background, color)
        extension = None if self.format is None else f".{self.format}"
        jobs, left_out = plan_jobs(
            inputs,
            output,
            is_folder=self.paths[-1].endswith(("/", os.sep)),
            extension=extension,
            compare=self.compare,
        )
        if left_out:
            print(describe_left_out(left_out), file=sys.stderr)
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

    def _restore_video(self, inputs: list[Path], output: Path) -> None:
        flags = ("format", "quality", "background", "compare", "workers", "batch")
        check_unused(self, flags, "for a video")
        _check(len(inputs) == 1, "the input", f"{len(inputs)} paths", "a video alone")
        source = inputs[0]
        target = output / source.name if output.is_dir() else output
        if target.resolve() == source.resolve():
            raise InputError(f"{target} is the input itself; expected another place")
        most = 63 if target.suffix.lower() == ".webm" else 51
        _check(self.crf in (None, *range(most + 1)), "--crf", self.crf, f"0 to {most}")
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
            print(f"{target}: {note}", file=sys.stderr)
        print(f"restored {count} frames into {target}")

    def _restorer(self) -> Restorer:
        if self.checkpoint is None or weights.is_builtin(self.checkpoint):
            print("the built-in network restores; --checkpoint takes another one")
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


def _check(fits: bool, name: str, found: object, expected: str) -> None:
    if not fits:
        raise InputError(f"{name} is {found}; expected {expected}")


@dataclass(frozen=True)
class Convert:
    """Turns an official checkpoint into a model folder, or any network into an official one."""

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """A .pth or .safetensors file of PyTorch, a training run, a model folder, or builtin."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """The new folder; with --to-torch the new .pth or .safetensors file."""
    to_torch: bool = False
    """Write a file that the official programs load."""
    step: int | None = None
    """Checkpoint of a training run; default: the best one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type that the weights are stored in; default: as they are. The 16-bit ones halve the file,
    and are read back as the network's own type."""

    def run(self) -> None:
        """Reads, says which network it is, and writes.

        Raises:
            InputError: if the input is no network, the output is there already, or a weight is
                beyond the type.
        """
        writers: dict[str, Callable[..., None]]
        writers = {".pth": write_pth, ".safetensors": write_safetensors}
        is_file = self.output.suffix in writers
        if is_file != self.to_torch:
            expected = "--to-torch for a file" if is_file else f"one of {' '.join(writers)}"
            raise InputError(f"{self.output} ends in {self.output.suffix!r}; expected {expected}")
        if self.output.exists():
            raise InputError(f"{self.output} is there already; expected a new name")
        config, params = weights.load(self.input, self.step)
        if self.dtype is not None:
            params = weights.stored_as(params, self.dtype)
        if self.to_torch:
            noted = notes(config)
            writers[self.output.suffix](self.output, params_to_torch(params, config), notes=noted)
            if noted:
                warnings.warn(
                    f"topk_fractions are {' '.join(config.topk_fractions)}, which {self.output} "
                    "notes for drsformer alone: the official programs have the published ones, and "
                    "compute another network",
                    stacklevel=1,
                )
        else:
            weights.save(self.output, config, params)
        count = f"{parameters(config):,} parameters"
        print(
            f"{remote.shown(self.input)} is {describe(config)}, {count}; written to {self.output}"
        )


@dataclass(frozen=True)
class BuildData:
    """Builds a rain dataset for training and scoring from downloaded files."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """rain200l, rain200h, did_data, ddn_data, spa_data, rain100l, rain13k, paired_folder for your
    own pairs, or synthetic; with --verify any built dataset."""
    manual_dir: Path | None = None
    """Folder of the unpacked files; run without it to see what it should hold. For synthetic, a
    folder of photographs; default: those of scikit-image."""
    data_dir: Path | None = None
    """Folder of all datasets; default: that of TFDS (TFDS_DATA_DIR, or ~/tensorflow_datasets)."""
    save_as: str | None = None
    """Another name for a paired_folder, so that there may be several."""
    allow_partial: bool = False
    """Build an incomplete dataset from the files there are, and record the difference."""
    verify: bool = False
    """Read and check every pair of a built dataset."""

    def run(self) -> None:
        """Builds or checks a dataset and prints its numbers of pairs.

        Raises:
            InputError: if the dataset or its files are wrong, or checks find problems.
        """
        if self.verify:
            self._verify()
        else:
            self._build()

    def _build(self) -> None:
        # It imports TFDS, which nothing else here needs.
        from drsformer_jax.data.rain import build, build_in_bucket, instructions

        if self.manual_dir is None and self.dataset != "synthetic":
            print(instructions(self.dataset))
            raise InputError("--manual-dir is missing; expected a folder as described above")
        data_dir = self.data_dir or default_data_dir()
        options: dict[str, Any] = {"name": self.save_as, "allow_partial": self.allow_partial}
        if where := remote.address(data_dir):
            lines, place = build_in_bucket(self.dataset, self.manual_dir, where, **options)
        else:
            folder = build(self.dataset, self.manual_dir, data_dir, **options)
            lines, place = summary(folder), str(folder)
        print("\n".join(lines))
        # The name alone is rain that is rendered while training.
        name = "rain/synthetic" if self.dataset == "synthetic" else self.save_as or self.dataset
        print(f"{name} is in {place}")

    def _verify(self) -> None:
        from drsformer_jax.data.verification import verify

        check_unused(self, ("manual_dir", "save_as", "allow_partial"), "beside --verify")
        found = find_dataset(self.dataset, str(self.data_dir or ""))
        if found is None:
            place = remote.shown(self.data_dir or default_data_dir())
            raise InputError(f"{self.dataset} is no dataset in {place}; expected a built one")
        folder, split = found
        _check(not split, "the dataset", self.dataset, "no split, because all are checked")
        problems = 0
        for line in verify(folder):
            tqdm.write(line)
            problems += 1
        print("\n".join(summary(folder)))
        if problems:
            raise InputError(f"problems found in {folder}: {problems}; expected none")
        print(f"read every pair of {folder} and found no problem")


@dataclass(frozen=True)
class ShowData:
    """Shows pairs of a dataset, and crops as training samples them, on a contact sheet."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A built dataset (rain200l, or a split: rain200l:test), a folder with input/ and target/, or
    synthetic, which shows each kind of rain."""
    out: Path
    """The image to write, such as sheet.png."""
    data_dir: Path | None = None
    """Folder of datasets; default: that of TFDS."""
    photographs: str = "skimage"
    """Photographs for synthetic rain: a folder of images; default: those of scikit-image."""
    pairs: int = 4
    """Number of pairs to show, spread evenly; of synthetic rain, of each kind."""
    crops: int = 8
    """Number of crops to show."""
    crop_size: int = 128
    """Side of the crops in pixels."""
    seed: int = 0
    """Seed of the crops and of synthetic rain."""

    def run(self) -> None:
        """Writes the sheet and prints the number and sizes of the pairs.

        Raises:
            InputError: if there is no such data, or a flag or an image is wrong.
        """
        from drsformer_jax.data.sheets import data_sheet, rain_sheet
        from drsformer_jax.data.sources import open_pairs

        _check(1 <= self.pairs <= 100, "--pairs", self.pairs, "1 to 100")
        _check(1 <= self.crops <= 100, "--crops", self.crops, "1 to 100")
        _check(8 <= self.crop_size <= 1024, "--crop-size", self.crop_size, "8 to 1024")
        if self.source != "synthetic":
            _check(self.photographs == "skimage", "--photographs", "given", "none but of synthetic")
        _check(0 <= self.seed < 2**32, "--seed", self.seed, f"0 to {2**32 - 1}")
        check_extension(self.out)
        config = DataConfig(
            data_dir=str(self.data_dir or ""),
            photographs=self.photographs,
            crop_size=self.crop_size,
            global_batch=self.crops,
        )
        pairs = open_pairs(self.source, "train", config, self.seed)
        sheet = rain_sheet if self.source == "synthetic" else data_sheet
        write_image(self.out, sheet(pairs, self.pairs, config, self.seed))
        sizes = Counter(f"{width}x{height}" for height, width in sizes_of(pairs))
        common = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3))
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        print(f"{self.source} has {len(pairs)} pairs: {common}{more}; see {self.out}")


def main() -> None:
    """Runs the command line."""
    application = tyro.extras.SubcommandApp()
    application.command(name="derain")(Derain)
    application.command(name="convert")(Convert)
    application.command(name="build-data")(BuildData)
    application.command(name="show-data")(ShowData)
    application.command(name="plan")(Plan)
    with one_line_errors():
        parse(application.cli, prog="drsformer").run()


if __name__ == "__main__":
    main()

"""Settings of datasets and of the batches of crops that are sampled from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from drsformer_jax.config.fields import check, check_types
from drsformer_jax.config.rain import RainConfig

RESTORMER_PATCHES = (
    (0, 128, 64),
    (92_000, 160, 40),
    (156_000, 192, 32),
    (204_000, 256, 16),
    (240_000, 320, 8),
    (276_000, 384, 8),
)
"""Restormer's progressive patches ("Restormer", CVPR 2022, Sec. 4), for crops of 384 pixels: first
step, side and global batch (8 GPUs) of each stage."""


@dataclass(frozen=True)
class DataConfig:
    """Datasets, and the batches of crops that are sampled from them.

    Raises:
        InputError: if a value is impossible.
    """

    train: str = "synthetic"
    """Pairs to train on: `synthetic`, a folder with `input/` and `target/`, or a dataset that
    `drsformer build-data` built. A dataset is given by its name, such as `rain200l` or, for a
    split, `rain200l:train[:90%]`, or by its folder."""
    sources: tuple[tuple[str, float], ...] = ()
    """Several datasets with weights, to train on a mix of them instead of `train`:
    `--data.sources rain200l 3 rain200h 1` takes three quarters of the crops from the first."""
    validation: str = "synthetic"
    """Pairs to validate on, likewise; default split of a dataset: its test split."""
    data_dir: str = ""
    """Folder of built datasets; if empty, that of TFDS (TFDS_DATA_DIR, or
    ~/tensorflow_datasets)."""
    photographs: str = "skimage"
    """Photographs that synthetic rain falls on: a folder of images, one with `train/` and
    `validation/`, or `skimage` for those that scikit-image ships."""
    rains: int = 64
    """Synthetic rains sampled for each training photograph."""
    validation_rains: int = 4
    """Synthetic rains sampled for each validation photograph, always on the whole of it."""
    window: int = 0
    """Side in pixels of a random window of a photograph that each training rain is rendered on, at
    least the crop. Each crop then has its own rain, at the cost of one window. 0 for the whole
    photograph."""
    rain: RainConfig = field(default_factory=RainConfig)
    """The mix of synthetic rain and its ranges."""
    crop_size: int = 128
    """Side of the square training crops, in pixels; a multiple of 8."""
    global_batch: int = 16
    """Crops of one optimizer step."""
    progressive: tuple[tuple[int, int, int], ...] = ()
    """Progressive patches: (first step, side, global batch) of each stage, as in
    `RESTORMER_PATCHES`. They are cut from crops of `crop_size` and replace `global_batch`."""
    augment: bool = True
    """Flip and rotate crops at random, by quarter turns (8 variants)."""
    mixup: bool = False
    """Blend half of the batches, sampled at random, with a permutation of themselves."""
    small_images: Literal["pad", "error"] = "pad"
    """Pad images smaller than the crop at the right and bottom by symmetric reflection, or reject
    them."""
    corrupt: Literal["error", "skip"] = "error"
    """At a pair that cannot be read, stop training, or use the next pair, report the bad one and
    count it. Validation always stops."""
    cache_mib: int = 2048
    """Memory for decoded training images, and as much again for validation, in MiB per process;
    images beyond it are decoded at each use."""
    cache_dir: str = ""
    """Folder for decoded training images as raw ArrayRecord files, instead of memory, for datasets
    that do not fit; written once, by one process. Empty for none."""
    workers: int = 0
    """Worker processes that prepare batches; 0 for threads of the training process."""

    def __post_init__(self) -> None:
        check_types(self, "data.")
        check(
            self.crop_size >= 8 and self.crop_size % 8 == 0,
            "data.crop-size",
            self.crop_size,
            "a multiple of 8, such as 128",
        )
        check(self.global_batch >= 1, "data.global-batch", self.global_batch, "at least 1")
        self._check_progressive()
        for name, weight in self.sources:
            fits = 1e-4 <= weight <= 1e4
            check(fits, "data.sources", (name, weight), "weights from 0.0001 to 10000")
        check(self.rains >= 1, "data.rains", self.rains, "at least 1")
        check(
            self.validation_rains >= 1,
            "data.validation-rains",
            self.validation_rains,
            "at least 1",
        )
        check(
            self.window == 0 or self.window >= self.crop_size,
            "data.window",
            self.window,
            f"0, or at least the crop of {self.crop_size}",
        )
        check(self.cache_mib >= 0, "data.cache-mib", self.cache_mib, "0 or more")
        check(self.workers >= 0, "data.workers", self.workers, "0 or more")

    def _check_progressive(self) -> None:
        name = "data.progressive"
        starts = [start for start, _, _ in self.progressive]
        check(
            starts == sorted(set(starts)) and starts[:1] in ([], [0]),
            name,
            self.progressive,
            "first steps that start at 0 and increase",
        )
        for _, side, batch in self.progressive:
            check(
                side % 8 == 0 and 8 <= side <= self.crop_size,
                name,
                f"a side of {side}",
                f"a multiple of 8, at most the crop of {self.crop_size}",
            )
            check(batch >= 1, name, f"a global batch of {batch}", "at least 1")

    def unused(self) -> tuple[str, ...]:
        """The fields that neither pairs nor batches depend on, as the starts of their flags."""
        trained = "synthetic" in dict(self.named())
        validated = self.validation == "synthetic"
        used = {
            "data.train": not self.sources,
            "data.global-batch": not self.progressive,
            "data.rains": trained,
            "data.window": trained,
            "data.validation-rains": validated,
            "data.photographs": trained or validated,
            "data.rain.": trained or validated,
        }
        return tuple(name for name, is_used in used.items() if not is_used)

    def named(self) -> tuple[tuple[str, float], ...]:
        """Names and weights of what is trained on."""
        return self.sources or ((self.train, 1.0),)

    def stages(self) -> tuple[tuple[int, int, int], ...]:
        """(First step, patch side, global batch) of each stage; one without progressive patches."""
        return self.progressive or ((0, self.crop_size, self.global_batch),)

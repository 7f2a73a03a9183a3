"""The commands `drsformer build-data` and `drsformer show-data`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from drsformer_jax import remote
from drsformer_jax.config import DataConfig
from drsformer_jax.config.fields import check
from drsformer_jax.data.datasets import default_data_dir, find_dataset, summary
from drsformer_jax.data.pairs import sizes_of
from drsformer_jax.errors import InputError
from drsformer_jax.flags import check_unused
from drsformer_jax.images.pixels import check_extension, write_image


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
        if self.dataset == "synthetic":
            check_unused(self, ("allow_partial",), "for synthetic rain")
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
        check(not split, "the dataset", self.dataset, "no split, because all are checked")
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

        check(1 <= self.pairs <= 100, "--pairs", self.pairs, "1 to 100")
        check(1 <= self.crops <= 100, "--crops", self.crops, "1 to 100")
        check(8 <= self.crop_size <= 1024, "--crop-size", self.crop_size, "8 to 1024")
        if self.source != "synthetic":
            check(self.photographs == "skimage", "--photographs", "given", "none but of synthetic")
        check(0 <= self.seed < 2**32, "--seed", self.seed, f"0 to {2**32 - 1}")
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

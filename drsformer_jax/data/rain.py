"""TFDS builders of the rain datasets, written as ArrayRecord without TensorFlow.

The builder is `Rain`, with a config for each dataset: `Rain(config="rain200l", data_dir=...)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import grain
import numpy as np
import tensorflow_datasets as tfds

from drsformer_jax import remote
from drsformer_jax.config import RainConfig
from drsformer_jax.data import citations, layouts
from drsformer_jax.data.datasets import INFO, in_threads, pixel_digest, summary
from drsformer_jax.data.folders import check_sizes
from drsformer_jax.data.layouts import RawPair
from drsformer_jax.data.pairs import Pair, check_two_files
from drsformer_jax.data.synthetic import SyntheticRain, photographs
from drsformer_jax.errors import InputError
from drsformer_jax.files import check_writable
from drsformer_jax.images.pixels import decode_image, encode_image, image_file, read_image
from drsformer_jax.locks import locked

_VERSION = "1.0.0"
_Examples = Iterator[tuple[int, dict[str, Any]]]
_Shard = Callable[[], _Examples]

_SHARD_BYTES = 2**28
"""Approximate size of a shard; TFDS holds one in memory."""
_KEPT = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
"""Signatures of the formats that TFDS decodes: PNG and JPEG."""


@dataclass
class BuilderConfig(tfds.core.BuilderConfig):
    """One dataset of the builder."""

    dataset: str = ""
    """Its row in `layouts.DATASETS`, or `synthetic`."""
    citation: str = ""


_UNKNOWN_LICENSE = (
    "The authors of the images name no license that is known here; ask them before any use other "
    "than research."
)


def _config(name: str, description: str, citation: str = "") -> BuilderConfig:
    return BuilderConfig(name=name, dataset=name, description=description, citation=citation)


class Rain(tfds.core.ShardBasedBuilder):
    """Pairs of a rainy and a clean photograph.

    Shards are written one after another, because the writer of a `GeneratorBasedBuilder` sorts a
    split above 1 GiB through TensorFlow's file system and in memory.

    Args:
        allow_partial: accept and record a number of pairs other than that of the whole dataset.
        photographs: photographs for `synthetic`: a folder of images, or `skimage`.
        options: options of every TFDS builder.
    """

    VERSION = tfds.core.Version(_VERSION)
    RELEASE_NOTES: Mapping[str, str] = {_VERSION: "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "\n\n".join(map(layouts.instructions, layouts.DATASETS))
    BUILDER_CONFIGS: Sequence[BuilderConfig] = [
        _config("rain200l", "Synthetic light rain on photographs.", citation=citations.YANG),
        _config("rain200h", "Synthetic heavy rain on photographs.", citation=citations.YANG),
        _config("did_data", "Synthetic rain of three densities.", citation=citations.ZHANG),
        _config("ddn_data", "14 synthetic rains on each photograph.", citation=citations.FU),
        _config("spa_data", "Real rain, cleaned with the help of video.", citation=citations.WANG),
        _config("rain100l", "Synthetic light rain on photographs.", citation=citations.YANG),
        _config(
            "rain13k",
            "Several synthetic sets joined, with five test sets.",
            citation=citations.JIANG,
        ),
        _config("paired_folder", "A folder of pairs."),
        _config("synthetic", "Rain rendered by drsformer_jax on photographs."),
    ]

    def __init__(
        self, *, allow_partial: bool = False, photographs: str = "skimage", **options: Any
    ) -> None:
        self._allow_partial = allow_partial
        self._photographs = photographs
        super().__init__(**options)

    def download_and_prepare(self, **options: Any) -> None:
        """Builds the dataset, with the lock of its folder; see TFDS.

        Raises:
            InputError: if another process is building it.
        """
        folder = Path(self.data_path).parent
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, f"build {self.builder_config.name}", wait=False):
            for left in folder.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*_{_VERSION}"):
                shutil.rmtree(left)
                print(f"removed {left}, left by a build that was killed", file=sys.stderr)
            super().download_and_prepare(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3))
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(
                {"rainy": image, "clean": image, "name": tfds.features.Text()}
            ),
            citation=self.builder_config.citation or None,
            license=_UNKNOWN_LICENSE,
            # Evaluation reports images in the order of their names; training shuffles by itself.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(splits={}),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[_Shard]]:
        dataset = self.builder_config.dataset
        splits: dict[str, grain.MapDataset]
        if dataset == "synthetic":
            train, test = photographs(self._photographs)
            rain = RainConfig(none=0)  # `verify` reports a pair of two equal images.
            splits = {
                split: grain.MapDataset.source(SyntheticRain(found, rains, 0, rain)).map(_store)
                for split, found, rains in (("train", train, 16), ("test", test, 4))
            }
        else:
            found = _raw_pairs(dataset, Path(dl_manager.manual_dir), self._allow_partial)
            splits = {
                split: grain.MapDataset.source(pairs).map(_store_files)
                for split, pairs in found.items()
            }
        return {split: self._shards(split, pairs) for split, pairs in splits.items()}

    def _shards(self, split: str, pairs: grain.MapDataset) -> list[_Shard]:
        """The example iterators of each shard, in order; the last one records the metadata."""
        some = [pairs[index] for index in range(0, len(pairs), -(-len(pairs) // 16))]
        mean = sum(len(pair.rainy) + len(pair.clean) for pair in some) / len(some)
        in_shard = max(1, int(_SHARD_BYTES / mean))
        stream = enumerate(in_threads(pairs, split))
        digest = hashlib.sha256()
        sizes: list[tuple[int, int]] = []

        def examples() -> _Examples:
            for index, pair in itertools.islice(stream, in_shard):
                digest.update(pair.digest)
                sizes.append(pair.size)
                yield index, {"rainy": pair.rainy, "clean": pair.clean, "name": pair.name}
            if len(sizes) == len(pairs):
                metadata = self._metadata(split, digest.hexdigest(), sizes)
                self.info.metadata["splits"][split] = metadata

        return [examples] * -(-len(pairs) // in_shard)

    def _metadata(self, split: str, sha256: str, sizes: list[tuple[int, int]]) -> dict[str, Any]:
        known = layouts.DATASETS.get(self.builder_config.dataset)
        return {
            "pairs": len(sizes),
            "expected_pairs": known and known.expected.get(split),
            "sha256": sha256,
            # Height, width, and the number of consecutive pairs of that size.
            "sizes": [(*size, len(list(run))) for size, run in itertools.groupby(sizes)],
        }


class _Stored(NamedTuple):
    """A pair as it is stored."""

    name: str
    rainy: bytes
    clean: bytes
    size: tuple[int, int]
    digest: bytes


def _store_files(pair: RawPair) -> _Stored:
    """A pair of downloaded files, stored unchanged."""
    if pair.clean is None:
        return _store_halves(pair)
    (rainy, rainy_file), (clean, clean_file) = map(_read, (pair.rainy, pair.clean))
    check_sizes(pair.rainy, rainy.shape, pair.clean, clean.shape)
    digest = pixel_digest(rainy, clean)
    return _Stored(pair.name, rainy_file, clean_file, rainy.shape[:2], digest)


def _store_halves(pair: RawPair) -> _Stored:
    """Splits an image with the rainy image at the left and the clean one at the right."""
    both = read_image(pair.rainy)
    height, width, _ = both.shape
    if width % 2:
        raise InputError(
            f"{pair.rainy} is {width}x{height}; expected an even width, since it should show a "
            "rainy and a clean image side by side"
        )
    half = width // 2
    return _store({"name": pair.name, "rainy": both[:, :half], "clean": both[:, half:]})


def _store(pair: Pair) -> _Stored:
    """A pair of arrays, stored without loss."""
    rainy, clean = pair["rainy"], pair["clean"]
    rainy_file, clean_file = (encode_image(image, ".png") for image in (rainy, clean))
    size = rainy.shape[:2]
    return _Stored(pair["name"], rainy_file, clean_file, size, pixel_digest(rainy, clean))


def _read(path: Path) -> tuple[np.ndarray, bytes]:
    """An image, and the file to store: unchanged if TFDS decodes its format."""
    with image_file(path) as file:
        content = file.read()
    image = decode_image(content, str(path))
    return image, content if content.startswith(_KEPT) else encode_image(image, ".png")


def _raw_pairs(dataset: str, folder: Path, allow_partial: bool) -> dict[str, list[RawPair]]:
    """The pairs of each split, after checks of their number, files and names."""
    found = layouts.find_raw_pairs(dataset, folder)
    for split, expected in layouts.DATASETS[dataset].expected.items():
        count = len(found.get(split, ()))
        if count != expected and not allow_partial:
            raise InputError(
                f"the {split} split of {dataset} has {count} pairs in {folder}; expected "
                f"{expected}, or --allow-partial to build what is there"
            )
    for pairs in found.values():
        check_two_files([(pair.rainy, pair.clean) for pair in pairs if pair.clean is not None])
        first: dict[str, RawPair] = {}
        for pair in pairs:
            if not _is_utf8(pair.name):
                raise InputError(f"{pair.rainy!r} has a name that is no UTF-8; expected another")
            other = first.setdefault(os.path.splitext(pair.name)[0], pair)
            if other is not pair:  # Their restored images would be saved under one name.
                raise InputError(
                    f"{other.rainy} and {pair.rainy} have one name before the extension; expected "
                    "names that differ there"
                )
    return found


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def build(
    dataset: str,
    source: Path | None,
    data_dir: Path,
    *,
    name: str | None = None,
    allow_partial: bool = False,
) -> Path:
    """Builds a dataset; it appears only when it is complete.

    Leftovers of killed builds of the dataset are removed.

    Args:
        dataset: name of a config of `Rain`.
        source: the folder of downloaded files; for `synthetic`, of photographs.
        data_dir: folder of all datasets.
        name: another name for a `paired_folder`.
        allow_partial: as for `Rain`.

    Returns:
        The dataset's folder.

    Raises:
        InputError: if the dataset is unknown, exists, or is being built by another process; if
            files are missing, damaged, of two sizes in a pair, or not as many as expected; or if
            the folder cannot be written.
        OSError: if the file system fails.
    """
    config: Any = _config_of(dataset, name)
    if dataset != "synthetic":
        if source is None:
            raise InputError(f"no folder is given for {dataset}; expected that of its files")
        _raw_pairs(dataset, source, allow_partial)  # Before anything is written.
    data_dir = data_dir.expanduser()  # TFDS does so by itself.
    check_writable(data_dir)
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS logs that a name is not registered.
    options = {"photographs": str(source)} if dataset == "synthetic" and source else {}
    builder = Rain(config=config, data_dir=data_dir, allow_partial=allow_partial, **options)
    folder = Path(builder.data_path)
    if folder.exists():
        raise InputError(
            f"{folder} exists; expected a dataset that does not (--verify checks this one)"
        )
    _write(builder, source)
    return folder


def _write(builder: Rain, source: Path | None) -> None:
    """Lets TFDS write a dataset."""
    tfds.disable_progress_bar()  # It knows no total; the builder shows its own.
    with (
        contextlib.redirect_stdout(io.StringIO()),  # TFDS announces what it does.
        tempfile.TemporaryDirectory() as downloads,  # It makes folders even for no download.
    ):
        try:
            builder.download_and_prepare(
                download_dir=downloads,
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(manual_dir=source),
            )
        except RuntimeError as error:
            if "; writing " not in str(error):
                raise
            # ArrayRecord's, such as on a full disk.
            reason = str(error).split(";")[0]
            raise InputError(
                f"{builder.data_path} cannot be written ({reason}); expected a disk with room for "
                "the dataset"
            ) from error


def build_in_bucket(
    dataset: str, source: Path | None, where: str, name: str | None, **options: Any
) -> tuple[list[str], str]:
    """Builds a dataset here, see `build`, and sends it; gives its summary and address."""
    place = f"{where}/rain/{name or dataset}"
    if remote.folders_with(place, INFO):
        raise InputError(f"{place} exists; expected a dataset that does not")
    with tempfile.TemporaryDirectory() as local:
        folder = build(dataset, source, Path(local), name=name, **options)
        target = f"{where}/{folder.relative_to(local).as_posix()}"
        remote.sent(folder, target, last=INFO)
        return summary(folder), target


def instructions(dataset: str) -> str:
    """Describes the files that a dataset is built from, and their layouts.

    Raises:
        InputError: if the dataset is unknown.
    """
    return layouts.instructions(_config_of(dataset).dataset)


def _config_of(dataset: str, name: str | None = None) -> BuilderConfig:
    """The builder's config of a dataset, which a `paired_folder` may give another name."""
    if dataset not in Rain.builder_configs:
        known = ", ".join(Rain.builder_configs)
        raise InputError(f"the dataset {dataset} is unknown; expected one of {known}")
    config = Rain.builder_configs[dataset]
    if name in (None, dataset):
        return config
    taken = dataset != "paired_folder" or name in Rain.builder_configs
    if taken or not re.fullmatch(r"[A-Za-z]\w*", name):
        raise InputError(
            f"the name '{name}' is given to {dataset}; expected one of letters, digits and _ "
            "for a paired_folder, which no other dataset has"
        )
    return dataclasses.replace(config, name=name)

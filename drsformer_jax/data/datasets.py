"""Built datasets: found by name and read pair by pair."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from drsformer_jax import remote
from drsformer_jax.data.folders import check_sizes
from drsformer_jax.data.pairs import Pair, fingerprint
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import content_size, decode_image

if TYPE_CHECKING:
    import grain

_NAME = re.compile(
    r"(?:rain/)?(?P<name>[A-Za-z]\w*)(?::(?P<version>\d+\.\d+\.\d+))?(?::(?P<split>[a-z].*))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
INFO = "dataset_info.json"


def name_of(folder: Path) -> str:
    """The name by which a dataset was built; empty if its builder had none, or it is damaged."""
    try:
        return str(json.loads((folder / INFO).read_text()).get("configName", ""))
    except (ValueError, AttributeError):  # Which opening the dataset reports.
        return ""


def default_data_dir() -> Path:
    """The folder of TFDS's datasets: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_dataset(source: str, data_dir: str = "", cache_dir: str = "") -> tuple[Path, str] | None:
    """Finds a built dataset; one in a bucket is copied to the local disk first, once.

    Args:
        source: `NAME`, `NAME:VERSION`, `NAME:SPLIT` or `NAME:VERSION:SPLIT`, with or without
            `rain/` before it; default: the newest version. Or a folder that a TFDS builder wrote,
            also with `:SPLIT`. A split may be any of TFDS's, such as `train[:90%]`.
        data_dir: folder of all datasets, or its address; default: `default_data_dir()`.
        cache_dir: folder of the copies, see `remote.copied`.

    Returns:
        The dataset's folder and the split, "" if none is named; None if there is no such dataset.

    Raises:
        InputError: if the dataset exists but not in that version, or a folder of pairs has its
            name.
    """
    folder, _, split = source.partition(":")
    if (Path(folder) / INFO).is_file():
        return Path(folder), split
    found = _NAME.fullmatch(source)
    if found is None:
        return None
    name, version, split = found["name"], found["version"], found["split"] or ""
    place = (Path(data_dir).expanduser() if data_dir else default_data_dir()) / "rain" / name
    where = remote.address(place)
    folders = (
        remote.folders_with(where, INFO)
        if where
        else [path.parent.name for path in place.glob(f"*/{INFO}")]
    )
    versions = sorted(
        filter(_VERSION.fullmatch, folders),  # Not the leftover of a killed build.
        key=lambda version: [int(number) for number in version.split(".")],
    )
    if not versions:
        return None
    if version not in (None, *versions):
        found_there = " or ".join(versions)
        raise InputError(f"{where or place} has no version {version}; expected {found_there}")
    if all((Path(source) / part).is_dir() for part in ("input", "target")):
        raise InputError(
            f"{source} is a folder of pairs here and a dataset in {where or place}; expected "
            f"rain/{source} for the dataset, or the absolute path of the folder"
        )
    chosen = version or versions[-1]
    return remote.copied(f"{where}/{chosen}", cache_dir) if where else place / chosen, split


class DatasetPairs:
    """Pairs of a built dataset. Can be pickled; reads the records at each access.

    Args:
        folder: written by a TFDS builder, with the features `rainy` and `clean`.
        split: any of TFDS's splits, such as `train` or `train[:90%]`.

    Raises:
        InputError: if the folder holds no such dataset, or the dataset has no such split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        import tensorflow_datasets as tfds

        self._folder, self._split = folder, split
        builder = _builder(folder)
        self._info = builder.info
        features = set(self._info.features)
        missing = {"rainy", "clean"} - features
        if missing:
            raise InputError(
                f"{folder} has the features {sorted(features)}; expected rainy and clean"
            )
        skip = {name: tfds.decode.SkipDecoding() for name in ("rainy", "clean")}
        try:
            instruction = tfds.core.ReadInstruction.from_spec(split)
            self._ranges = [
                (each.splitname, *slice(each.from_, each.to).indices(self._count(each.splitname)))
                for each in instruction.to_absolute(self._info.splits)
            ]
            if not any(stop - start for _, start, stop, _ in self._ranges):
                raise ValueError("it is empty")
            self._source = builder.as_data_source(split, decoders=skip)
        except (ValueError, KeyError, NotImplementedError) as error:
            splits = ", ".join(f"{name} ({self._count(name)})" for name in self._info.splits)
            raise InputError(
                f"{folder} has no split {split} ({_line(error)}); its splits are {splits}"
            ) from None

    def _count(self, split: str) -> int:
        return int(self._info.splits[split].num_examples)

    def __len__(self) -> int:
        return len(self._source)

    def _record(self, index: int) -> tuple[str, str, bytes, bytes]:
        """The pair's name, its name in errors, and both files."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of 0 to {len(self) - 1}")
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        place = self.place(index)
        try:
            record = self._source[index]
        except (RuntimeError, OSError, DecodeError) as error:  # ArrayRecord's and protobuf's
            raise InputError(
                f"{place} cannot be read ({_line(error)}); expected what was written there: remove "
                "the folder and build the dataset again"
            ) from None
        name = self._name(record, index)
        return name, f"{name}, {place}", record["rainy"], record["clean"]

    def _name(self, record: Mapping[str, Any], index: int) -> str:
        """A relative path, which starts with the split if there are several."""
        given = f"{index:06d}.png"
        if "name" in record:  # Other builders may have stored another encoding.
            given = record["name"].decode(errors="backslashreplace")
        parts = [part for part in given.split("/") if part not in ("", ".", "..")]
        if len(self._ranges) > 1:
            ends = itertools.accumulate(stop - start for _, start, stop, _ in self._ranges)
            parts.insert(0, self._ranges[bisect.bisect_right(list(ends), index)][0])
        return "/".join(parts)

    def digest(self) -> str:
        """Depends on the records of the split, and the checksum that the builder recorded."""
        sums = {split: each["sha256"] for split, each in self.recorded().items()}
        return fingerprint((*each, sums.get(each[0])) for each in self._ranges)

    def place(self, index: int) -> str:
        """Describes where a pair is stored."""
        return f"record {index} of {self._split} in {self._folder}"

    def __getitem__(self, index: int) -> Pair:
        name, place, *files = self._record(index)
        rainy, clean = (
            decode_image(content, f"{kind} {place}")
            for kind, content in zip(("rainy", "clean"), files, strict=True)
        )
        check_sizes(f"rainy {place}", rainy.shape, f"clean {place}", clean.shape)
        return {"name": name, "rainy": rainy, "clean": clean}

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a pair, as the builder recorded it; else from the image's header."""
        if self._sizes is not None:
            return self._sizes[index]
        _, place, rainy, _ = self._record(index)
        return content_size(rainy, f"rainy {place}")

    @functools.cached_property
    def _sizes(self) -> list[tuple[int, int]] | None:
        """The sizes that the builder recorded."""
        recorded = self.recorded()
        if any(
            split not in recorded or recorded[split]["pairs"] != self._count(split)
            for split, *_ in self._ranges
        ):
            return None
        return [
            size
            for split, *range_ in self._ranges
            for size in [
                (height, width)
                for height, width, count in recorded[split]["sizes"]
                for _ in range(count)
            ][slice(*range_)]
        ]

    def is_ours(self) -> bool:
        """Whether the builder `Rain` wrote it."""
        return str(self._info.as_proto.module_name).startswith("drsformer_jax.")

    def recorded(self) -> dict[str, dict[str, Any]]:
        """What the builder `Rain` recorded of each split; empty for datasets of other builders."""
        return _recorded(self._info)

    def fingerprint(self) -> str:
        """Of the checksums that the builder recorded, or else of the time of writing."""
        written = (self._folder / INFO).stat().st_mtime_ns
        sums = {split: each["sha256"] for split, each in self.recorded().items()}
        return fingerprint([str(self._folder.resolve()), sums or written, self._split])

    def __reduce__(self) -> tuple[type[DatasetPairs], tuple[Path, str]]:
        # Open files cannot be pickled.
        return DatasetPairs, (self._folder, self._split)


def open_dataset(folder: Path, split: str, default: Literal["train", "test"]) -> DatasetPairs:
    """Opens a split of a dataset.

    Args:
        folder: written by a TFDS builder.
        split: any of TFDS's splits; "" for the default one.
        default: the default split; if it is `test` and there is none, all splits but `train`.

    Raises:
        InputError: as `DatasetPairs`.
    """
    if split:
        return DatasetPairs(folder, split)
    splits = splits_of(folder)
    others = "+".join(name for name in splits if name != "train")
    use_others = default == "test" and default not in splits and others
    return DatasetPairs(folder, others if use_others else default)


def splits_of(folder: Path) -> list[str]:
    """Names of a dataset's splits; raises as `summary`."""
    return list(_builder(folder).info.splits)


def summary(folder: Path) -> list[str]:
    """Describes a dataset, a line for each split.

    Raises:
        InputError: if the folder is no dataset.
    """
    info = _builder(folder).info
    recorded = _recorded(info)
    lines = []
    for name, split in info.splits.items():
        of = recorded.get(name, {})
        expected = of.get("expected_pairs")
        whole = "" if expected in (None, split.num_examples) else f" of {expected}"
        checksum = f", pixels have SHA-256 {of['sha256']}" if "sha256" in of else ""
        lines.append(
            f"{name}: {split.num_examples}{whole} pairs, {split.num_bytes / 1e6:.1f} MB{checksum}"
        )
    return lines


def _builder(folder: Path) -> Any:
    """Opens a dataset with TFDS."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import Error as JsonError  # type: ignore[import-untyped]

    try:
        builder = tfds.builder_from_directory(folder)
        # TFDS reads them when asked for, and expects the JSON types that it wrote.
        _ = builder.info.features, builder.info.splits, builder.info.metadata
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, ImportError),
        JsonError,
    ) as error:
        raise InputError(
            f"{folder} is no dataset that can be read ({_line(error)}); expected what "
            "`drsformer build-data` writes"
        ) from None
    return builder


def _recorded(info: Any) -> dict[str, dict[str, Any]]:
    """What the builder `Rain` recorded of each split."""
    metadata = {} if info.metadata is None else dict(info.metadata.items())
    splits = metadata.get("splits")
    if not isinstance(splits, dict):
        return {}
    return {name: each for name, each in splits.items() if _is_recorded(each)}


def _is_recorded(value: object) -> bool:
    """Whether a value has the shape of what the builder `Rain` records of a split."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("pairs"), int)
        and isinstance(value.get("sha256"), str)
        and isinstance(value.get("sizes"), list)
        and all(
            isinstance(run, list) and len(run) == 3 and all(isinstance(x, int) for x in run)
            for run in value["sizes"]
        )
        and sum(count for _, _, count in value["sizes"]) == value["pairs"]
    )


def in_threads(dataset: grain.MapDataset, title: str) -> Iterator[Any]:
    """Yields the elements of a dataset in order, made in several threads, with a progress bar."""
    import grain

    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=16)
    stream = dataset.to_iter_dataset(options)
    yield from tqdm(stream, desc=title, total=len(dataset), unit=" pairs", disable=None)


def pixel_digest(rainy: np.ndarray, clean: np.ndarray) -> bytes:
    """SHA-256 of the pixels of a pair, uint8 (h, w, 3) each, independent of the file format."""
    digest = hashlib.sha256(repr(rainy.shape).encode())
    for image in (rainy, clean):
        digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split(";")[0].split()) or type(error).__name__

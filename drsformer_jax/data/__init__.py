"""Pairs of a rainy and a clean image: from folders, datasets, or synthetic rain.

Builds datasets, opens and caches pairs, and samples the batches of crops that training reads.
Importing this package loads none of its modules; each public name loads its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drsformer_jax.data.datasets import DatasetPairs, find_dataset, open_dataset
    from drsformer_jax.data.folders import find_images, find_pairs
    from drsformer_jax.data.pairs import Pair, PairedFiles, Pairs, sizes_of
    from drsformer_jax.data.pipeline import Batch, batches
    from drsformer_jax.data.sources import Source, open_pairs, open_training, open_validation
    from drsformer_jax.data.synthetic import SyntheticRain, add_rain, photographs

__all__ = [
    "Batch",
    "DatasetPairs",
    "Pair",
    "PairedFiles",
    "Pairs",
    "Source",
    "SyntheticRain",
    "add_rain",
    "batches",
    "find_dataset",
    "find_images",
    "find_pairs",
    "open_dataset",
    "open_pairs",
    "open_training",
    "open_validation",
    "photographs",
    "sizes_of",
]
_MODULES = ("folders", "pairs", "synthetic", "datasets", "sources", "pipeline")
"""Those that define the names, the quicker ones to import first."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

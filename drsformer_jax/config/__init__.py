"""Every setting of the project, as frozen dataclasses that reject impossible values.

Sizes are in pixels, times in optimizer steps. This part needs the standard library alone.
"""

from drsformer_jax.config.data import RESTORMER_PATCHES, DataConfig
from drsformer_jax.config.model import PRESETS, SIZE_MULTIPLE, DType, Kernels, ModelConfig
from drsformer_jax.config.optim import OptimConfig
from drsformer_jax.config.rain import KINDS, DropRanges, Kind, NoiseRanges, RainConfig, Range
from drsformer_jax.config.train import MeshConfig, Protocol, TrainConfig

__all__ = [
    "KINDS",
    "PRESETS",
    "RESTORMER_PATCHES",
    "SIZE_MULTIPLE",
    "DType",
    "DataConfig",
    "DropRanges",
    "Kernels",
    "Kind",
    "MeshConfig",
    "ModelConfig",
    "NoiseRanges",
    "OptimConfig",
    "Protocol",
    "RainConfig",
    "Range",
    "TrainConfig",
]

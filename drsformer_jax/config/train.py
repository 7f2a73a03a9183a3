"""A whole training run, and how it lies on devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from drsformer_jax.config.data import DataConfig
from drsformer_jax.config.fields import check, check_types
from drsformer_jax.config.model import ModelConfig
from drsformer_jax.config.optim import OptimConfig

Protocol = Literal["rain200_spa", "did_ddn"]
"""How PSNR and SSIM are computed: see `drsformer_jax.metrics`."""


@dataclass(frozen=True)
class MeshConfig:
    """How a run lies on devices; nothing of it changes what is learned.

    One of the three axes may be -1: what the others leave of the devices.

    Raises:
        InputError: if a value is impossible.
    """

    data: int = -1
    """Devices that each take their part of a batch."""
    fsdp: int = 1
    """Devices that do so too, and share the parameters and the optimizer state among them."""
    rows: int = 1
    """Devices that share the rows of each image, for patches that do not fit one; a divisor of
    the devices of one process."""
    device_batch: int = 0
    """Most crops of `data.crop_size`, or as many pixels of smaller patches, that a device computes
    at once. What is left of a global batch follows one after another, and the gradients are
    averaged (gradient accumulation). 0 for no limit."""

    def __post_init__(self) -> None:
        check_types(self, "mesh.")
        axes = (self.data, self.fsdp, self.rows)
        for name, size in zip(("data", "fsdp", "rows"), axes, strict=True):
            check(size >= 1 or size == -1, f"mesh.{name}", size, "at least 1, or -1 for the rest")
        check(axes.count(-1) <= 1, "mesh", f"{axes}", "-1 for one axis at most")
        check(self.device_batch >= 0, "mesh.device-batch", self.device_batch, "0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Raises:
        InputError: if a value is impossible.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pairs and batches."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""
    init_from: str = ""
    """Parameters that a new run starts with: a `.pth` or `.safetensors` file with the official
    programs' keys, a model folder, or another run. Empty to draw them by the seed."""
    steps: int = 300_000
    """Optimizer steps of the whole run."""
    seed: int = 100
    """Seed of the initial parameters, of the order of the pairs, of crops, symmetries and
    synthetic rain."""
    log_every: int = 100
    """Steps between two lines of metrics."""
    eval_every: int = 1000
    """Steps between two evaluations on the validation pairs."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; one is also written at each evaluation and at the end."""
    keep_checkpoints: int = 3
    """Latest checkpoints that are kept, beside the best."""
    protocol: Protocol = "did_ddn"
    """Metric protocol of the evaluations; `did_ddn` has the luma of the official training
    program."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        check(0 <= self.seed < 2**32, "seed", self.seed, "0 or more and below 2**32")
        for name in ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
            check(
                getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "at least 1"
            )

"""A training run and its mesh of devices."""

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
    """The mesh of devices; the result is the same on every mesh, up to the order of sums.

    One of the three axes may be -1: all devices that the others leave.

    Raises:
        InputError: if a value is impossible.
    """

    data: int = -1
    """Devices that the batch is sharded over."""
    fsdp: int = 1
    """Devices that the batch, the parameters and the optimizer state are sharded over."""
    rows: int = 1
    """Devices that the rows of each image are sharded over, for patches that do not fit one
    device; a divisor of the devices of one process."""
    device_batch: int = 0
    """Largest microbatch of a device, in crops of `data.crop_size` (or as many pixels of smaller
    patches). Gradients are accumulated over the microbatches of a batch. 0 for no limit."""
    fsdp_min_size: int = 2**14
    """Elements of the smallest array that is sharded over `fsdp`. Smaller ones cost an exchange
    each and save little: of the published network 44 of 97 arrays, and 0.8% of its memory."""

    def __post_init__(self) -> None:
        check_types(self, "mesh.")
        axes = (self.data, self.fsdp, self.rows)
        for name, size in zip(("data", "fsdp", "rows"), axes, strict=True):
            check(size >= 1 or size == -1, f"mesh.{name}", size, "at least 1, or -1 for the rest")
        check(axes.count(-1) <= 1, "mesh", f"{axes}", "-1 for one axis at most")
        check(self.fsdp_min_size >= 0, "mesh.fsdp-min-size", self.fsdp_min_size, "0 or more")
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
    """Optimizer and learning rate schedule."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Mesh of devices."""
    init_from: str = ""
    """Parameters that a new run starts from: a `.pth` or `.safetensors` file with the official
    programs' keys, a model folder, another run, or builtin. Empty to initialize them from the
    seed."""
    steps: int = 300_000
    """Optimizer steps of the whole run."""
    seed: int = 100
    """Seed of the initial parameters, the order of the pairs, crops, flips and rotations, and
    synthetic rain."""
    log_every: int = 100
    """Steps between lines of metrics."""
    eval_every: int = 1000
    """Steps between evaluations on the validation pairs. One restores each of them, so that on a
    thousand images it can take longer than a thousand steps."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at each evaluation and at the end."""
    keep_checkpoints: int = 3
    """Number of latest checkpoints to keep, beside the best one."""
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

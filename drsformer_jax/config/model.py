"""Every setting of the project, as frozen dataclasses that refuse impossible values.

Sizes are in pixels, times in optimiser steps. This file needs the standard library alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args, get_origin, get_type_hints

from drsformer_jax.errors import InputError

DType = Literal["float32", "bfloat16", "float64"]
Protocol = Literal["rain200_spa", "did_ddn"]
"""How PSNR and SSIM are computed: see `drsformer_jax.metrics`."""


def _check_types(config: Any, prefix: str = "") -> None:
    """Refuses values of other types than the fields', which a Python file may hold."""
    for name, kind in get_type_hints(type(config)).items():
        value, flag = getattr(config, name), prefix + name.replace("_", "-")
        _check(_fits(value, kind), flag, repr(value), _described(kind))
        _check(kind is not float or math.isfinite(value), flag, value, "a finite number")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type as the fields have them."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        first, *others = get_args(kind)
        kinds = [first] * len(value) if others == [...] else [first, *others]
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    number = (int, float) if kind is float else kind
    return isinstance(value, number) and (kind is bool or not isinstance(value, bool))


def _described(kind: Any) -> str:
    """What `_fits` expects, in words."""
    if get_origin(kind) is Literal:
        return f"one of {get_args(kind)}"
    if get_origin(kind) is not tuple:
        return f"a value of type {kind.__name__}"
    first, *others = get_args(kind)
    if others == [...]:
        return f"a tuple of {getattr(first, '__name__', first)}"
    names = [each.__name__ for each in (first, *others)]
    return f"a tuple of {len(names)} {names[0]}" if len(set(names)) == 1 else f"a tuple {names}"


def _check(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise InputError(f"{name} is {found}; expected {expected}")


@dataclass(frozen=True)
class ModelConfig:
    """The network's architecture ("Learning A Sparse Transformer Network", CVPR 2023, Fig. 2).

    The levels of the U-Net have `dim`, 2 `dim`, 4 `dim` and 8 `dim` channels.

    Raises:
        InputError: if a value is impossible, for instance heads that do not divide the channels.
    """

    dim: int = 48
    """Channels of the first level."""
    blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    """Transformer blocks of each level; the encoder and the decoder have the same."""
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Attention heads of each level."""
    encoder_level0: Literal["mefc", "none"] = "mefc"
    """What stands before the encoder: the mixture of experts, or nothing."""
    refinement: Literal["mefc", "blocks", "none"] = "mefc"
    """What stands after the decoder: the mixture of experts, transformer blocks, or nothing."""
    refinement_blocks: int = 4
    """Number of blocks where refinement is `blocks`."""
    attention: Literal["topk", "dense"] = "topk"
    """Softmax over each row's largest scores (TKSA), or over all of them."""
    topk_fractions: tuple[str, ...] = ("1/2", "2/3", "3/4", "4/5")
    """Shares of a head's channels whose scores are kept, one softmax for each; written as
    fractions to be exact."""
    feed_forward: Literal["msfn", "gdfn", "dfn", "fn"] = "msfn"
    """Mixed-scale (DRSformer), gated depthwise (Restormer), depthwise, or plain feed-forward
    network."""
    expansion: float = 2.66
    """Hidden channels of the feed-forward network for each channel of its input; the product is
    cut to an integer."""
    norm: Literal["with_bias", "bias_free"] = "with_bias"
    """LayerNorm with weight and bias, or the one that only divides by the deviation and has a
    weight."""
    bias: bool = False
    """Biases in the convolutions; no published model has them."""
    dtype: DType = "float32"
    """Type of the activations. Norms, softmax and Gram matrices are in float32 or wider whatever
    stands here."""
    param_dtype: Literal["float32", "float64"] = "float32"
    """Type of the parameters."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more
    time."""

    def __post_init__(self) -> None:
        _check_types(self, "model.")
        _check(
            self.dim >= 2 and self.dim % 2 == 0,
            "model.dim",
            self.dim,
            "an even number of at least 2",
        )
        _check(min(self.blocks) >= 1, "model.blocks", self.blocks, "at least 1 block in each level")
        _check(min(self.heads) >= 1, "model.heads", self.heads, "at least 1 head in each level")
        _check(
            self.refinement_blocks >= 1,
            "model.refinement-blocks",
            self.refinement_blocks,
            "at least 1",
        )
        for level, heads in enumerate(self.heads):
            channels = self.channels(level)
            _check(
                channels % heads == 0,
                "model.heads",
                self.heads,
                f"a divisor of {channels} for level {level + 1}",
            )
        _check(
            self.hidden(self.dim) >= 1,
            "model.expansion",
            self.expansion,
            "at least one hidden channel",
        )
        _check(
            len(self.topk_fractions) >= 1,
            "model.topk-fractions",
            self.topk_fractions,
            "at least one fraction",
        )
        for text in self.topk_fractions:
            try:
                fraction = Fraction(text)
            except (ValueError, ZeroDivisionError):
                fraction = Fraction(0)
            _check(
                0 < fraction <= 1,
                "model.topk-fractions",
                text,
                "a fraction above 0 and at most 1, such as 2/3",
            )
        if self.attention == "topk":
            smallest = min(self.channels(level) // heads for level, heads in enumerate(self.heads))
            _check(
                min(self.kept_scores(smallest)) >= 1,
                "model.topk-fractions",
                self.topk_fractions,
                f"at least 1 score kept of the {smallest} that a head has",
            )

    def channels(self, level: int) -> int:
        """Channels of the level counted from 0."""
        return self.dim * 2**level

    def hidden(self, channels: int) -> int:
        """Hidden channels of a feed-forward network on `channels` channels."""
        return int(channels * self.expansion)

    def kept_scores(self, head_channels: int) -> tuple[int, ...]:
        """How many scores of each row each branch of the sparse attention keeps (Sec. 3.2)."""
        return tuple(int(head_channels * Fraction(text)) for text in self.topk_fractions)

    def architecture(self) -> dict[str, Any]:
        """The fields that decide which parameters there are and what they mean."""
        runtime = {"dtype", "param_dtype", "remat"}
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in runtime
        }


PRESETS: Mapping[str, ModelConfig] = {
    "drsformer": ModelConfig(),
    "drsformer_no_mefc": ModelConfig(encoder_level0="none", refinement="none"),
    "restormer": ModelConfig(
        encoder_level0="none", refinement="blocks", attention="dense", feed_forward="gdfn"
    ),
    "tiny": ModelConfig(
        dim=16,
        blocks=(1, 2, 2, 1),
        heads=(1, 1, 2, 4),
        encoder_level0="none",
        refinement="none",
        feed_forward="gdfn",
    ),
}
"""The published variants, and one for a CPU.

`drsformer` is the network of Rain200H, DID-Data and DDN-Data, `drsformer_no_mefc` that of Rain200L
and SPA-Data. `tiny` has the gated feed-forward network because MSFN has 7 times its depthwise
multiplications, and a CPU trains it at a third of the pace.
"""


RESTORMER_PATCHES = (
    (0, 128, 64),
    (92_000, 160, 40),
    (156_000, 192, 32),
    (204_000, 256, 16),
    (240_000, 320, 8),
    (276_000, 384, 8),
)
"""Restormer's growing patches ("Restormer", CVPR 2022, Sec. 4), for crops of 384 pixels: first
step, side and global batch (8 GPUs) of each stage."""


@dataclass(frozen=True)
class DataConfig:
    """Where pairs come from and how batches are cut from them.

    Raises:
        InputError: if a value is impossible.
    """

    train: str = "synthetic"
    """Pairs to train on: `synthetic`, a folder that holds `input/` and `target/`, or a data set
    that `drsformer build-data` built: its name, such as `rain200l` or, for a part of it,
    `rain200l:train[:90%]`, or its folder."""
    sources: tuple[tuple[str, float], ...] = ()
    """Several such sets and the weight of each, to train on a mix of them in place of `train`: of
    ("rain200l", 3.0) and ("rain200h", 1.0) three quarters of the crops come from the first."""
    validation: str = "synthetic"
    """Pairs to score on, likewise; of a data set its test split where no part is named."""
    data_dir: str = ""
    """Folder of the data sets that were built; that of TFDS (TFDS_DATA_DIR, or
    ~/tensorflow_datasets) where it is empty."""
    photographs: str = "skimage"
    """Pictures that synthetic rain falls on: a folder, or `skimage` for those that scikit-image
    ships."""
    rains: int = 64
    """Synthetic rains drawn for each training photograph; each validation photograph gets 4."""
    crop_size: int = 128
    """Side of the square training crops, in pixels; a multiple of 8."""
    global_batch: int = 16
    """Crops of one optimiser step."""
    progressive: tuple[tuple[int, int, int], ...] = ()
    """Patches that grow during training: (first step, side, global batch) of each stage, as in
    `RESTORMER_PATCHES`. They are cut from crops of `crop_size` and take the place of
    `global_batch`."""
    augment: bool = True
    """Turn and flip the crops (8 symmetries)."""
    mixup: bool = False
    """Blend half of the batches, by chance, with a permutation of themselves."""
    small_images: Literal["pad", "error"] = "pad"
    """Pad a picture smaller than the crop right and below by symmetric reflection, or refuse it."""
    corrupt: Literal["error", "skip"] = "error"
    """Stop training at a pair that cannot be read, or take the next one, name the bad one and count
    it. Scoring always stops."""
    cache_mib: int = 2048
    """Memory for decoded pictures of training and as much of scoring, in MiB and each process; the
    rest is read again."""
    cache_dir: str = ""
    """Folder for decoded training pictures as raw ArrayRecord files, in place of memory, where a
    set does not fit; they are written once. Empty for none."""
    workers: int = 0
    """Processes that prepare batches; 0 means threads of this one."""

    def __post_init__(self) -> None:
        _check_types(self, "data.")
        _check(
            self.crop_size >= 8 and self.crop_size % 8 == 0,
            "data.crop-size",
            self.crop_size,
            "a multiple of 8, such as 128",
        )
        _check(self.global_batch >= 1, "data.global-batch", self.global_batch, "at least 1")
        self._check_progressive()
        for name, weight in self.sources:
            fits = 1e-4 <= weight <= 1e4
            _check(fits, "data.sources", (name, weight), "weights from 0.0001 to 10000")
        _check(self.rains >= 1, "data.rains", self.rains, "at least 1")
        _check(self.cache_mib >= 0, "data.cache-mib", self.cache_mib, "0 or more")
        _check(self.workers >= 0, "data.workers", self.workers, "0 or more")

    def _check_progressive(self) -> None:
        name = "data.progressive"
        starts = [start for start, _, _ in self.progressive]
        _check(
            starts == sorted(set(starts)) and starts[:1] in ([], [0]),
            name,
            self.progressive,
            "first steps that begin with 0 and rise",
        )
        for _, side, batch in self.progressive:
            _check(
                side % 8 == 0 and 8 <= side <= self.crop_size,
                name,
                f"a side of {side}",
                f"a multiple of 8, at most the crop of {self.crop_size}",
            )
            _check(batch >= 1, name, f"a global batch of {batch}", "at least 1")

    def stages(self) -> tuple[tuple[int, int, int], ...]:
        """(First step, patch side, global batch) of each stage; one of them if nothing grows."""
        return self.progressive or ((0, self.crop_size, self.global_batch),)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with clipped gradients, and the two-part learning rate of the official recipe.

    Raises:
        InputError: if a value is impossible.
    """

    learning_rate: float = 3e-4
    """Learning rate of the constant part."""
    final_learning_rate: float = 1e-6
    """Learning rate at the end of the cosine part, and after it."""
    constant_steps: int = 92_000
    """Steps at the constant learning rate."""
    cosine_steps: int = 208_000
    """Steps of the cosine part that follows."""
    b1: float = 0.9
    """Decay of the gradients' running mean."""
    b2: float = 0.999
    """Decay of the squared gradients' running mean."""
    eps: float = 1e-8
    """Added to the root of the squared gradients' mean."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, on every parameter."""
    clip_norm: float = 0.01
    """Largest L2 norm of the whole gradient."""

    def __post_init__(self) -> None:
        _check_types(self, "optim.")
        _check(
            self.learning_rate > 0, "optim.learning-rate", self.learning_rate, "a number above 0"
        )
        _check(
            self.final_learning_rate >= 0,
            "optim.final-learning-rate",
            self.final_learning_rate,
            "0 or more",
        )
        _check(self.constant_steps >= 0, "optim.constant-steps", self.constant_steps, "0 or more")
        _check(self.cosine_steps >= 1, "optim.cosine-steps", self.cosine_steps, "at least 1")
        _check(0 <= self.b1 < 1, "optim.b1", self.b1, "at least 0 and below 1")
        _check(0 <= self.b2 < 1, "optim.b2", self.b2, "at least 0 and below 1")
        _check(self.eps > 0, "optim.eps", self.eps, "a number above 0")
        _check(self.weight_decay >= 0, "optim.weight-decay", self.weight_decay, "0 or more")
        _check(self.clip_norm > 0, "optim.clip-norm", self.clip_norm, "a number above 0")


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
    """Optimiser and learning rate."""
    steps: int = 300_000
    """Optimiser steps of the whole run."""
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
        _check_types(self)
        _check(self.steps >= 1, "steps", self.steps, "at least 1")
        _check(0 <= self.seed < 2**32, "seed", self.seed, "0 or more and below 2**32")
        for name in ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
            _check(
                getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "at least 1"
            )

"""The network's architecture, and the published variants of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from drsformer_jax.config.fields import check, check_types

DType = Literal["float32", "bfloat16", "float64"]
Kernels = Literal["xla", "pallas"]

SIZE_MULTIPLE = 8
"""Height and width of what the network reads are multiples of this, in pixels: three levels of the
U-Net halve them."""


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
    """What comes before the encoder: the mixture of experts, or nothing."""
    refinement: Literal["mefc", "blocks", "none"] = "mefc"
    """What comes after the decoder: the mixture of experts, transformer blocks, or nothing."""
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
    """Recompute each block's activations in the backward pass: a fraction of the memory, and on
    CPUs a third more time. For TPUs and GPUs the compilers' own figures are about the same, since
    what is not recomputed is written to memory."""
    save_convolutions: bool = False
    """With `remat`, keep the results of depthwise convolutions: on TPUs a sixth less time by the
    compiler's schedules, for four to five times the activations' memory. GPUs and CPUs gain nothing
    by it."""
    unroll: bool = False
    """Compile every block by itself instead of one for each stage: a CPU trains networks of few
    blocks a sixth faster, and compiling takes longer."""
    kernels: Kernels = "xla"
    """`pallas` computes depthwise convolutions on TPUs and NVIDIA GPUs by custom Pallas kernels,
    where the images are not too wide for them, and on GPUs most of MSFN and of the attention, the
    gradient of layer norm and, in bfloat16, the product of MEFC's experts. They were compiled for a
    v5e, a v6e, an H100 and an A100, but have not run on such hardware yet. On others there is no
    difference."""

    def __post_init__(self) -> None:
        check_types(self, "model.")
        check(
            self.dim >= 2 and self.dim % 2 == 0,
            "model.dim",
            self.dim,
            "an even number of at least 2",
        )
        check(
            self.remat or not self.save_convolutions,
            "model.save-convolutions",
            self.save_convolutions,
            "False, or model.remat too: without it everything is kept",
        )
        check(min(self.blocks) >= 1, "model.blocks", self.blocks, "at least 1 block in each level")
        check(min(self.heads) >= 1, "model.heads", self.heads, "at least 1 head in each level")
        check(
            self.refinement_blocks >= 1,
            "model.refinement-blocks",
            self.refinement_blocks,
            "at least 1",
        )
        for level, heads in enumerate(self.heads):
            channels = self.channels(level)
            check(
                channels % heads == 0,
                "model.heads",
                self.heads,
                f"a divisor of {channels} for level {level + 1}",
            )
        check(
            self.hidden(self.dim) >= 1,
            "model.expansion",
            self.expansion,
            "at least one hidden channel",
        )
        check(
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
            check(
                0 < fraction <= 1,
                "model.topk-fractions",
                text,
                "a fraction above 0 and at most 1, such as 2/3",
            )
        if self.attention == "topk":
            smallest = min(self.channels(level) // heads for level, heads in enumerate(self.heads))
            check(
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

    @property
    def implementation(self) -> str | None:
        """Of operations that have kernels, see `ops.implementations.run`."""
        return None if self.kernels == "xla" else self.kernels

    def without_remat(self) -> ModelConfig:
        """The same for programs that have no backward pass."""
        return dataclasses.replace(self, remat=False, save_convolutions=False)

    def architecture(self) -> dict[str, Any]:
        """The fields that decide which parameters there are and what they mean."""
        runtime = {"dtype", "param_dtype", "remat", "save_convolutions", "unroll", "kernels"}
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
multiplications, and a CPU needs three times as long for a step with it.
"""

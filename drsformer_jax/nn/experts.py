"""MEFC, the mixture of experts feature compensator (DRSformer, CVPR 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import relu

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.linear import Conv1x1, DepthwiseConv
from drsformer_jax.nn.rows import AT_ONCE, MAX_HALO, Mask, Rows
from drsformer_jax.nn.stack import Stack
from drsformer_jax.ops.depthwise import average_pool
from drsformer_jax.ops.linear import joined_linear, linear
from drsformer_jax.ops.masking import zero_outside
from drsformer_jax.types import Array, Bool, Float

STEPS = 4
SEPARABLE_SIZES = (1, 3, 5, 7)
DILATED_SIZES = (3, 5, 7)
EXPERTS = len(SEPARABLE_SIZES) + len(DILATED_SIZES) + 1
GATE_WIDTH = 64


class ExpertCompensator(nnx.Module):
    """Four steps of eight gated experts: separable and dilated convolutions and a pool.

    gates = softmax(gate_out(relu(gate_in(mean(x)))))    for each step, over experts
    output = step4(step3(step2(step1(relu(preprocess(x))))))
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        self.gate_in = Conv1x1(channels, GATE_WIDTH, config, bias=True)
        self.gate_out = Conv1x1(GATE_WIDTH, STEPS * EXPERTS, config, bias=True)
        self.preprocess = Conv1x1(channels, channels, config, bias=False)
        self.steps = Stack(Step(channels, config), STEPS, config)

    def __call__(self, x: Float[Array, "b h w c"], rows: Rows = AT_ONCE) -> Float[Array, "b h w c"]:
        """Applies the steps; the gates depend on the mean of the whole image."""
        accumulator = jnp.promote_types(x.dtype, jnp.float32)

        def sums(x: Array, valid_mask: Mask, counted: Mask) -> tuple[Array, Array]:
            pixels = jnp.ones_like(x[:1, ..., :1], bool) if counted is None else counted
            total = jnp.sum(zero_outside(x, counted), axis=(1, 2), dtype=accumulator)
            return total, jnp.sum(pixels, axis=(1, 2), dtype=accumulator)

        total, pixels = rows.sum(sums, x, halo=0)
        logits = self.gate_out(relu(self.gate_in(total / pixels))).astype(accumulator)
        gates = jax.nn.softmax(logits.reshape(-1, STEPS, EXPERTS), axis=-1)
        return self.steps(relu(self.preprocess(x)), gates.swapaxes(0, 1), rows=rows)


class Step(nnx.Module):
    """One step of MEFC: x + relu(join(concat_i(gates[i] * expert_i(x)))).

    The experts are, in this order: `SEPARABLE_SIZES`, `DILATED_SIZES`, and a 3x3 average pool.

    Each convolution expert ends in a 1x1 convolution, and `join` is one, with nothing but the gate
    between. So the three are multiplied into one matrix for each image first. The official relu
    around the sum changes nothing, since both of its terms are at least 0.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        for size in SEPARABLE_SIZES:
            setattr(self, f"separable{size}", Separable(channels, size, config))
        for size in DILATED_SIZES:
            setattr(self, f"dilated{size}", Dilated(channels, size, config))
        self.implementation = config.implementation
        self.join = Conv1x1(EXPERTS * channels, channels, config, bias=False)

    def __call__(
        self, x: Float[Array, "b h w c"], gates: Float[Array, "b x"], rows: Rows
    ) -> Float[Array, "b h w c"]:
        """Applies the step to x, which is at least 0."""

        def compensated(window: Array, valid_mask: Mask) -> Array:
            return self.compensated(window, gates, valid_mask)

        return rows.map(compensated, x, MAX_HALO)  # Two 7x7 convolutions, or a dilated one.

    def compensated(
        self, x: Float[Array, "b h w c"], gates: Float[Array, "b x"], valid_mask: Mask
    ) -> Float[Array, "b h w c"]:
        """Applies the step to all rows at once."""
        channels = x.shape[-1]
        experts = [getattr(self, f"separable{size}") for size in SEPARABLE_SIZES]
        experts += [getattr(self, f"dilated{size}") for size in DILATED_SIZES]
        features = [expert(x, valid_mask) for expert in experts] + [
            average_pool(x, valid_mask=valid_mask, implementation=self.implementation)
        ]
        last = [expert.last_matrix() for expert in experts]
        last.append(jnp.eye(channels, dtype=last[0].dtype))  # The pool has no 1x1 convolution.
        join = self.join.kernel[...].reshape(EXPERTS, channels, channels)
        highest = jax.lax.Precision.HIGHEST
        folded = jnp.einsum("bx,xic,xco->bxio", gates, jnp.stack(last), join, precision=highest)
        folded = folded.reshape(-1, EXPERTS * channels, channels).astype(x.dtype)
        return x + relu(joined_linear(features, folded, self.implementation))


class Separable(nnx.Module):
    """Separable convolution: depthwise, 1x1, relu, depthwise, 1x1; `Step` applies the last one."""

    def __init__(self, channels: int, size: int, config: ModelConfig) -> None:
        self.size = size
        self.depthwise_first = DepthwiseConv(channels, size, config)
        self.pointwise_first = Conv1x1(channels, channels, config, bias=False)
        self.depthwise_last = DepthwiseConv(channels, size, config)
        self.pointwise_last = Conv1x1(channels, channels, config, bias=False)

    def __call__(
        self, x: Float[Array, "b h w c"], valid_mask: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns the input of the last 1x1 convolution."""
        if self.size == 1:  # A factor of each channel, which its neighbors take over.
            kernel = self.depthwise_first.kernel[0, 0][:, None] * self.pointwise_first.kernel[...]
            return relu(linear(x, kernel))
        # XLA for TPUs would fuse the first convolution into each tap of the second.
        y = jax.lax.optimization_barrier(self.depthwise_first(x, valid_mask))
        return self.depthwise_last(relu(self.pointwise_first(y)), valid_mask)

    def last_matrix(self) -> Float[Array, "c c"]:
        """The matrix of the last 1x1 convolution."""
        kernel = self.pointwise_last.kernel[...]
        return self.depthwise_last.kernel[0, 0][:, None] * kernel if self.size == 1 else kernel


class Dilated(nnx.Module):
    """Dilated convolution: depthwise with dilation 2, then 1x1, which `Step` applies."""

    def __init__(self, channels: int, size: int, config: ModelConfig) -> None:
        self.depthwise = DepthwiseConv(channels, size, config, dilation=2)
        self.pointwise_last = Conv1x1(channels, channels, config, bias=False)

    def __call__(
        self, x: Float[Array, "b h w c"], valid_mask: Bool[Array, "b h w 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns the input of the 1x1 convolution."""
        return self.depthwise(x, valid_mask)

    def last_matrix(self) -> Float[Array, "c c"]:
        """The matrix of the 1x1 convolution."""
        return self.pointwise_last.kernel[...]

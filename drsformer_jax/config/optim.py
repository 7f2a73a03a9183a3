"""The optimizer and its learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from drsformer_jax.config.fields import check, check_types


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with gradient clipping; the learning rate is constant, then decays by a cosine.

    The defaults are the official recipe. With 0 constant steps the decay begins at once.

    Raises:
        InputError: if a value is impossible.
    """

    learning_rate: float = 3e-4
    """Learning rate of the constant steps."""
    final_learning_rate: float = 1e-6
    """Learning rate at the end of the cosine decay, and after it."""
    constant_steps: int = 92_000
    """Steps at the constant learning rate."""
    cosine_steps: int = 208_000
    """Steps of the cosine decay that follows."""
    warmup_steps: int = 0
    """Steps of a linear warmup, the first of those above."""
    b1: float = 0.9
    """Decay of Adam's first moment."""
    b2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, on every parameter."""
    clip_norm: float = 0.01
    """Largest global L2 norm of the gradient."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average (EMA) of the parameters, such as 0.999, which is then
    evaluated and used to restore images; 0 for none."""
    nonfinite_steps: int = 0
    """Steps with a loss or gradient that is not finite that may be skipped in the whole run; one
    more stops it."""

    def __post_init__(self) -> None:
        check_types(self, "optim.")
        check(self.learning_rate > 0, "optim.learning-rate", self.learning_rate, "a number above 0")
        check(
            self.final_learning_rate >= 0,
            "optim.final-learning-rate",
            self.final_learning_rate,
            "0 or more",
        )
        check(self.constant_steps >= 0, "optim.constant-steps", self.constant_steps, "0 or more")
        check(self.cosine_steps >= 1, "optim.cosine-steps", self.cosine_steps, "at least 1")
        check(self.warmup_steps >= 0, "optim.warmup-steps", self.warmup_steps, "0 or more")
        check(0 <= self.b1 < 1, "optim.b1", self.b1, "at least 0 and below 1")
        check(0 <= self.b2 < 1, "optim.b2", self.b2, "at least 0 and below 1")
        check(self.eps > 0, "optim.eps", self.eps, "a number above 0")
        check(self.weight_decay >= 0, "optim.weight-decay", self.weight_decay, "0 or more")
        check(self.clip_norm > 0, "optim.clip-norm", self.clip_norm, "a number above 0")
        check(0 <= self.ema_decay < 1, "optim.ema-decay", self.ema_decay, "at least 0 and below 1")
        check(self.nonfinite_steps >= 0, "optim.nonfinite-steps", self.nonfinite_steps, "0 or more")

"""The network's modules, one mechanism a file."""

from drsformer_jax.nn.drsformer import DRSformer

__all__ = ["DRSformer"]

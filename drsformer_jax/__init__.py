"""DRSformer, the sparse Transformer that removes rain from photographs, in JAX and Flax.

Source: "Learning A Sparse Transformer Network for Effective Image Deraining", CVPR 2023.
In three lines:

    import drsformer_jax

    restorer = drsformer_jax.load()  # Or a path of weights.
    clean = restorer(rainy)  # uint8 (h, w, 3), RGB, of any size

Importing the package loads none of its parts; they are

- `drsformer_jax.config`: every setting, and the published variants of the network;
- `drsformer_jax.nn`: the network;
- `drsformer_jax.weights`: networks on disk in every form, official PyTorch ones too;
- `drsformer_jax.metrics`: PSNR and SSIM in the protocols of published results;
- `drsformer_jax.restoring`: a rainy image in, the image without rain out;
- `drsformer_jax.data`, `training`, `scoring`, `report`: the parts of train.py and eval.py;
- `drsformer_jax.exporting`: the network in one file that runs without this package;
- `drsformer_jax.planning`: what a run needs on TPUs and GPUs, without having them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drsformer_jax.restoring import Restorer

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str] | None = None, step: int | None = None, **options: Any
) -> Restorer:
    """Reads a network and returns what restores images with it; see `restoring.Restorer.load`.

    Args:
        path: a training run, a model folder, or a `.pth` or `.safetensors` file of PyTorch;
            default: the built-in network.
        step: checkpoint of a training run; default: the best one.
        **options: `dtype`, `kernels`, `tile` and `overlap` of `Restorer.load`.

    Raises:
        InputError: if there is no network, or not that step of it.
    """
    from drsformer_jax.restoring import Restorer

    return Restorer.load(path, step, **options)

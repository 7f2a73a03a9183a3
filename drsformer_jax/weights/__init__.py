"""Networks on disk in every form: runs, model folders, official `.pth` and `.safetensors` files.

`load` reads whatever holds a network, `save` writes a folder that needs nothing else, and
`from_torch` and `to_torch` translate between our parameters and the official programs' keys.
"""

from drsformer_jax.weights.convert import (
    describe,
    from_torch,
    params_from_torch,
    params_to_torch,
    to_torch,
)
from drsformer_jax.weights.store import load, run_of, save, stored_as

__all__ = [
    "describe",
    "from_torch",
    "load",
    "params_from_torch",
    "params_to_torch",
    "run_of",
    "save",
    "stored_as",
    "to_torch",
]

"""Networks on disk in every form: runs, model folders, official `.pth` and `.safetensors` files.

`load` reads whatever holds a network, the built-in one too; `save` writes a folder that needs
nothing else. `from_torch` and `to_torch` translate between our parameters and the official
programs' keys.
"""

from drsformer_jax.weights.convert import (
    describe,
    from_torch,
    params_from_torch,
    params_to_torch,
    to_torch,
)
from drsformer_jax.weights.store import BUILTIN, is_builtin, load, run_of, save, stored_as

__all__ = [
    "BUILTIN",
    "describe",
    "from_torch",
    "is_builtin",
    "load",
    "params_from_torch",
    "params_to_torch",
    "run_of",
    "save",
    "stored_as",
    "to_torch",
]

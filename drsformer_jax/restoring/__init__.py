"""An image in, the image without rain out: any size, within the memory that is there.

`Restorer` restores arrays: it plans buckets of sizes, and takes an image whole, in strips of rows,
over several devices, or in tiles. `files` does so for many files.
"""

from drsformer_jax.restoring.restorer import Restorer

__all__ = ["Restorer"]

"""An image in, the image without rain out: any size, within the memory that there is.

`Restorer` restores arrays. It plans buckets of sizes, and computes an image at once, with its rows
shared by several devices, in strips, or in tiles. `jobs` and `files` do so for many files.

*Strips* are chunks of an image's rows that are computed one after another, each with a halo: the
neighboring rows that its result depends on. The result is that of the whole image. *Tiles* see
nothing of their neighbors and are an approximation.
"""

from drsformer_jax.restoring.restorer import Restorer

__all__ = ["Restorer"]

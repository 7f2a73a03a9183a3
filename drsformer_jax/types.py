"""Array annotations, and the letters that name their axes everywhere in the package.

b  images of a batch          c  channels of a level      m  attention heads
h  rows of an image            f  hidden channels          d  channels of a head (query)
w  columns of an image         k  side of a kernel         e  channels of a head (key)
s  steps of the mixture         x  experts of the mixture   p  pixels, h * w
                                o  channels that come out of a linear map
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from jax import Array

__all__ = ["Array", "Bool", "Float", "Int"]

if TYPE_CHECKING or find_spec("jaxtyping"):
    from jaxtyping import Bool, Float, Int
else:
    # The network runs where jax and flax alone are installed; there the shapes are comments.
    class Float:
        """Stands in for `jaxtyping.Float`, `Bool` and `Int`."""

        def __class_getitem__(cls, item: object) -> type[Array]:
            """Returns the array type, whatever the shape."""
            return Array

    Bool = Int = Float

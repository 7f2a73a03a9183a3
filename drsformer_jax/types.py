"""Array annotations, and the letters that name axes in shapes throughout the package.

Images are channels-last: `Float[Array, "b h w c"]` is a batch of b feature maps of h x w pixels
with c channels. In a shape `...` or `*b` stands for any leading axes, `_` for an axis without a
name, and a number for itself.

b  images of a batch        m  attention heads               k  side of a convolution's kernel
h  height, in pixels        d  query channels of a head      f  hidden channels, of one half in MSFN
w  width, in pixels         e  key channels of a head        x  experts of the mixture (MEFC)
p  pixels, h * w            o  output channels of a layer    s  steps of the mixture
c  channels                 n  branches of the sparse attention
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jax import Array

__all__ = ["Array", "Bool", "Dimension", "Float", "Int"]

Dimension = int | Any
"""Length of an axis: an int, or what stands for it in programs for any size (`jax.export`)."""

if TYPE_CHECKING or find_spec("jaxtyping"):
    from jaxtyping import Bool, Float, Int
else:
    # The network needs jax and flax alone; without jaxtyping the shapes are mere comments.
    class Float:
        """Stands in for `jaxtyping.Float`, `Bool` and `Int`."""

        def __class_getitem__(cls, item: object) -> type[Array]:
            """Returns the array type, whatever the shape."""
            return Array

    Bool = Int = Float

"""Image and video files: pixels, and what of a file must survive.

Inside the package an image is uint8 RGB of shape (h, w, 3). Files are recognized by their content,
whatever their name; writing happens in one step; what is wrong becomes one line.
"""

from drsformer_jax.images.image import LoadedImage, load_image, save_image
from drsformer_jax.images.pixels import (
    EXTENSIONS,
    WRITABLE_EXTENSIONS,
    decode_image,
    encode_image,
    image_size,
    read_image,
    write_image,
)
from drsformer_jax.images.video import restore_video

__all__ = [
    "EXTENSIONS",
    "WRITABLE_EXTENSIONS",
    "LoadedImage",
    "decode_image",
    "encode_image",
    "image_size",
    "load_image",
    "read_image",
    "restore_video",
    "save_image",
    "write_image",
]

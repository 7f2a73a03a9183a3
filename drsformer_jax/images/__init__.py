"""Image and video files: pixels, and what of a file must survive.

Inside the package an image is uint8 RGB of shape (h, w, 3). Reading goes by content, whatever a
file is called; writing happens in one step; what is wrong becomes one line.
"""

from drsformer_jax.images.photo import Photo, read_photo, write_photo
from drsformer_jax.images.pixels import image_size, read_image, write_image
from drsformer_jax.images.video import restore_video

__all__ = [
    "Photo",
    "image_size",
    "read_image",
    "read_photo",
    "restore_video",
    "write_image",
    "write_photo",
]

"""What a damaged image does to others: nothing."""

from __future__ import annotations

import io
import struct

import pytest
from image_files import noise, saved
from PIL import Image

from drsformer_jax.errors import InputError
from drsformer_jax.images import pixels as images
from drsformer_jax.images.png import read_png


def test_letters_of_a_damaged_file_in_a_message_spoil_no_later_image(tmp_path):
    """libvips quotes them as they are, and pyvips once failed at them in all later calls."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(noise((24, 32, 3)), "AVIF", exif=exif)
    assert b"irot" in content
    (tmp_path / "a.avif").write_bytes(content.replace(b"irot", b"i\xe9ot"))
    for read in (images.image_size, images.read_image):
        with pytest.raises(InputError, match=r"a\.avif is no image that can be read"):
            read(tmp_path / "a.avif")
        for extension in (".png", ".jpg", ".webp", ".tif"):
            assert images.encode_image(noise((24, 32, 3)), extension)


def test_lengths_that_a_png_file_cannot_have_take_no_memory(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 2**32 - 20, b"tEXt") + b"rain")
    asked = []

    class File(io.FileIO):
        def read(self, count):
            asked.append(count)
            return super().read(count)

    with File(path) as file:
        read_png(file)
    assert max(asked) <= path.stat().st_size

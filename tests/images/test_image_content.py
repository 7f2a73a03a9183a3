"""Images as the bytes of their files, without a file."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import encoded, noise

from drsformer_jax.errors import InputError
from drsformer_jax.images import pixels as images


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_content_is_decoded_as_its_file_is(tmp_path, extension):
    content = encoded(noise((20, 31, 3)), extension)
    (tmp_path / "a").write_bytes(content)
    pixels = images.decode_image(content, "a")
    np.testing.assert_array_equal(pixels, images.read_image(tmp_path / "a"), strict=True)
    assert pixels.flags.writeable
    assert images.content_size(content, "a") == images.image_size(tmp_path / "a") == (20, 31)


@pytest.mark.parametrize("call", [images.decode_image, images.content_size])
def test_content_that_is_no_image_is_named(call):
    line = (
        r"^17\.png of rain200 is no image that can be read \(its content is of another format\); "
        r"expected PNG, JPEG, WebP, BMP, TIFF, AVIF or GIF$"
    )
    with pytest.raises(InputError, match=line):
        call(b"notes, not an image", "17.png of rain200")


@pytest.mark.parametrize("extension", images.WRITABLE_EXTENSIONS)
def test_what_is_encoded_is_what_is_written(tmp_path, extension):
    images.write_image(tmp_path / f"a{extension}", noise((20, 30, 3)))
    content = images.encode_image(noise((20, 30, 3)), extension)
    assert content == (tmp_path / f"a{extension}").read_bytes()
    assert isinstance(content, bytes)


def test_an_unknown_extension_is_not_encoded():
    with pytest.raises(InputError, match=r"has the extension '\.gif'; expected one of \.png"):
        images.encode_image(noise((2, 2, 3)), ".gif")

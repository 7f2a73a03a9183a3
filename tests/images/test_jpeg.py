"""What JPEG files hold beside their image is reported where it is dropped."""

from __future__ import annotations

import io
import struct

import pytest
from image_files import encoded, noise
from PIL import Image

from drsformer_jax.images.image import load_image, save_image

BESIDE = "images beside the main one, such as an HDR gain map, are dropped"
BEHIND = "data behind the image, such as the video of a motion photo, is dropped"
VIDEO = b"\0\0\0\x18ftypmp42" + bytes(20)
PLAIN = encoded(noise((20, 30, 3)), ".jpg")
EXTENDED = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">2L", 5, 0) + b"<rdf>"


def with_segments(*segments: tuple[bytes, bytes], fill: bytes = b"") -> bytes:
    parts = [
        fill + b"\xff" + marker + struct.pack(">H", 2 + len(data)) + data
        for marker, data in segments
    ]
    return PLAIN[:20] + b"".join(parts) + PLAIN[20:]


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        (PLAIN, []),
        (with_segments((b"\xfe", b"rain")), ["the JPEG comment is dropped"]),
        (with_segments((b"\xe2", b"MPF\0more")), [BESIDE]),
        (
            with_segments((b"\xfe", b"rain"), (b"\xe2", b"MPF\0more"), fill=b"\xff\xff"),
            ["the JPEG comment is dropped", BESIDE],
        ),
        (with_segments((b"\xe1", EXTENDED), (b"\xe1", EXTENDED)), ["extended XMP is dropped"]),
        (
            with_segments((b"\xeb", b"JP\0\1\0\0\0\1jumb")),
            ["JUMBF, such as Content Credentials (C2PA), is dropped"],
        ),
        (PLAIN + VIDEO, [BEHIND]),
        (PLAIN + PLAIN, [BESIDE]),
        (PLAIN + bytes(9) + PLAIN + bytes(9) + VIDEO, [BESIDE, BEHIND]),
        (PLAIN + bytes(100), []),
        (PLAIN + b"\r\n", []),
    ],
    ids=range(11),
)
def test_what_else_a_jpeg_file_holds_is_reported(tmp_path, content, lost):
    (tmp_path / "a.jpg").write_bytes(content)
    loaded = load_image(tmp_path / "a.jpg")
    assert list(loaded.lost) == lost
    assert save_image(tmp_path / "b.png", loaded)[-len(lost) :] == lost
    save_image(tmp_path / "b.jpg", loaded)
    assert load_image(tmp_path / "b.jpg").lost == ()


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}])
def test_the_end_of_an_image_is_found_behind_all_its_pixels(tmp_path, options):
    stream = io.BytesIO()
    Image.fromarray(noise((40, 50, 3))).save(stream, "JPEG", **options)
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    assert load_image(tmp_path / "a.jpg").lost == ()
    (tmp_path / "a.jpg").write_bytes(stream.getvalue() + VIDEO)
    assert load_image(tmp_path / "a.jpg").lost == (BEHIND,)

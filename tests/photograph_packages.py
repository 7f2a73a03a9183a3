"""Photographs and containers of a made-up package, and a list of them."""

import csv
import hashlib
import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
from gather_photographs import LIST, Photograph, read_list
from PIL import Image


def photograph(h, w, seed):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def encoded(pixels, kind="PNG", **options):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def resources(files, version=3):
    """A Qt resource file of {path: (flags, stored bytes)}."""
    tree, names, data = [], b"", b""
    folders = {"": {}}
    for path, entry in files.items():
        *parents, name = path.split("/")
        here = folders[""]
        for parent in parents:
            here = here.setdefault(parent, {})
        here[name] = entry
    waiting, count = [(0, folders[""])], 1
    while waiting:
        at, entry = waiting.pop(0)
        if isinstance(entry, dict):
            tree.append(struct.pack(">IHII", at, 2, len(entry), count))
            count += len(entry)
            for name, inside in entry.items():
                waiting.append((len(names), inside))
                names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        else:
            tree.append(struct.pack(">IHHHI", at, entry[0], 0, 1, len(data)))
            data += struct.pack(">I", len(entry[1])) + entry[1]
    head = 20 if version < 3 else 24
    tree = b"".join(node + (b"" if version == 1 else bytes(8)) for node in tree)
    places = head, head + len(tree) + len(names), head + len(tree)
    start = struct.pack(">4s4I", b"qres", version, *places) + bytes(head - 20)
    return start + tree + names + data


PLAIN, ZLIB, ZSTD = (encoded(photograph(16, 24, seed)) for seed in (1, 2, 3))
MEMBERS = {"a/plain.png": PLAIN, "a/b/zlib.png": ZLIB, "a/b/zstd.png": ZSTD}
RESOURCES = {
    "a/plain.png": (0, PLAIN),
    "a/b/zlib.png": (1, struct.pack(">I", len(ZLIB)) + zlib.compress(ZLIB)),
    "a/b/zstd.png": (4, imagecodecs.zstd_encode(ZSTD)),
}
SMALL, LARGE = (encoded(photograph(h, 32, h), "JPEG", restart_marker_blocks=1) for h in (8, 32))
ORDINARY = encoded(photograph(30, 41, 4), "WEBP", lossless=True)
IN_WHEEL = encoded(photograph(10, 12, 5))


def row(name, content, container, member="", **others):
    values = {
        "name": name,
        "split": "train",
        "scene": "",
        "kind": "deb",
        "package": "made-up",
        "version": "2:1.0-1",
        "container": container,
        "member": member,
        "downscale": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "author": "Somebody",
        "license": "CC-BY-4.0",
        "source": "https://example.org/a_(b)",
    }
    return Photograph(**values | others)


ROWS = [
    *(row(Path(path).stem, content, "usr/all.rcc", path) for path, content in MEMBERS.items()),
    row("two", LARGE, "usr/two.edj"),
    row("ordinary", ORDINARY, "usr/ordinary.webp", downscale=2, split="validation"),
    row("wheel", IN_WHEEL, "some/wheel.png", kind="wheel", package="some-wheel", version="1.5"),
    next(one for one in read_list(LIST) if one.name == "skimage-chelsea"),
]


def write_list(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([Photograph._fields, *rows])

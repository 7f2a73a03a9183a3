"""Photographs in Qt resource files and Edje files, damaged ones too."""

import random
import struct

import pytest
from containers import QtResources, largest_jpeg
from photograph_packages import LARGE, MEMBERS, RESOURCES, SMALL, resources

from drsformer_jax.errors import InputError


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_of_qt_resources_are_read_in_every_version(version):
    opened = QtResources(resources(RESOURCES, version), "some.rcc")
    assert {path: opened.read(path) for path in MEMBERS} == MEMBERS


def test_any_damage_to_qt_resources_is_reported_in_one_line():
    content = resources(RESOURCES)
    chance = random.Random(0)
    for number in range(1500):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            # Mostly in the tree and the names.
            damaged[chance.randrange(250 if number % 3 else len(content))] = chance.randrange(256)
        if number % 2:
            del damaged[chance.randrange(len(content)) :]
        for member in MEMBERS:
            try:
                QtResources(bytes(damaged), "some.rcc").read(member)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_tree_that_is_a_loop_is_rejected():
    head = struct.pack(">4s5I", b"qres", 3, 24, 68, 68, 0)
    content = head + struct.pack(">IHIIQ", 0, 2, 1, 0, 0) * 2
    with pytest.raises(InputError, match=r"some is damaged .its tree has a node twice.; expected"):
        QtResources(content, "some")


def test_largest_whole_jpeg_stream_is_found():
    assert largest_jpeg(b"\xff\xd8\xff" + LARGE + SMALL + LARGE[:-2], "some") == LARGE
    with pytest.raises(InputError, match="some holds no whole JPEG stream; expected one"):
        largest_jpeg(LARGE[:-2], "some")

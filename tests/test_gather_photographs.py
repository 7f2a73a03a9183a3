"""tools/gather_photographs.py on a made-up Debian package and wheel, and the committed list."""

import csv
import hashlib
import importlib.metadata
import io
import random
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from gather_photographs import (
    LICENCES,
    LIST,
    Photograph,
    QtResources,
    credits_text,
    gather,
    largest_jpeg,
    read_list,
)
from PIL import Image

from drsformer_jax.data.images import read_picture
from drsformer_jax.errors import InputError

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT.parent / "shared" / "data"


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


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of one Debian package and one wheel."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    folder = tmp_path_factory.mktemp("packages")
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: made-up\nVersion: 2:1.0-1\nArchitecture: all\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: made up\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr/all.rcc").write_bytes(resources(RESOURCES))
    (tree / "usr/damaged.rcc").write_bytes(resources(RESOURCES)[:60])
    (tree / "usr/two.edj").write_bytes(b"head" + SMALL + b"between" + LARGE + b"tail")
    (tree / "usr/ordinary.webp").write_bytes(ORDINARY)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, folder / "made-up_1_all.deb"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with zipfile.ZipFile(folder / "some_wheel-1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some/wheel.png", IN_WHEEL)
    return folder


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
        "licence": "CC-BY-4.0",
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


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_gathers(packages, tmp_path):
    assert gather(ROWS, tmp_path, packages) == []
    assert names(tmp_path) == {"train", "validation", "CREDITS.md"}
    assert names(tmp_path / "train") == {
        "plain.png",
        "zlib.png",
        "zstd.png",
        "two.png",
        "wheel.png",
    }
    for seed, name in enumerate(("plain", "zlib", "zstd"), 1):
        found = read_picture(tmp_path / f"train/{name}.png")
        np.testing.assert_array_equal(found, photograph(16, 24, seed))
    assert read_picture(tmp_path / "train/two.png").shape == (32, 32, 3)

    halved = read_picture(tmp_path / "validation/ordinary.png")
    blocks = photograph(30, 41, 4)[:, :40].reshape(15, 2, 20, 2, 3).astype(int)
    assert halved.shape == (15, 21, 3)
    np.testing.assert_array_equal(halved[:, :20], (blocks.sum((1, 3)) + 2) // 4)

    site = Path(importlib.metadata.distribution("scikit-image").locate_file(""))
    chelsea = read_picture(site / "skimage/data/chelsea.png")
    found = read_picture(tmp_path / "validation/skimage-chelsea.png")
    np.testing.assert_array_equal(found, chelsea)


def test_keeps_what_is_right(packages, tmp_path, capsys):
    gather(ROWS, tmp_path, packages)
    files = sorted(tmp_path.rglob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in files}
    capsys.readouterr()
    assert gather(ROWS, tmp_path, packages) == []
    assert "7 photographs: 0 written, 7 were there already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in files}

    files[0].write_bytes(b"spoilt")
    assert gather(ROWS, tmp_path, packages) == []
    assert "1 written, 6 were there already" in capsys.readouterr().out


def test_another_version_is_a_note(packages, tmp_path, capsys):
    assert gather([one._replace(version="3") for one in ROWS[:5]], tmp_path, packages) == []
    output = capsys.readouterr().out
    assert "made-up 2:1.0-1\nnote: the list was made with version 3 of it" in output


def test_program_tells_what_is_wrong_and_goes_on(packages, tmp_path):
    right, wrong = ROWS[0], ROWS[3]._replace(sha256="0" * 64)
    write_list(tmp_path / "list.csv", [wrong, right])
    program = [sys.executable, ROOT / "tools/gather_photographs.py"]
    arguments = [tmp_path / "out", "--list", tmp_path / "list.csv", "--packages", packages]
    ran = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert ran.returncode == 1
    found = hashlib.sha256(LARGE).hexdigest()
    assert ran.stderr.splitlines() == [
        f"error: made-up: usr/two.edj has the SHA-256 {found}; expected {'0' * 64} (lost: two)",
        "error: errors told above: 1; expected none",
    ]
    assert names(tmp_path / "out/train") == {"plain.png"}


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (
            row("x", PLAIN, "usr/all.rcc", "a/none.png"),
            "made-up: usr/all.rcc has no a/none.png among its 3 files; expected it (lost: x)",
        ),
        (row("x", PLAIN, "usr/none.png"), "made-up: usr/none.png cannot be read (No such file"),
        (row("x", PLAIN, "usr/damaged.rcc", "a/plain.png"), "made-up: usr/damaged.rcc is damaged"),
        (row("x", PLAIN, "a", package="other"), "has 0 files other_*.deb; expected one (lost: x)"),
        (
            row("x", PLAIN, "a", kind="wheel", package="other"),
            "has 0 files other-*.whl; expected one (lost: x)",
        ),
        (
            row("x", PLAIN, "a", kind="installed", package="no-such-thing"),
            "no-such-thing is not installed; expected it (lost: x)",
        ),
    ],
)
def test_missing_and_damaged(packages, tmp_path, lost, told):
    (line,) = gather([lost, ROWS[0]], tmp_path, packages)
    assert told in line
    assert "\n" not in line
    assert names(tmp_path / "train") == {"plain.png"}


def test_damaged_container_is_one_line(packages, tmp_path):
    lost = [row(name, PLAIN, "usr/damaged.rcc", f"a/{name}.png") for name in ("x", "y")]
    (line,) = gather(lost, tmp_path, packages)
    assert line.endswith("(lost: x, y)")


def test_packages_and_images_that_are_none(packages, tmp_path):
    (tmp_path / "bad_1_all.deb").write_bytes(b"nothing")
    (tmp_path / "bad-1-none.whl").write_bytes(b"nothing")
    (tmp_path / "good_1_all.deb").symlink_to(packages / "made-up_1_all.deb")
    content = (packages / "tree/usr/damaged.rcc").read_bytes()
    rows = [
        row("x", content, "a", package="bad"),
        row("y", content, "usr/none", package="good"),
        row("z", content, "a", kind="wheel", package="bad"),
    ]
    lines = gather(rows, tmp_path / "out", tmp_path)
    assert [line[-9:] for line in lines] == ["(lost: x)", "(lost: y)", "(lost: z)"]
    assert lines[0].startswith(f"dpkg -x {tmp_path}/bad_1_all.deb unpacked failed (dpkg-deb: error")
    assert lines[2].startswith(f"{tmp_path}/bad-1-none.whl is damaged (File is not a zip file)")


def test_file_that_is_no_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "some-1-none.whl", "w") as wheel:
        wheel.writestr("some.png", b"text")
    (line,) = gather(
        [row("x", b"text", "some.png", kind="wheel", package="some")], tmp_path, tmp_path
    )
    assert line.startswith("x is no picture that can be read")


def test_machine_without_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = gather(ROWS[:1], tmp_path / "out")
    assert line == "apt-get is not installed; expected a Debian machine (lost: plain)"


def test_file_that_is_not_of_the_list(packages, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.png").write_bytes(PLAIN)
    (line,) = gather(ROWS[:1], tmp_path, packages)
    assert line == f"{tmp_path}/train/mine.png is not of the list, or lost; expected no such file"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_qt_resources(version):
    opened = QtResources(resources(RESOURCES, version), "some.rcc")
    assert {path: opened.read(path) for path in MEMBERS} == MEMBERS


def test_any_damage_to_qt_resources_is_told_in_one_line():
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


def test_tree_that_is_a_loop():
    head = struct.pack(">4s5I", b"qres", 3, 24, 68, 68, 0)
    content = head + struct.pack(">IHIIQ", 0, 2, 1, 0, 0) * 2
    with pytest.raises(InputError, match=r"some is damaged .its tree has a node twice.; expected"):
        QtResources(content, "some")


def test_jpeg_streams():
    assert largest_jpeg(b"\xff\xd8\xff" + LARGE + SMALL + LARGE[:-2], "some") == LARGE
    with pytest.raises(InputError, match="some holds no whole JPEG stream; expected one"):
        largest_jpeg(LARGE[:-2], "some")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"licence": "CC-BY-SA-4.0"}, "row 2: licence is 'CC-BY-SA-4.0'; expected public"),
        ({"name": "../x"}, "row 2: name is '../x'; expected"),
        ({"downscale": 3}, "row 2: downscale is '3'; expected 1|2"),
        ({"sha256": "0" * 63}, "row 2: sha256 is"),
        ({"name": ROWS[1].name}, "has zlib twice; expected names that differ"),
    ],
)
def test_wrong_list(tmp_path, change, told):
    write_list(tmp_path / "list.csv", [ROWS[0]._replace(**change), ROWS[1]])
    with pytest.raises(InputError) as error:
        read_list(tmp_path / "list.csv")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has the columns ; expected name,"),
        (b"a,b\n", "has the columns a,b; expected name,"),
        (b"\xff\xfe", "is damaged"),
        (",".join(Photograph._fields).encode() + b"\nx\n", "row 2, has 1 values; expected 13"),
    ],
)
def test_file_that_is_no_list(tmp_path, content, told):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_list(tmp_path / "list.csv")
    assert told in str(error.value)


def test_credits(tmp_path):
    rows = [ROWS[0]._replace(author="A|B"), ROWS[4]._replace(licence="public domain", source="it")]
    lines = credits_text(rows).splitlines()
    assert lines[-2:] == [
        "| plain | A\\|B | [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/) | "
        "<https://example.org/a_(b)> | made-up 2:1.0-1 (Debian) | train | none |",
        "| ordinary | Somebody | public domain | it | made-up 2:1.0-1 (Debian) | validation "
        "| halved |",
    ]
    program = [sys.executable, ROOT / "tools/gather_photographs.py"]
    subprocess.run([*program, "--credits", tmp_path / "CREDITS.md"], check=True)
    text = (tmp_path / "CREDITS.md").read_text(encoding="utf-8")
    assert text == f"# Credits of the photographs\n\n{credits_text(read_list(LIST))}"
    assert len(list(tmp_path.iterdir())) == 1


class TestList:
    photographs = read_list(LIST)

    def test_originals_are_told_apart(self):
        assert len({one.sha256 for one in self.photographs}) == len(self.photographs)
        places = {(one.package, one.container, one.member) for one in self.photographs}
        assert len(places) == len(self.photographs)
        assert all((one.member != "") == (one.container[-4:] == ".rcc") for one in self.photographs)

    def test_paths_stay_inside_their_package(self):
        for one in self.photographs:
            assert not Path(one.container).is_absolute()
            assert ".." not in Path(one.container).parts

    def test_licences(self):
        assert not any("SA" in licence or "NC" in licence for licence in LICENCES)
        for one in self.photographs:
            assert one.licence in LICENCES
            assert one.author
            assert one.source
            assert "ShareAlike" not in " ".join(map(str, one))

    def test_splits_share_no_scene(self):
        scenes = {}
        for one in self.photographs:
            if one.scene:
                scenes.setdefault(one.scene, []).append(one.split)
        assert all(len(splits) > 1 and len(set(splits)) == 1 for splits in scenes.values())
        assert sum(one.split == "validation" for one in self.photographs) == 16

    def test_no_benchmark_is_named(self):
        for one in self.photographs:
            words = " ".join(map(str, one)).lower()
            assert not any(name in words for name in ("rain100", "rain200", "bsd500", "bsds"))

    def test_no_file_of_a_benchmark_is_in_the_list(self):
        folders = [BENCHMARKS / name for name in ("Rain100L", "Rain200L", "Rain200H")]
        files = [path for folder in folders for path in folder.rglob("*.*") if path.is_file()]
        if not files:
            pytest.skip("needs ../shared/data")
        found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        assert not found & {one.sha256 for one in self.photographs}

"""tools/gather_photographs.py on a made-up Debian package and wheel."""

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gather_photographs import gather
from photograph_packages import (
    IN_WHEEL,
    LARGE,
    ORDINARY,
    PLAIN,
    RESOURCES,
    ROWS,
    SMALL,
    photograph,
    resources,
    row,
    write_list,
)

from drsformer_jax.images.pixels import read_image

ROOT = Path(__file__).parents[2]


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


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_photographs_of_every_kind_of_package_are_gathered_and_credited(packages, tmp_path):
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
        found = read_image(tmp_path / f"train/{name}.png")
        np.testing.assert_array_equal(found, photograph(16, 24, seed))
    assert read_image(tmp_path / "train/two.png").shape == (32, 32, 3)

    halved = read_image(tmp_path / "validation/ordinary.png")
    blocks = photograph(30, 41, 4)[:, :40].reshape(15, 2, 20, 2, 3).astype(int)
    assert halved.shape == (15, 21, 3)
    np.testing.assert_array_equal(halved[:, :20], (blocks.sum((1, 3)) + 2) // 4)

    site = Path(importlib.metadata.distribution("scikit-image").locate_file(""))
    chelsea = read_image(site / "skimage/data/chelsea.png")
    found = read_image(tmp_path / "validation/skimage-chelsea.png")
    np.testing.assert_array_equal(found, chelsea)


def test_right_files_are_kept(packages, tmp_path, capsys):
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
        "error: errors reported above: 1; expected none",
    ]
    assert names(tmp_path / "out/train") == {"plain.png"}


@pytest.mark.parametrize(
    ("lost", "message"),
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
def test_missing_and_damaged_packages_are_reported_by_what_is_lost(
    packages, tmp_path, lost, message
):
    (line,) = gather([lost, ROWS[0]], tmp_path, packages)
    assert message in line
    assert "\n" not in line
    assert names(tmp_path / "train") == {"plain.png"}


def test_damaged_container_is_one_line(packages, tmp_path):
    lost = [row(name, PLAIN, "usr/damaged.rcc", f"a/{name}.png") for name in ("x", "y")]
    (line,) = gather(lost, tmp_path, packages)
    assert line.endswith("(lost: x, y)")


def test_packages_and_images_that_are_none_are_reported_in_one_line(packages, tmp_path):
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


def test_file_that_is_no_image_is_reported_in_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "some-1-none.whl", "w") as wheel:
        wheel.writestr("some.png", b"text")
    (line,) = gather(
        [row("x", b"text", "some.png", kind="wheel", package="some")], tmp_path, tmp_path
    )
    assert line.startswith("x is no image that can be read")


def test_machine_without_apt_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = gather(ROWS[:1], tmp_path / "out")
    assert line == "apt-get is not installed; expected a Debian machine (lost: plain)"


def test_file_that_is_not_of_the_list_is_reported(packages, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.png").write_bytes(PLAIN)
    (line,) = gather(ROWS[:1], tmp_path, packages)
    assert line == f"{tmp_path}/train/mine.png is not of the list, or lost; expected no such file"

"""The list of photographs: what is wrong with one, and that the committed one is right."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from gather_photographs import LICENSES, LIST, Photograph, credits_text, read_list
from photograph_packages import ROWS, write_list

from drsformer_jax.errors import InputError

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT.parent / "shared" / "data"
PHOTOGRAPHS = read_list(LIST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": "CC-BY-SA-4.0"}, "row 2: license is 'CC-BY-SA-4.0'; expected public"),
        ({"name": "../x"}, "row 2: name is '../x'; expected"),
        ({"downscale": 3}, "row 2: downscale is '3'; expected 1|2"),
        ({"sha256": "0" * 63}, "row 2: sha256 is"),
        ({"name": ROWS[1].name}, "has zlib twice; expected names that differ"),
    ],
)
def test_wrong_list_is_reported_in_one_line(tmp_path, change, message):
    write_list(tmp_path / "list.csv", [ROWS[0]._replace(**change), ROWS[1]])
    with pytest.raises(InputError) as error:
        read_list(tmp_path / "list.csv")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has the columns ; expected name,"),
        (b"a,b\n", "has the columns a,b; expected name,"),
        (b"\xff\xfe", "is damaged"),
        (",".join(Photograph._fields).encode() + b"\nx\n", "row 2, has 1 values; expected 13"),
    ],
)
def test_file_that_is_no_list_is_reported_in_one_line(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_list(tmp_path / "list.csv")
    assert message in str(error.value)


def test_credits_have_a_row_for_each_photograph(tmp_path):
    rows = [ROWS[0]._replace(author="A|B"), ROWS[4]._replace(license="public domain", source="it")]
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


def test_originals_are_reported_apart():
    assert len({one.sha256 for one in PHOTOGRAPHS}) == len(PHOTOGRAPHS)
    places = {(one.package, one.container, one.member) for one in PHOTOGRAPHS}
    assert len(places) == len(PHOTOGRAPHS)
    assert all((one.member != "") == (one.container[-4:] == ".rcc") for one in PHOTOGRAPHS)


def test_paths_stay_inside_their_package():
    for one in PHOTOGRAPHS:
        assert not Path(one.container).is_absolute()
        assert ".." not in Path(one.container).parts


def test_licenses_let_weights_be_shared_and_have_an_author_and_a_source():
    assert not any("SA" in license or "NC" in license for license in LICENSES)
    for one in PHOTOGRAPHS:
        assert one.license in LICENSES
        assert one.author
        assert one.source
        assert "ShareAlike" not in " ".join(map(str, one))


def test_splits_share_no_scene():
    scenes = {}
    for one in PHOTOGRAPHS:
        if one.scene:
            scenes.setdefault(one.scene, []).append(one.split)
    assert all(len(splits) > 1 and len(set(splits)) == 1 for splits in scenes.values())
    assert sum(one.split == "validation" for one in PHOTOGRAPHS) == 16


def test_no_benchmark_is_named():
    for one in PHOTOGRAPHS:
        words = " ".join(map(str, one)).lower()
        assert not any(name in words for name in ("rain100", "rain200", "bsd500", "bsds"))


def test_no_file_of_a_benchmark_is_in_the_list():
    folders = [BENCHMARKS / name for name in ("Rain100L", "Rain200L", "Rain200H")]
    files = [path for folder in folders for path in folder.rglob("*.*") if path.is_file()]
    if not files:
        pytest.skip("needs ../shared/data")
    found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert not found & {one.sha256 for one in PHOTOGRAPHS}

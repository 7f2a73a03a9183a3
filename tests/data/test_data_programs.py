"""drsformer build-data and show-data, and programs that read what they made: real processes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
from programs import rejected
from rain_sets import write_pairs, write_splits

from drsformer_jax.images.pixels import read_image


@pytest.fixture(scope="session")
def built(run, place):
    """A dataset of 5 and 3 pairs of 24x32 and 26x32, built into `data`; and what was printed."""
    write_splits(place / "raw")
    result = run(
        *("drsformer", "build-data", "rain200l", "--manual-dir", "raw", "--data-dir", "data"),
        "--allow-partial",
    )
    assert result.returncode == 0, result.stderr
    return place / "data/rain/rain200l/1.0.0", result.stdout


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def test_building_prints_counts_sizes_checksums_and_the_place(built):
    folder, output = built
    lines = output.splitlines()
    for line, pairs, expected in zip(lines, (5, 3), (1800, 200), strict=False):
        assert re.fullmatch(
            rf"(train|test): {pairs} of {expected} pairs, 0\.\d MB, pixels have SHA-256 \w{{64}}",
            line,
        )
    assert lines[2:] == [f"rain200l is in {folder.relative_to(folder.parents[3])}"]


def test_verifying_reads_every_pair(run, built, place):
    _, output = built
    result = run("drsformer", "build-data", "rain200l", "--verify", "--data-dir", "data")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == output.splitlines()[:2]
    assert "read every pair of data/rain/rain200l/1.0.0 and found no problem" in result.stdout


def test_without_a_folder_building_tells_what_is_expected(run):
    result = run("drsformer", "build-data", "ddn_data")
    rejected(result, "--manual-dir is missing; expected a folder as described above")
    for part in ("rainy image/", "ground truth/", "12600", "1400", "input/", "target/"):
        assert part in result.stdout


def test_sheet_shows_pairs_and_crops(run, built, place):
    result = run(
        *("drsformer", "show-data", "rain200l:test", "--data-dir", "data", "--out", "sheet.png"),
        *("--pairs", "2", "--crops", "3", "--crop-size", "16"),
    )
    assert result.stdout == "rain200l:test has 3 pairs: 32x26 (3); see sheet.png\n", result.stderr
    sheet = read_image(place / "sheet.png")
    first = read_image(place / "raw/test/input/1.png")
    places = [
        (top, left)
        for top in range(sheet.shape[0] - 26)
        for left in range(20)
        if (sheet[top : top + 26, left : left + 32] == first).all()
    ]
    assert len(places) == 1


def test_sheet_of_synthetic_rain_takes_photographs_and_no_other_does(run, place):
    photographs = ("--photographs", "pairs/target")
    result = run(
        *("drsformer", "show-data", "synthetic", "--out", "rain.png", *photographs),
        *("--pairs", "1", "--crops", "2", "--crop-size", "16"),
    )
    assert result.returncode == 0, result.stderr
    assert read_image(place / "rain.png").shape[0] > 4 * 40
    result = run("drsformer", "show-data", "pairs", "--out", "other.png", *photographs)
    rejected(result, "--photographs is given; expected none but of synthetic")


def test_training_and_scoring_take_a_dataset_by_name(run, built, place):
    result = run(
        *("train", "--config", "config.py", "--workdir", "named", "--data.data-dir", "data"),
        *("--data.train", "rain200l", "--data.validation", "rain200l:test[:2]"),
    )
    assert result.returncode == 0, result.stderr
    assert "5 training and 2 validation pairs" in result.stdout
    scores = run(
        *("eval", "--checkpoint", "named", "--data", "rain200l", "--data-dir", "data"),
        *("--save", "named-saved"),
    )
    assert scores.returncode == 0, scores.stderr
    saved = [path.name for path in sorted((place / "named-saved").iterdir())]
    assert saved == ["1.png", "2.png", "3.png"]
    rows = scores.stdout.splitlines()
    assert [row.split()[0] for row in rows[2:5]] == ["1.png", "2.png", "3.png"]
    # The same images from their folder have the same scores.
    folder = run("eval", "--checkpoint", "named", "--data", "raw/test")
    assert folder.stdout.splitlines()[:6] == rows[:6]


def test_images_of_one_name_in_several_splits_are_all_scored_and_saved(run, trained, place):
    for split in ("train/Rain13K", "test/Test100", "test/Rain100L"):
        write_pairs(place / "raw13k" / split, ["1.png"])
    command = ("drsformer", "build-data", "rain13k", "--manual-dir", "raw13k", "--data-dir", "data")
    assert run(*command, "--allow-partial").returncode == 0
    result = run(
        *("eval", "--checkpoint", "run", "--data", "rain13k", "--data-dir", "data"),
        *("--save", "saved13k", "--output", "scored13k"),
    )
    assert result.returncode == 0, result.stderr
    names = [
        row["image"] for row in json.loads((place / "scored13k/scores.json").read_text())["images"]
    ]
    assert names == ["test100/1.png", "rain100l/1.png"]
    assert all((place / "saved13k" / name).is_file() for name in names)
    assert "mean of 2 " in result.stdout


def test_patches_grow_over_a_mix_and_each_size_compiles_once(run, built, place):
    result = run(
        *("train", "--config", "config.py", "--workdir", "grown", "--data.data-dir", "data"),
        *("--data.sources", "rain200l", "3", "pairs", "1", "--data.crop-size", "24"),
        *("--data.progressive", "0", "16", "2", "2", "24", "1", "--steps", "5"),
        *("--data.workers", "1", "--data.cache-dir", "decoded"),
        environment={**run.environment, "JAX_LOG_COMPILES": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "7 training and " in result.stdout
    shapes = re.findall(r"Compiling jit\(step\) .*?uint8\[(\d+),(\d+),", result.stderr)
    assert shapes == [("2", "16"), ("1", "24")]
    assert list(metrics(place / "grown")) == [1, 2, 3, 4, 5]


def test_a_pair_that_cannot_be_read_stops_training_or_is_skipped_and_counted(run, built, place):
    shutil.copytree(place / "pairs", place / "damaged_pairs", dirs_exist_ok=True)
    path = place / "damaged_pairs/input/1.png"
    path.write_bytes(path.read_bytes()[:1500])
    command = (
        "train",
        "--config",
        "config.py",
        "--data.train",
        "damaged_pairs",
        "--data.cache-mib",
        "0",
    )
    stopped = run(*command, "--workdir", "stopped", "--data.workers", "2")
    rejected(stopped, r"damaged_pairs/input/1\.png is no image that can be read \(")
    skipping = run(
        *command, "--workdir", "skipping", "--data.corrupt", "skip", "--data.workers", "1"
    )
    assert skipping.returncode == 0, skipping.stderr
    named = re.findall(r"^skipped: damaged_pairs/input/1\.png is no image", skipping.stdout, re.M)
    assert len(named) == 1
    counts = [line["skipped_pairs"] for line in metrics(place / "skipping").values()]
    assert counts == [1, 2, 3, 4]  # Every other pair, and two in a batch.


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_training_and_add_nothing_to_its_last_line(run, trained, place, number):
    arguments = ("--config", "config.py", "--workdir", f"endless{number}", "--steps", "100000")
    with run.start(
        *("train", *arguments, "--log-every", "20", "--data.workers", "2"), start_new_session=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 40/"):
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # As a terminal does: to the workers too.
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
        else:
            process.kill()
        assert psutil.wait_procs(workers, timeout=30)[1] == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("drsformer build-data rain1 --manual-dir raw", "the dataset rain1 is unknown; expected"),
        ("drsformer build-data rain200l --manual-dir none", "none does not exist; expected"),
        ("drsformer build-data rain200l --manual-dir config.py", r"config\.py is a file; expected"),
        ("drsformer build-data rain200l --manual-dir raw", "has 5 pairs in raw; expected 1800, or"),
        ("drsformer build-data rain200l --manual-dir pairs", "pairs holds input/, target/; expect"),
        (
            "drsformer build-data paired_folder --manual-dir raw --data-dir config.py",
            r"config\.py cannot be written \(File exists\)",
        ),
        (
            "drsformer build-data rain200l --manual-dir raw --data-dir data --allow-partial",
            "1.0.0 exists; expected",
        ),
        (
            "drsformer build-data synthetic --data-dir data --allow-partial",
            "--allow-partial is given; expected none for synthetic rain",
        ),
        (
            "drsformer build-data rain100l --verify --data-dir data",
            "rain100l is no dataset in dat",
        ),
        ("drsformer build-data rain200l --verify --manual-dir raw", "--manual-dir is given; exp"),
        (
            "drsformer build-data rain200l:test --verify --data-dir data",
            "expected no split, because",
        ),
        ("drsformer show-data rain200l:2.0.0 --data-dir data --out x.png", r"expected 1\.0\.0"),
        (
            "drsformer show-data rain200l:tost --data-dir data --out x.png",
            r"has no split tost .*test \(3\)",
        ),
        ("drsformer show-data rain200l --data-dir nowhere --out x.png", "no dataset in nowhere"),
        ("drsformer show-data pairs --out x.gif", r"x\.gif has the extension '\.gif'"),
        ("drsformer show-data pairs --out x.png --crops 0", "--crops is 0; expected 1 to 100"),
        (
            "drsformer show-data pairs --out x.png --crop-size 20",
            "crop-size is 20; expected a mult",
        ),
        ("eval --checkpoint run --data none", "--data is none, no folder and no dataset in"),
        (
            "eval --checkpoint run --data rain200l --data-dir data --match x",
            "--match is x beside a dataset; expected folders",
        ),
        (
            "eval --checkpoint run --data rain200l --data-dir data --target pairs",
            "--data is given beside --input or --target",
        ),
        (
            "eval --restored pairs/input --data rain200l --data-dir data",
            "--data is rain200l.* beside --restored; expected folders",
        ),
        (
            "train --config config.py --data.train rain200l --data.data-dir none",
            "no dataset in none",
        ),
        (
            "train --config config.py --data.sources pairs 0",
            "data.sources is .* weights from 0.0001 to",
        ),
        ("train --config config.py --data.progressive 1 16 2", "first steps that start at 0"),
        ("train --config config.py --data.progressive 0 32 2", "at most the crop of 16"),
        ("train --config config.py --data.cache-dir config.py/x", "config.py"),
        (
            "train --config config.py --data.cache-dir ./unmade --workdir unmade",
            r"--data\.cache-dir is \./unmade, the --workdir; expected another folder",
        ),
    ],
)
def test_wrong_input_gives_one_line_and_makes_nothing(run, built, place, command, message):
    before = sorted(place.iterdir())
    rejected(run(*shlex.split(command)), message)
    assert not (place / "x.png").exists()
    assert sorted(place.iterdir()) == before


def test_wrong_flag_is_one_plain_line_where_output_is_ascii(run):
    ascii_only = {**run.environment, "PYTHONIOENCODING": "ascii"}
    flags = ("--config", "config.py", "--data.rain.light", "-1")
    result = run("train", *flags, environment=ascii_only)
    rejected(result, r"^error: .*the mix of data\.rain is \[-1\.0, 0\.4, 0\.2, 0\.05\]; expected")
    assert "---" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def write_odd(folder):
    """Writes a pair whose name is no UTF-8; returns the folder."""
    write_pairs(folder, ["1.png"])
    for part in ("input", "target"):
        (folder / part / "1.png").rename(folder / part / os.fsdecode(b"\xfe.png"))
    return folder


@pytest.mark.parametrize("name", [b"\xff", b"\xff/pairs"])
def test_names_in_no_encoding_are_shown_or_rejected_in_one_line(run, place, name):
    folder = write_odd(place / os.fsdecode(name))
    flags = ("--out", "named.png", "--crops", "1", "--crop-size", "16")
    shown = run("drsformer", "show-data", str(folder), *flags)
    assert shown.returncode == 0, shown.stderr
    assert r"\udcff" in shown.stdout
    command = ("build-data", "paired_folder", "--manual-dir", folder, "--data-dir", "data")
    rejected(run("drsformer", *command), r"\\udcfe\.png'?\)? has a name that is no UTF-8; expected")


def test_names_in_no_encoding_are_written_trained_on_and_validated_on(run, place):
    sheet = ("--out", os.fsdecode(b"\xff.png"), "--crops", "1", "--crop-size", "16")
    assert run("drsformer", "show-data", "pairs", *sheet).returncode == 0
    folder, inside = (write_odd(place / os.fsdecode(name)) for name in (b"\xfd", b"\xfd/pairs"))
    trained = run(
        *("train", "--config", "config.py", "--workdir", "odd", "--data.sources", str(folder), "1"),
        *(str(inside), "1", "--data.validation", str(folder)),
        *("--data.cache-dir", "decoded", "--steps", "1"),
    )
    assert trained.returncode == 0, trained.stderr
    assert "2 training and 1 validation pairs" in trained.stdout
    for number, odd in enumerate((folder, inside)):
        alone = run(
            *("train", "--config", "config.py", "--workdir", f"odd{number}", "--steps", "1"),
            *("--data.train", str(odd), "--data.cache-dir", "decoded"),
        )
        assert alone.returncode == 0, alone.stderr


@pytest.mark.parametrize("name", ["Pair", "Pairs", "open_pairs", "batches"])
def test_the_package_hands_on_its_names_and_imports_its_modules_when_asked(name):
    program = (
        "import sys\nimport drsformer_jax.data\n"
        "assert not {'numpy', 'jax', 'grain', 'tensorflow_datasets'} & sys.modules.keys()\n"
        f"from drsformer_jax.data import {name}\n"
        "assert not {'grain', 'tensorflow_datasets'} & sys.modules.keys()\n"
        "assert all(hasattr(drsformer_jax.data, each) for each in drsformer_jax.data.__all__)\n"
        "try:\n    drsformer_jax.data.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    message = "module 'drsformer_jax.data' has no attribute 'nothing'\n"
    assert (result.stdout, result.stderr) == (message, "")

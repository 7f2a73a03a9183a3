"""eval.py scores what a checkpoint or any other program restored, beside published figures."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import Programs, rejected

from drsformer_jax import metrics, weights
from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import read_image, write_image
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring import complexity
from drsformer_jax.weights.convert import params_to_torch
from drsformer_jax.weights.tensor_files import write_pth

ROOT = Path(__file__).parents[2]
RAINY = {"rainy_psnr", "rainy_ssim", "gain"}


def read_scores(folder):
    """scores.json and the rows of scores.csv."""
    document = json.loads((folder / "scores.json").read_text())
    return document, list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))


def psnrs(document):
    return [round(each["restored_psnr"], 2) for each in document["images"]]


def test_images_of_any_program_are_scored_with_the_rainy_ones(place, score):
    printed = score(restored=Path("restored"), input=Path("data/input"), target=Path("data/target"))
    document, table = read_scores(Path("evaluation/restored/rain200_spa"))
    assert (document["restored"], document["protocol"]) == ("restored", "rain200_spa")
    assert [row["image"] for row in table] == ["1.png", "2.png"]
    for row, listed in zip(table, document["images"], strict=True):
        clean = read_image(Path("data/target") / row["image"])
        for kind, folder in (("rainy", "data/input"), ("restored", "restored")):
            image = read_image(Path(folder) / row["image"])
            psnr, ssim = (f(image, clean, "rain200_spa") for f in (metrics.psnr, metrics.ssim))
            assert listed[f"{kind}_psnr"] == float(row[f"{kind}_psnr"]) == psnr
            assert listed[f"{kind}_ssim"] == float(row[f"{kind}_ssim"]) == ssim
        assert listed["gain"] == listed["restored_psnr"] - listed["rainy_psnr"] > 5
    mean = np.mean([each["restored_psnr"] for each in document["images"]])
    assert document["mean"]["restored_psnr"] == pytest.approx(mean, abs=1e-12)
    assert "rainy PSNR" in printed
    assert f"{mean:.2f}" in next(line for line in printed.splitlines() if "mean of 2" in line)
    assert not {"dataset", "systems", "complexity", "checkpoint"} & document.keys()


def test_without_rainy_images_only_the_restored_ones_have_columns(place, score):
    printed = score(restored=Path("restored"), target=Path("data/target"), output=Path("out"))
    document, table = read_scores(Path("out"))
    assert "rainy" not in printed
    assert " ".join(printed.splitlines()[1].split()) == "image restored PSNR restored SSIM"
    for each in (document["mean"], *document["images"], *table):
        assert each.keys() - {"image"} == {"restored_psnr", "restored_ssim"}


def test_data_stands_for_input_and_target(place, score):
    first = score(restored=Path("restored"), data=Path("data"))
    second = score(restored=Path("restored"), input=Path("data/input"), target=Path("data/target"))
    assert first == second


def test_the_pattern_pairs_names_that_differ(place, score):
    score(restored=Path("restored"), data=Path("data"), output=Path("plain"))
    score(restored=Path("tagged"), data=Path("data"), output=Path("out"), match=r"\d+")
    document, _ = read_scores(Path("out"))
    assert [each["image"] for each in document["images"]] == ["1_DR.png", "2_DR.png"]
    rainy = [each["rainy_psnr"] for each in document["images"]]
    assert rainy == [each["rainy_psnr"] for each in read_scores(Path("plain"))[0]["images"]]
    with pytest.raises(InputError, match=r"^data/target/1\.png has no partner in tagged \(4 of 4 "):
        score(restored=Path("tagged"), data=Path("data"))


def test_equal_images_have_no_finite_psnr_in_the_files(place, score):
    shutil.copytree("data/target", "perfect")
    printed = score(
        restored=Path("perfect"), target=Path("data/target"), dataset="DID-Data", output=place
    )
    document, table = read_scores(place)
    assert document["mean"] == {"restored_psnr": None, "restored_ssim": 1.0}
    assert document["systems"][-1]["psnr"] is None
    assert table[0]["restored_psnr"] == ""
    assert re.search(r"mean of 2 +inf +1\.0000\n", printed)


def test_a_checkpoint_restores_and_is_scored_beside_published_systems(place, score, model):
    shutil.copytree(model, "net")
    printed = score(
        checkpoint=Path("net"), data=Path("data"), save=Path("saved"), dataset="rain200h"
    )
    document, table = read_scores(Path("net/evaluation/Rain200H"))
    assert (document["checkpoint"], document["protocol"]) == ("net", "rain200_spa")
    assert set(table[0]) == {"image", "restored_psnr", "restored_ssim", *RAINY}
    restored = Restorer.load(model)(read_image("data/input/1.png"))
    np.testing.assert_array_equal(read_image("saved/1.png"), restored)
    config, params = weights.load(model)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    products = complexity.macs(config)
    assert document["complexity"] == {"parameters": count, "multiply_accumulates": products}
    assert f"{count:,} parameters, {products / 1e9:.2f} G MACs for an image of 256x256" in printed
    assert document["dataset"] == {
        "name": "Rain200H",
        "protocol": "rain200_spa",
        "test_pairs": 200,
        "scored_pairs": 2,
    }
    assert len(document["systems"]) == 13
    mean = document["mean"]
    assert document["systems"][-1] == {
        "system": "net",
        "psnr": mean["restored_psnr"],
        "ssim": mean["restored_ssim"],
        "parameters_m": count / 1e6,
        "multiply_accumulates_g": products / 1e9,
        "source": "measured",
    }
    assert re.search(r"\n> net .* M .* G +measured\n2 of the 200 pairs: ", printed)
    assert re.search(r"\n  Restormer +32\.00 +0\.9329 +26\.1 M +174\.7 G +published\n", printed)


def test_scores_of_an_official_file_go_into_the_current_folder(place, score, network):
    config, params = network
    write_pth(Path("weights/net.pth"), params_to_torch(params, config))
    printed = score(checkpoint=Path("weights/net.pth"), data=Path("data"), protocol="did_ddn")
    document, _ = read_scores(Path("evaluation/net.pth/did_ddn"))
    assert document["checkpoint"] == "weights/net.pth"
    assert "published" not in printed


def test_scores_of_something_else_are_not_overwritten(place, score, model):
    """Two methods whose folders have one name, two datasets, and two steps of one run."""
    for method in ("a", "b"):
        shutil.copytree("restored", f"{method}/restored")
    for _ in range(2):
        score(restored=Path("a/restored"), target=Path("data/target"))
    file = Path("evaluation/restored/rain200_spa/scores.json")
    before = file.read_bytes()
    line = r"scores\.json holds scores with {} {}, not .*; expected that one, or another --output"
    with pytest.raises(InputError, match=line.format("restored", "a/restored")):
        score(restored=Path("b/restored"), target=Path("data/target"))
    shutil.copytree("data", "other")
    with pytest.raises(InputError, match=line.format("target", "data/target")):
        score(restored=Path("a/restored"), target=Path("other/target"))
    assert file.read_bytes() == before
    score(restored=Path("a/restored"), target=Path("data/target"), input=Path("data/input"))
    with pytest.raises(InputError, match=line.format("input", "data/input")):
        score(restored=Path("a/restored"), target=Path("data/target"), input=Path("other/input"))
    document = json.loads(before)
    for name in ("target", "input"):
        document.pop(name, None)
    file.write_text(json.dumps(document))  # As older versions wrote it.
    score(restored=Path("a/restored").absolute(), target=Path("other/target"))
    assert read_scores(file.parent)[0]["target"] == "other/target"
    file.write_text("[]")
    score(restored=Path("a/restored"), target=Path("other/target"))
    with pytest.raises(InputError, match=line.format("restored", "a/restored")):
        score(checkpoint=model, data=Path("other"), output=file.parent)


def test_relative_paths_are_those_of_the_folder_that_they_were_given_in(
    place, score, model, monkeypatch
):
    shutil.copytree("data", "other/test")
    Path("data").rename("test")
    out = (place / "out").absolute()
    score(checkpoint=model, data=Path("test"), output=out)
    monkeypatch.chdir("other")
    with pytest.raises(InputError, match="holds scores with target test/target, not test/target;"):
        score(checkpoint=model, data=Path("test"), output=out)
    score(checkpoint=model, data=Path("../test"), output=out)
    score(checkpoint=Path("builtin"), data=Path("test"), output=Path("own").absolute())
    monkeypatch.chdir("..")
    score(checkpoint=Path("builtin"), data=Path("other/test"), output=Path("other/own"))


def test_scores_of_a_dataset_are_its_own_whatever_it_is_called_and_from_any_folder(
    place, program, monkeypatch
):
    for data_dir in ("one", "two"):
        built(Path(data_dir, "rain/mine/1.0.0"), "mine")
    (place / "elsewhere").mkdir()
    work = program.Work("checkpoint", place / "net", 0, iter(()), ())

    def told(data, data_dir):
        command = program.Command(data=Path(data), data_dir=place / data_dir)
        return program.described(work, command)

    (place / "scores.json").write_text(json.dumps(told("mine", "one")))
    monkeypatch.chdir("elsewhere")
    for data in ("mine", "rain/mine", "mine:test", "mine:1.0.0"):
        program.check_same(place, told(data, "one"))
    with pytest.raises(InputError, match="holds scores with data_split test, not train; expected"):
        program.check_same(place, told("mine:train", "one"))
    with pytest.raises(InputError, match=r"holds scores with data_folder .*one/rain.*, not .*two/"):
        program.check_same(place, told("mine", "two"))
    older = {"checkpoint": str(place / "net"), "data": "mine"}
    (place / "scores.json").write_text(json.dumps(older))
    program.check_same(place, told("mine", "one"))


def test_a_run_that_was_moved_is_scored_again_in_its_own_folder(place, score, model):
    shutil.copytree(model, "first")
    score(checkpoint=Path("first"), data=Path("data"))
    Path("first").rename("second")
    score(checkpoint=Path("second"), data=Path("data").absolute())
    assert read_scores(Path("second/evaluation/rain200_spa"))[0]["checkpoint"] == "second"


def built(folder: Path, name: str, *splits: str) -> None:
    """What is read of a built dataset to name it."""
    folder.mkdir(parents=True)
    content = {"name": "rain", "configName": name, "splits": [{"name": each} for each in splits]}
    (folder / "dataset_info.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("data", "protocol", "expected"),
    [
        ("did_data", None, "DID-Data"),
        ("did_data:test[:50%]", None, "DID-Data"),
        ("did_data:train", None, None),
        ("did_data:test+train", None, None),
        ("did_data", "rain200_spa", None),
        ("rain13k", None, None),
        ("rain13k:test100", None, "Test100"),
    ],
)
def test_a_built_dataset_says_which_benchmark_it_is(place, program, data, protocol, expected):
    for name in ("did_data", "rain13k"):
        built(Path("data_dir/rain") / name / "1.0.0", name)
    command = program.Command(
        checkpoint=Path("net"), data=Path(data), data_dir=Path("data_dir"), protocol=protocol
    )
    dataset = program.benchmark_of(command)
    assert (dataset and dataset.name) == expected
    found = program.protocol_of(command, dataset)
    assert found == protocol or found == ("did_ddn" if expected == "DID-Data" else "rain200_spa")


def test_benchmark_of_another_dataset_is_rejected(place, program):
    built(Path("data_dir/rain/rain200l/1.0.0"), "rain200l")
    data = {"data": Path("rain200l"), "data_dir": Path("data_dir")}
    with pytest.raises(InputError, match="Rain200H beside --data rain200l, which is Rain200L; exp"):
        program.benchmark_of(program.Command(**data, dataset="Rain200H"))
    assert program.benchmark_of(program.Command(**data, dataset="Rain200L")).name == "Rain200L"


def test_name_of_a_dataset_and_of_a_folder_of_pairs_is_rejected(place, program):
    built(Path("data_dir/rain/data/1.0.0"), "data")
    command = program.Command(data=Path("data"), data_dir=Path("data_dir"))
    line = "^data is a folder of pairs here and a dataset in data_dir/rain/data; expected rain/data"
    with pytest.raises(InputError, match=line):
        command.built  # noqa: B018
    command = program.Command(data=Path("rain/data"), data_dir=Path("data_dir"))
    assert command.built == (Path("data_dir/rain/data/1.0.0"), "")
    assert program.Command(data=place / "data", data_dir=Path("data_dir")).built is None


def test_a_run_in_a_bucket_keeps_its_address_in_the_scores(place, program):
    run, command = Path("gs://bucket/runs/a"), program.Command(target=Path("data/target"))
    work = program.Work("checkpoint", run, 0, iter(()), ())
    assert program.described(work, command)["checkpoint"] == "gs://bucket/runs/a"
    assert program.default_output(work, "Rain100L") == Path("evaluation/a/Rain100L")
    flags = {"target": Path("data/target"), "checkpoint": run, "data_dir": Path("gs://bucket/d")}
    with pytest.raises(InputError, match="--data-dir is gs://bucket/d without a dataset"):
        program.check_flags(program.Command(**flags))


def test_the_dataset_decides_on_the_protocol(place, score):
    arguments = {"restored": Path("restored"), "target": Path("data/target"), "output": Path("out")}
    for asked in (None, "did_ddn"):
        printed = score(**arguments, dataset="ddn_data", protocol=asked)
        assert read_scores(Path("out"))[0]["protocol"] == "did_ddn"
        assert printed.startswith("PSNR in dB and SSIM on luma, protocol did_ddn\n")
    by_protocol = score(**arguments, protocol="did_ddn")
    assert printed.splitlines()[:5] == by_protocol.splitlines()[:5]
    assert by_protocol != score(**arguments)


def test_rainy_and_clean_images_may_share_a_folder_as_rain_train_l_comes(place, score, model):
    """Its layers of rain, which are neither, are left out."""
    folder = Path("RainTrainL")
    for index in (1, 2):
        for kind, source in (("norain", "data/target"), ("rain", "data/input")):
            write_image(folder / f"{kind}-{index}.png", read_image(f"{source}/{index}.png"))
        for kind in ("rainstreak", "rainregion"):
            write_image(folder / f"{kind}-{index}.png", np.zeros((9, 9, 3), np.uint8))
    score(checkpoint=model, input=folder, target=folder, match=r"\d+", output=Path("one"))
    score(checkpoint=model, data=Path("data"), output=Path("two"))
    (one, _), (two, _) = read_scores(Path("one")), read_scores(Path("two"))
    assert [each["image"] for each in one["images"]] == ["rain-1.png", "rain-2.png"]
    assert one["mean"] == two["mean"]
    for index in (1, 2):
        write_image(Path(f"method/{index}.png"), read_image(f"restored/{index}.png"))
    flags = {"restored": Path("method"), "target": folder, "match": r"\d+"}
    score(**flags, input=folder, output=Path("three"))
    score(restored=Path("restored"), data=Path("data"), output=Path("four"))
    (three, _), (four, _) = read_scores(Path("three")), read_scores(Path("four"))
    assert three["mean"] == four["mean"]
    score(**flags, output=Path("five"))
    assert read_scores(Path("five"))[0]["mean"].items() <= four["mean"].items()
    (folder / "norain-2.png").unlink()
    with pytest.raises(InputError, match=r"^RainTrainL/rain-2\.png has no partner in RainTrainL "):
        score(checkpoint=model, input=folder, target=folder, match=r"\d+")
    with pytest.raises(InputError, match=r"^RainTrainL and RainTrainL hold the same files; "):
        score(checkpoint=model, input=folder, target=folder)


def test_names_that_are_not_utf_8_are_scored_and_spelled_so_that_they_can_be_read(
    place, program, monkeypatch, capsys
):
    """As a Chinese archive unpacked on Linux leaves them."""
    name = os.fsdecode("\u96e8.png".encode("gbk"))
    for folder in ("restored", "data/target"):
        Path(folder, "2.png").rename(Path(folder, name))
    arguments = ["eval.py", "--restored", "restored", "--target", "data/target", "--output", name]
    monkeypatch.setattr(sys, "argv", arguments)
    program.main()
    assert "\n\\udcd3\\udcea.png " in capsys.readouterr().out
    document, table = read_scores(Path(name))
    assert document["images"][1]["image"] == name
    spelled = table[1]["image"]
    assert spelled == r"\udcd3\udcea.png"
    assert spelled.encode().decode("unicode_escape") == name
    assert float(table[1]["restored_psnr"]) == document["images"][1]["restored_psnr"]


def test_a_jax_without_its_device_is_reported_in_one_line(place):
    run = Programs(place)
    arguments = ("--restored", place / "restored", "--target", place / "data" / "target")
    for platform in ("cuda", "none"):
        result = run("eval", *arguments, environment={**run.environment, "JAX_PLATFORMS": platform})
        rejected(
            result, r"^error: JAX finds no device \(.+\); expected JAX_PLATFORMS unset or one "
        )


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("Rain200H", [39.27, 26.20, 36.12]), ("Rain200L", [45.57, 36.74, 43.54])],
)
def test_images_of_the_official_program_have_their_published_scores(
    place, score, shared, dataset, expected
):
    folder = shared / "data" / "published_outputs" / "DRSformer" / dataset
    printed = score(
        restored=folder, data=shared / "data" / dataset / "test", dataset=dataset.lower()
    )
    document, _ = read_scores(Path("evaluation") / dataset / dataset)
    assert psnrs(document) == expected
    assert document["dataset"]["scored_pairs"] == 3
    assert "\n3 of the 200 pairs: not comparable with published averages\n" in printed


def test_a_published_image_of_did_data_is_paired_by_its_number(place, score, shared):
    source = shared / "data" / "published_outputs" / "DID-Data"
    for name, folder in (("1_DR.png", "official"), ("1_GT.png", "clean")):
        Path(folder).mkdir()
        shutil.copy(source / name, folder)
    score(restored=Path("official"), target=Path("clean"), match=r"\d+", dataset="did-data")
    document, _ = read_scores(Path("evaluation/official/DID-Data"))
    golden = json.loads((shared / "golden" / "metrics.json").read_text())["pairs"]
    (official,) = (pair["did_ddn"] for pair in golden if pair["restored"].endswith("1_DR.png"))
    assert document["mean"]["restored_psnr"] == pytest.approx(official["psnr"], abs=1e-4)
    assert document["mean"]["restored_ssim"] == pytest.approx(official["ssim"], abs=1e-6)

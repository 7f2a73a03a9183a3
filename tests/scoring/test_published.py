"""Benchmarks and published figures are what the papers say."""

from __future__ import annotations

import json
import math

import pytest

from drsformer_jax.errors import InputError
from drsformer_jax.scoring import published

DID = published.DATASETS["DID-Data"]


def ours(psnr: float) -> published.System:
    return published.System("ours", psnr, 0.9, None, None, "measured")


def test_benchmarks_have_their_protocol_and_official_test_set():
    assert {
        name: (each.protocol, each.test_pairs) for name, each in published.DATASETS.items()
    } == {
        "Rain200L": ("rain200_spa", 200),
        "Rain200H": ("rain200_spa", 200),
        "DID-Data": ("did_ddn", 1200),
        "DDN-Data": ("did_ddn", 1400),
        "SPA-Data": ("rain200_spa", 1000),
        "Rain100L": ("rain200_spa", 100),
        "Rain100H": ("rain200_spa", 100),
        "Test100": ("rain200_spa", 100),
        "Test1200": ("rain200_spa", 1200),
        "Test2800": ("rain200_spa", 2800),
    }
    assert all(name == each.name for name, each in published.DATASETS.items())


@pytest.mark.parametrize("name", ["DID-Data", "did_data", "DID_DATA", "diddata"])
def test_a_benchmark_is_found_whatever_the_spelling(name):
    assert published.dataset(name) is DID


def test_an_unknown_benchmark_is_rejected_with_the_names_of_all():
    with pytest.raises(InputError) as error:
        published.dataset("Rain200")
    assert str(error.value) == (
        "the dataset is 'Rain200'; expected one of Rain200L, Rain200H, DID-Data, DDN-Data, "
        "SPA-Data, Rain100L, Rain100H, Test100, Test1200, Test2800"
    )


def test_every_system_has_a_paper_and_plausible_figures_on_the_five_benchmarks():
    systems = published.figures()["systems"]
    assert " ".join(systems) == (
        "MSPFN RCDNet MPRNet DualGCN SPDNet Uformer Restormer IDT DRSformer NeRD-Rain FADformer "
        "DFSSM"
    )
    for entry in systems.values():
        assert entry["paper"].endswith(("CVPR 2020", "2021", "2022", "2023", "2024"))
        assert list(entry["quality"]) == [
            "Rain200L",
            "Rain200H",
            "DID-Data",
            "DDN-Data",
            "SPA-Data",
        ]
        assert all(
            29 < row["psnr"] < 50 and 0.9 < row["ssim"] < 1 for row in entry["quality"].values()
        )


def test_figures_are_those_of_the_reference_material(shared):
    reference = json.loads((shared / "golden" / "published_results.json").read_text())
    figures = published.figures()
    systems = figures["systems"]
    assert {name: entry["quality"] for name, entry in systems.items()} == reference["quality"]
    assert figures["ablation"] == reference["ablation"]
    names = {
        "params_m": "parameters_m",
        "flops_g": "multiply_accumulates_g",
        "runtime_s": "seconds",
    }
    assert {name: entry.get("complexity") for name, entry in systems.items()} == {
        name: {ours: row[theirs] for theirs, ours in names.items()} if row else None
        for name in systems
        for row in [reference["complexity"].get(name)]
    }


def test_rows_of_a_benchmark_carry_quality_and_complexity():
    rows = {row.system: row for row in published.results(DID)}
    assert len(rows) == 12
    assert rows["Restormer"] == published.System(
        "Restormer", 35.29, 0.9641, 26.1, 174.7, "published"
    )
    assert rows["DFSSM"] == published.System("DFSSM", 35.66, 0.9671, None, None, "published")
    assert published.results(published.DATASETS["Test100"]) == []


@pytest.mark.parametrize(
    ("psnr", "below"),
    [(20.0, None), (35.3, "Restormer"), (35.40, "DRSformer"), (math.inf, "DFSSM")],
)
def test_a_whole_test_set_stands_by_its_psnr(psnr, below):
    rows = published.compare(DID, ours(psnr), 1200)
    assert [row.psnr for row in rows] == sorted(row.psnr for row in rows)
    place = rows.index(ours(psnr))
    assert (rows[place - 1].system if place else None) == below


def test_part_of_a_test_set_stands_at_the_end():
    rows = published.compare(DID, ours(20.0), 1199)
    assert rows[-1] == ours(20.0)
    assert [row.psnr for row in rows[:-1]] == sorted(row.psnr for row in rows[:-1])


def test_the_table_marks_what_was_measured_and_says_which_part_it_is():
    measured = published.System("mine", 35.3, 0.96, 33.655424, 242.989, "measured")
    lines = published.table(DID, published.compare(DID, measured, 1200), 1200).splitlines()
    assert lines[0] == "DID-Data, protocol did_ddn; parameters, MACs for 256x256 pixels"
    rows = [line.split() for line in lines[2:]]
    assert ["Restormer", "35.29", "0.9641", "26.1", "M", "174.7", "G", "published"] in rows
    assert ["IDT", "34.89", "0.9623", "16.4", "M", "61.8", "G", "published"] in rows
    assert ["DFSSM", "35.66", "0.9671", "published"] in rows
    assert [row for row in rows if row[0] == ">"] == [
        [">", "mine", "35.30", "0.9600", "33.66", "M", "243", "G", "measured"]
    ]
    assert len({line.rindex(" ") for line in lines[2:]}) == 1, "columns are aligned"
    part = published.table(DID, published.compare(DID, measured, 3), 3).splitlines()
    assert part[-1] == "3 of the 1200 pairs: not comparable with published averages"
    more = published.table(DID, published.compare(DID, measured, 1201), 1201).splitlines()
    assert more[-1] == (
        "1201 pairs instead of the 1200 pairs: not comparable with published averages"
    )


def test_a_benchmark_without_published_results_says_so():
    dataset = published.DATASETS["Test100"]
    text = published.table(dataset, published.compare(dataset, ours(30.0), 100), 100)
    assert text == "no published results on Test100 are available"

"""Flags of eval.py, and what it rejects in one line."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from drsformer_jax.errors import InputError
from drsformer_jax.images.pixels import write_image


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "^neither --checkpoint nor --restored is given; expected one of them$"),
        (
            {"checkpoint": "run", "restored": "restored", "data": "data"},
            "^--checkpoint and --restored are both given; expected one of them$",
        ),
        ({"restored": "restored"}, "^--target is missing; expected it, or --data with input/ and"),
        ({"restored": "restored", "input": "data/input"}, "^--target is missing; expected it, or"),
        ({"checkpoint": "run"}, "^--target is missing; expected it, or --data with input/ and"),
        (
            {"checkpoint": "run", "target": "data/target"},
            "^--input is missing; expected it, or --data with input/ and target/$",
        ),
        (
            {"restored": "restored", "data": "data", "target": "data/target"},
            "^--data is given beside --input or --target; expected it alone$",
        ),
        (
            {"checkpoint": "run", "data": "data", "input": "data/input"},
            "^--data is given beside --input or --target; expected it alone$",
        ),
        (
            {"restored": "restored", "data": "data", "save": "x"},
            "^--save is x beside --restored; expected --checkpoint for it$",
        ),
        (
            {"restored": "restored", "data": "data", "step": 0},
            "^--step is 0 beside --restored; expected --checkpoint for it$",
        ),
        (
            {"checkpoint": "run", "data": "data", "save": "data/../data/input"},
            "^--save is data/input, whose images are read; expected another folder$",
        ),
        (
            {"restored": "restored", "data": "data", "dataset": "Rain"},
            "^the dataset is 'Rain'; exp",
        ),
        (
            {
                "restored": "restored",
                "data": "data",
                "dataset": "did-data",
                "protocol": "rain200_spa",
            },
            "^--protocol is rain200_spa, DID-Data is scored by did_ddn; expected --dataset without "
            "--protocol$",
        ),
        (
            {"restored": "restored", "data": "data", "match": "["},
            r"^the pattern '\[' is invalid \(",
        ),
        ({"restored": "nowhere", "data": "data"}, "^nowhere does not exist; expected a folder of"),
        ({"restored": "restored", "data": "restored"}, "^restored/target does not exist; expected"),
        (
            {"checkpoint": "nowhere", "data": "data"},
            "^nowhere does not exist; expected a run, a model folder, a .pth or a ",
        ),
        ({"restored": "small", "data": "data"}, "/1.png is 32x24, small/1.png is 8x8; a pair must"),
        (
            {"restored": "restored", "target": "data/../restored"},
            "^restored and data/../restored hold the same files; expected rainy or restored images "
            "in one and clean ones in the other$",
        ),
        ({"checkpoint": "run", "input": "data/target", "target": "link"}, "and link hold the same"),
        ({"restored": "restored", "target": "links"}, "^restored and links hold the same files; "),
        ({"restored": "restored", "data": "twice"}, "^restored and twice/input hold the same "),
        ({"restored": "tagged", "target": "tagged", "match": "[0-9]"}, "^tagged/1_DR.png is in a "),
    ],
    ids=str,
)
def test_flags_that_do_not_go_together_are_rejected_before_anything_is_made(
    place, score, flags, message
):
    for name in ("1.png", "2.png"):
        write_image(Path("small") / name, np.zeros((8, 8, 3), np.uint8))
    Path("link").symlink_to("data/target")
    Path("links").mkdir()
    for path in Path("restored").iterdir():
        os.link(path, Path("links") / path.name)
    shutil.copytree("data/target", "twice/target")
    Path("twice/input").symlink_to(Path("restored").absolute())
    before = sorted(place.rglob("*"))
    texts = ("dataset", "protocol", "match", "step")
    paths = {name: value if name in texts else Path(value) for name, value in flags.items()}
    with pytest.raises(InputError, match=message):
        score(**paths)
    assert sorted(place.rglob("*")) == before


def test_a_rainy_image_of_another_size_is_rejected(place, score):
    write_image(Path("data/input/2.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"^data/input/2\.png is 8x8, restored/2\.png is 32x24; a "
    ):
        score(restored=Path("restored"), data=Path("data"))


def test_the_command_line_has_the_flags(place, program, monkeypatch, capsys):
    arguments = "eval.py --restored tagged --target data/target --match [0-9] --dataset test100"
    monkeypatch.setattr(sys, "argv", arguments.split())
    program.main()
    assert "\n2 of the 100 pairs: not comparable with published" in capsys.readouterr().out
    document = json.loads(Path("evaluation/tagged/Test100/scores.json").read_text())
    assert document["protocol"] == "rain200_spa"
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    with pytest.raises(SystemExit, match=r"^error: neither --checkpoint nor --restored is given"):
        program.main()

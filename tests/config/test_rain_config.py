"""The mix and the ranges of rain: in files, on the command line, and rejected where impossible."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest
from synthetic_rain import drops

from drsformer_jax.config import KINDS, DataConfig, DropRanges, RainConfig, TrainConfig
from drsformer_jax.config.file import changes, from_dict, read_config, to_dict, write_config
from drsformer_jax.errors import InputError


@pytest.mark.parametrize("kind", KINDS)
def test_rain_of_one_kind_has_the_whole_weight(kind):
    rain = RainConfig.only(kind)
    assert dict(zip(KINDS, rain.weights(), strict=True)) == {**dict.fromkeys(KINDS, 0), kind: 1}
    mix = {each: getattr(RainConfig(), each) for each in KINDS}
    assert dataclasses.replace(rain, **mix) == RainConfig()


def test_weights_of_kinds_are_made_to_add_up_to_1():
    assert KINDS == ("light", "fine", "heavy", "none")
    rain = RainConfig(light=3.0, fine=1.0, heavy=0.0, none=4.0)
    assert rain.weights() == (0.375, 0.125, 0.0, 0.5)
    for scale in (1e-3, 0.1, 1, 7):
        weights = RainConfig(light=scale, fine=scale / 3, heavy=scale / 7, none=0.0).weights()
        assert math.fsum(weights) == pytest.approx(1, abs=1e-15)
    assert RainConfig().weights() == pytest.approx((0.35, 0.4, 0.2, 0.05))


def rainy_config() -> TrainConfig:
    """Ranges of rain that differ from the defaults at every depth."""
    rain = RainConfig(
        heavy=0.5,
        fine_layers=(2, 2),
        fog_light=(0.6, 0.7),
        **drops("fine_drops", length=(10.0, 20.0), scatter=4.0),
    )
    return TrainConfig(data=DataConfig(rain=rain, window=256, validation_rains=2))


def test_ranges_of_rain_are_the_same_after_a_passage_through_json():
    config = rainy_config()
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert type(again.data.rain.fine_drops) is DropRanges


def test_changed_ranges_of_rain_are_named_as_on_the_command_line():
    assert changes(TrainConfig(), rainy_config()) == {
        "data.validation-rains": (4, 2),
        "data.window": (0, 256),
        "data.rain.heavy": (0.2, 0.5),
        "data.rain.fine-layers": ((1, 3), (2, 2)),
        "data.rain.fog-light": ((0.55, 0.9), (0.6, 0.7)),
        "data.rain.fine-drops.length": ((20, 70), (10.0, 20.0)),
        "data.rain.fine-drops.scatter": (2.5, 4.0),
    }


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        (("data", "rain"), "RainConfig"),
        (("data", "rain", "fine_drops"), "DropRanges"),
        (("data", "rain", "ragged_noise"), "NoiseRanges"),
    ],
)
def test_unknown_field_of_rain_in_a_file_is_rejected_in_one_line(tmp_path, place, kind):
    values = json.loads(json.dumps(to_dict(TrainConfig())))
    inside = values
    for name in place:
        inside = inside[name]
    inside["hail"] = 1.0
    with pytest.raises(InputError) as error:
        from_dict(values)
    assert str(error.value).startswith(f"a field of {kind} is ['hail']; expected some of [")
    assert "\n" not in str(error.value)
    write_config(tmp_path, values)
    with pytest.raises(InputError, match=r"config\.json: a field of "):
        read_config(tmp_path)


def test_impossible_range_of_rain_in_a_file_is_rejected_in_one_line():
    values = json.loads(json.dumps(to_dict(TrainConfig())))
    values["data"]["rain"]["fine_drops"]["length"] = [20, 10]
    with pytest.raises(
        InputError, match=r"^data\.rain\.fine-drops\.length is \(20, 10\); expected "
    ):
        from_dict(values)


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """What train.py makes of flags over a configuration of defaults."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    path = tmp_path / "defaults.py"
    path.write_text("from drsformer_jax.config import TrainConfig as get_config")
    parse_command = importlib.import_module("train").parse_command
    return lambda flags: parse_command(["--config", str(path), *flags.split()]).train


def test_flags_of_rain_reach_the_configuration(parsed):
    flags = (
        "--data.window 256 --data.validation-rains 2 --data.rain.heavy 0.5 "
        "--data.rain.fine-layers 2 2 --data.rain.fog-light 0.6 0.7 "
        "--data.rain.fine-drops.length 10 20 --data.rain.fine-drops.scatter 4"
    )
    assert parsed(flags) == rainy_config()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--data.rain.fine-noise.density 0.5 0.1",
            "data.rain.fine-noise.density is (0.5, 0.1); expected two numbers in increasing order",
        ),
        (
            "--data.rain.fine-drops.length 20 10",
            "data.rain.fine-drops.length is (20.0, 10.0); expected two numbers in increasing order",
        ),
        (
            "--data.rain.heavy -1",
            "the mix of data.rain is [0.35, 0.4, -1.0, 0.05]; expected weights",
        ),
        ("--data.rain.hail 1", "Unrecognized options: --data.rain.hail"),
    ],
)
def test_wrong_flags_of_rain_give_one_line(parsed, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        parsed(flags)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line

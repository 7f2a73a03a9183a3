"""Impossible settings are rejected where they are written; presets are what was published."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from synthetic_rain import drops, noise

from drsformer_jax.config import (
    PRESETS,
    RESTORMER_PATCHES,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RainConfig,
    TrainConfig,
    file,
)
from drsformer_jax.config.file import read_config, to_dict, write_config
from drsformer_jax.errors import InputError

IMPOSSIBLE = [
    (
        RainConfig,
        noise("fine_noise", density=(0.0, 0.01)),
        "data.rain.fine-noise.density is (0.0, 0.01)",
    ),
    (RainConfig, {"light": 1e308}, "the mix of data.rain is [1e+308, 0.4, 0.2, 0.05]"),
    (ModelConfig, {"dim": 0}, "model.dim is 0"),
    (ModelConfig, {"dim": 47}, "model.dim is 47"),
    (ModelConfig, {"blocks": (4, 0, 6, 8)}, "model.blocks is (4, 0, 6, 8)"),
    (ModelConfig, {"heads": (1, 2, 0, 8)}, "model.heads is (1, 2, 0, 8)"),
    (ModelConfig, {"heads": (1, 2, 5, 8)}, "model.heads is (1, 2, 5, 8)"),
    (ModelConfig, {"refinement_blocks": 0}, "model.refinement-blocks is 0"),
    (ModelConfig, {"expansion": 0.02}, "model.expansion is 0.02"),
    (ModelConfig, {"topk_fractions": ()}, "model.topk-fractions is ()"),
    (ModelConfig, {"topk_fractions": ("1/2", "0")}, "model.topk-fractions is 0"),
    (ModelConfig, {"topk_fractions": ("3/2",)}, "model.topk-fractions is 3/2"),
    (ModelConfig, {"topk_fractions": ("1/0",)}, "model.topk-fractions is 1/0"),
    (ModelConfig, {"topk_fractions": ("half",)}, "model.topk-fractions is half"),
    (ModelConfig, {"topk_fractions": ("1/50",)}, "model.topk-fractions is ('1/50',)"),
    (DataConfig, {"crop_size": 0}, "data.crop-size is 0"),
    (DataConfig, {"crop_size": 100}, "data.crop-size is 100"),
    (DataConfig, {"global_batch": 0}, "data.global-batch is 0"),
    (DataConfig, {"rains": 0}, "data.rains is 0"),
    (DataConfig, {"validation_rains": 0}, "data.validation-rains is 0"),
    (DataConfig, {"window": 127}, "data.window is 127"),
    (DataConfig, {"window": -1}, "data.window is -1"),
    (DataConfig, {"rain": 1.0}, "data.rain is 1.0"),
    (RainConfig, {"light": -0.1}, "the mix of data.rain is [-0.1, 0.4, 0.2, 0.05]"),
    (RainConfig, {"none": -1.0}, "the mix of data.rain is [0.35, 0.4, 0.2, -1.0]"),
    (
        RainConfig,
        {"light": 0.0, "fine": 0.0, "heavy": 0.0, "none": 0.0},
        "the mix of data.rain is [0.0, 0.0, 0.0, 0.0]",
    ),
    (RainConfig, {"heavy": math.inf}, "data.rain.heavy is inf"),
    (RainConfig, {"heavy": "much"}, "data.rain.heavy is 'much'"),
    (RainConfig, {"lean": 46.0}, "data.rain.lean is 46.0"),
    (RainConfig, {"lean": -1.0}, "data.rain.lean is -1.0"),
    (RainConfig, {"lean_of_layers": 21.0}, "data.rain.lean-of-layers is 21.0"),
    (RainConfig, {"heavy_lean_of_layers": -1.0}, "data.rain.heavy-lean-of-layers is -1.0"),
    (RainConfig, {"perspective": 21.0}, "data.rain.perspective is 21.0"),
    (RainConfig, {"veil": 1.1}, "data.rain.veil is 1.1"),
    (RainConfig, {"noise": -0.1}, "data.rain.noise is -0.1"),
    (RainConfig, {"unevenness": (0.5, 1.1)}, "data.rain.unevenness is (0.5, 1.1)"),
    (RainConfig, {"fine_layers": (0, 2)}, "data.rain.fine-layers is (0, 2)"),
    (RainConfig, {"fine_layers": (1.0, 2.0)}, "data.rain.fine-layers is (1.0, 2.0)"),
    (RainConfig, noise("fine_noise", length=(0.5, 20)), "data.rain.fine-noise.length is (0.5, 20)"),
    (RainConfig, noise("fine_noise", blur=(-0.1, 1)), "data.rain.fine-noise.blur is (-0.1, 1)"),
    (
        RainConfig,
        noise("fine_noise", density=(0.05, 0.004)),
        "data.rain.fine-noise.density is (0.05, 0.004)",
    ),
    (RainConfig, noise("fine_noise", density=(0.05,)), "data.rain.fine-noise.density is (0.05,)"),
    (RainConfig, noise("fine_noise", density=0.05), "data.rain.fine-noise.density is 0.05"),
    (
        RainConfig,
        noise("fine_noise", contrast=(0.1, math.nan)),
        "data.rain.fine-noise.contrast is (0.1, nan)",
    ),
    (RainConfig, noise("fine_noise", dark=(0.9, 1.0)), "data.rain.fine-noise.dark is (0.9, 1.0)"),
    (
        RainConfig,
        noise("ragged_noise", taper=(-0.1, 0)),
        "data.rain.ragged-noise.taper is (-0.1, 0)",
    ),
    (RainConfig, {"ragged_layers": (2, 1)}, "data.rain.ragged-layers is (2, 1)"),
    (RainConfig, {"ragged_noise": (1, 2)}, "data.rain.ragged-noise is (1, 2)"),
    (RainConfig, {"fine_scale": (0.01, 1)}, "data.rain.fine-scale is (0.01, 1)"),
    (RainConfig, {"fog_density": (0.5, 0.2)}, "data.rain.fog-density is (0.5, 0.2)"),
    (RainConfig, {"fog_light": (0.5, 1.2)}, "data.rain.fog-light is (0.5, 1.2)"),
    (RainConfig, {"heavy_layers": (2, 11)}, "data.rain.heavy-layers is (2, 11)"),
    (RainConfig, {"jpeg_quality": (60, 101)}, "data.rain.jpeg-quality is (60, 101)"),
    (RainConfig, {"blurred_share": 1.1}, "data.rain.blurred-share is 1.1"),
    (RainConfig, {"fog_share": -0.1}, "data.rain.fog-share is -0.1"),
    (RainConfig, {"hard_share": 2.0}, "data.rain.hard-share is 2.0"),
    (RainConfig, {"overcast_share": 1.1}, "data.rain.overcast-share is 1.1"),
    (RainConfig, {"noise_share": 1.1}, "data.rain.noise-share is 1.1"),
    (RainConfig, {"jpeg_share": 1.1}, "data.rain.jpeg-share is 1.1"),
    (RainConfig, {"fine_jpeg_share": 1.1}, "data.rain.fine-jpeg-share is 1.1"),
    (RainConfig, {"linear_share": 1.1}, "data.rain.linear-share is 1.1"),
    (
        RainConfig,
        {"linear_share": 0.5, "opaque_share": 0.75},
        "data.rain.linear-share and opaque-share together is 1.25",
    ),
    (RainConfig, {"fine_drops": (1, 2)}, "data.rain.fine-drops is (1, 2)"),
    (RainConfig, drops("fine_drops", length=(20, 10)), "data.rain.fine-drops.length is (20, 10)"),
    (RainConfig, drops("light_near", width=(0.0, 1)), "data.rain.light-near.width is (0.0, 1)"),
    (
        RainConfig,
        drops("light_distant", coverage=(0, 2.1)),
        "data.rain.light-distant.coverage is (0, 2.1)",
    ),
    (
        RainConfig,
        drops("heavy_drops", brightness=(0.5, 1.5)),
        "data.rain.heavy-drops.brightness is (0.5, 1.5)",
    ),
    (RainConfig, drops("blurred_drops", scatter=21.0), "data.rain.blurred-drops.scatter is 21.0"),
    (RainConfig, drops("fine_drops", scatter="wide"), "data.rain.fine-drops.scatter is 'wide'"),
    (DataConfig, {"cache_mib": -1}, "data.cache-mib is -1"),
    (DataConfig, {"workers": -1}, "data.workers is -1"),
    (DataConfig, {"sources": (("a", 0.0),)}, "data.sources is ('a', 0.0)"),
    (DataConfig, {"sources": (("a", math.inf),)}, "data.sources is ('a', inf)"),
    (DataConfig, {"sources": (("a",),)}, "data.sources is (('a',),)"),
    (DataConfig, {"sources": "a"}, "data.sources is 'a'"),
    (DataConfig, {"progressive": ((1, 8, 8),)}, "data.progressive is ((1, 8, 8),)"),
    (
        DataConfig,
        {"progressive": ((0, 8, 8), (0, 16, 8))},
        "data.progressive is ((0, 8, 8), (0, 16, 8))",
    ),
    (DataConfig, {"progressive": ((0, 12, 8),)}, "data.progressive is a side of 12"),
    (DataConfig, {"progressive": ((0, 136, 8),)}, "data.progressive is a side of 136"),
    (DataConfig, {"progressive": ((0, 8, 0),)}, "data.progressive is a global batch of 0"),
    (OptimConfig, {"learning_rate": 0.0}, "optim.learning-rate is 0.0"),
    (OptimConfig, {"learning_rate": float("nan")}, "optim.learning-rate is nan"),
    (OptimConfig, {"final_learning_rate": -1e-6}, "optim.final-learning-rate is -1e-06"),
    (OptimConfig, {"constant_steps": -1}, "optim.constant-steps is -1"),
    (OptimConfig, {"cosine_steps": 0}, "optim.cosine-steps is 0"),
    (OptimConfig, {"b1": 1.0}, "optim.b1 is 1.0"),
    (OptimConfig, {"b2": -0.1}, "optim.b2 is -0.1"),
    (OptimConfig, {"eps": 0.0}, "optim.eps is 0.0"),
    (OptimConfig, {"weight_decay": -1e-4}, "optim.weight-decay is -0.0001"),
    (OptimConfig, {"clip_norm": 0.0}, "optim.clip-norm is 0.0"),
    (OptimConfig, {"warmup_steps": -1}, "optim.warmup-steps is -1"),
    (OptimConfig, {"ema_decay": 1.0}, "optim.ema-decay is 1.0"),
    (OptimConfig, {"nonfinite_steps": -1}, "optim.nonfinite-steps is -1"),
    (MeshConfig, {"data": 0}, "mesh.data is 0"),
    (MeshConfig, {"fsdp": -2}, "mesh.fsdp is -2"),
    (MeshConfig, {"rows": 0}, "mesh.rows is 0"),
    (MeshConfig, {"fsdp": -1}, "mesh is (-1, -1, 1)"),
    (MeshConfig, {"device_batch": -1}, "mesh.device-batch is -1"),
    (MeshConfig, {"fsdp_min_size": -1}, "mesh.fsdp-min-size is -1"),
    (TrainConfig, {"steps": 0}, "steps is 0"),
    (TrainConfig, {"seed": -1}, "seed is -1"),
    (TrainConfig, {"log_every": 0}, "log-every is 0"),
    (TrainConfig, {"eval_every": 0}, "eval-every is 0"),
    (TrainConfig, {"checkpoint_every": 0}, "checkpoint-every is 0"),
    (TrainConfig, {"keep_checkpoints": 0}, "keep-checkpoints is 0"),
]


@pytest.mark.parametrize(
    ("settings", "fields", "found"), IMPOSSIBLE, ids=[found for _, _, found in IMPOSSIBLE]
)
def test_impossible_value_is_rejected_in_one_line(settings, fields, found):
    with pytest.raises(InputError) as error:
        settings(**fields)
    message = str(error.value)
    assert message.startswith(f"{found}; expected ")
    assert len(message) > len(f"{found}; expected ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (ModelConfig, {"dim": 2, "heads": (1, 1, 1, 1)}),
        (ModelConfig, {"topk_fractions": ("1", "0.5")}),
        # A fraction too small to keep a score does not matter where all are kept.
        (ModelConfig, {"topk_fractions": ("1/50",), "attention": "dense"}),
        (DataConfig, {"crop_size": 8, "cache_mib": 0}),
        (DataConfig, {"crop_size": 64, "window": 64, "validation_rains": 1}),
        (RainConfig, {"light": 0.0, "fine": 0.0, "heavy": 3.0, "none": 0.0}),
        (RainConfig, {"linear_share": 0.25, "opaque_share": 0.75}),
        (RainConfig, {"fine_layers": (3, 3), "unevenness": (0.0, 1.0), "lean": 45.0}),
        (OptimConfig, {"constant_steps": 0, "b1": 0.0, "weight_decay": 0.0}),
        (TrainConfig, {"seed": 0, "steps": 1}),
    ],
)
def test_value_at_the_edge_is_accepted(settings, fields):
    assert dataclasses.asdict(settings(**fields)).items() >= fields.items()


def test_heads_are_checked_at_every_level():
    for level, channels in enumerate((48, 96, 192, 384)):
        heads = tuple(channels + 1 if n == level else 1 for n in range(4))
        with pytest.raises(InputError, match=f"a divisor of {channels} for level {level + 1}"):
            ModelConfig(heads=heads)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_hashable_and_frozen(name):
    config = PRESETS[name]
    assert {config: name}[dataclasses.replace(config)] == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 8


def test_training_configuration_is_hashable():
    assert hash(TrainConfig()) == hash(TrainConfig())
    assert TrainConfig() != TrainConfig(optim=OptimConfig(eps=1e-6))


def test_presets_are_the_published_networks():
    published = ModelConfig(
        dim=48,
        blocks=(4, 6, 6, 8),
        heads=(1, 2, 4, 8),
        encoder_level0="mefc",
        refinement="mefc",
        attention="topk",
        topk_fractions=("1/2", "2/3", "3/4", "4/5"),
        feed_forward="msfn",
        expansion=2.66,
        norm="with_bias",
        bias=False,
    )
    bare = dataclasses.replace(published, encoder_level0="none", refinement="none")
    assert PRESETS["drsformer"] == published
    assert PRESETS["drsformer_no_mefc"] == bare
    assert PRESETS["restormer"] == dataclasses.replace(
        bare,
        refinement="blocks",
        refinement_blocks=4,
        attention="dense",
        feed_forward="gdfn",
    )


def test_optimizer_defaults_are_the_official_recipe():
    assert dataclasses.asdict(OptimConfig()) == {
        "learning_rate": 3e-4,
        "final_learning_rate": 1e-6,
        "constant_steps": 92_000,
        "cosine_steps": 208_000,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 1e-4,
        "clip_norm": 0.01,
        "warmup_steps": 0,
        "ema_decay": 0.0,
        "nonfinite_steps": 0,
    }
    assert (TrainConfig().steps, TrainConfig().seed) == (300_000, 100)
    assert (DataConfig().crop_size, DataConfig().global_batch) == (128, 16)


@pytest.mark.parametrize(("channels", "kept"), [(48, (24, 32, 36, 38)), (96, (48, 64, 72, 76))])
def test_published_heads_keep_the_published_scores(channels, kept):
    assert PRESETS["drsformer"].kept_scores(channels) == kept


def test_kept_scores_are_exact_where_floating_point_is_not():
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert ModelConfig(topk_fractions=("29/100", "0.29")).kept_scores(100) == (29, 29)


def test_hidden_channels_are_cut_to_an_integer():
    config = PRESETS["drsformer"]
    assert [config.hidden(config.channels(level)) for level in range(4)] == [127, 255, 510, 1021]


def test_saved_convolutions_without_remat_are_rejected():
    with pytest.raises(InputError, match=r"model\.save-convolutions is True; expected False, or"):
        ModelConfig(save_convolutions=True)


def test_architecture_leaves_out_what_changes_no_parameter():
    config = PRESETS["drsformer"]
    running = {
        **{"dtype": "bfloat16", "param_dtype": "float64", "remat": True, "unroll": True},
        **{"save_convolutions": True, "kernels": "pallas"},
    }
    assert dataclasses.replace(config, **running).architecture() == config.architecture()
    every = {field.name for field in dataclasses.fields(ModelConfig)}
    assert config.architecture().keys() == every - running.keys()


def test_configuration_is_the_same_after_a_passage_through_a_file(tmp_path):
    data = DataConfig(
        sources=(("rain200l", 3), ("rain200h", 0.5)),
        crop_size=384,
        progressive=RESTORMER_PATCHES,
        mixup=True,
    )
    config = TrainConfig(model=PRESETS["tiny"], data=data, mesh=MeshConfig(fsdp=2), seed=7)
    write_config(tmp_path, to_dict(config))
    assert read_config(tmp_path) == config


def of_version_1() -> dict[str, Any]:
    """What older versions wrote, which had no version, with a strong far rain."""
    values = json.loads(json.dumps(to_dict(TrainConfig(seed=7, data=DataConfig(augment=False)))))
    assert values.pop("version") == 2
    rain = values["data"]["rain"]
    for name in ("ragged_share", "ragged_layers", "ragged_noise", "veil_share", "fine_noise"):
        del rain[name]
    rain["fine_length"], rain["fine_blur"] = [10, 45], [0.4, 0.7]
    rain["fine_density"], rain["fine_contrast"] = [0.004, 0.05], [0.3, 0.4]
    return values


VERSION_1 = TrainConfig(
    seed=7,
    data=DataConfig(
        augment=False,
        rain=RainConfig(
            ragged_share=0.0, veil_share=1.0, **noise("fine_noise", contrast=(0.3, 0.4))
        ),
    ),
)
"""What it means: the rain of then."""


def test_file_without_a_version_is_read_as_version_1(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(of_version_1()))
    assert read_config(tmp_path) == VERSION_1


def test_parts_that_an_older_file_lacks_have_their_defaults(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"version": 1, "seed": 7}))
    assert read_config(tmp_path) == TrainConfig(seed=7)


def test_written_files_have_a_version(tmp_path):
    write_config(tmp_path, {"model": {}})
    assert json.loads((tmp_path / "config.json").read_text()) == {"version": 2, "model": {}}


def test_renamed_fields_of_older_files_are_read(monkeypatch, tmp_path):
    values = of_version_1()
    values["data"]["turned"] = values["data"].pop("augment")
    values["first_seed"] = values.pop("seed")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=r"config\.json: a field of TrainConfig is \['first_seed'\]"
    ):
        read_config(tmp_path)
    monkeypatch.setattr(file, "_VERSION", 3)
    renamed = {
        3: {"symmetric": "data.augment", "first_seed": "seed"},
        2: {"data.turned": "symmetric", **file._RENAMED[2]},
    }
    monkeypatch.setattr(file, "_RENAMED", renamed)
    expected = VERSION_1
    assert read_config(tmp_path) == expected
    write_config(tmp_path, to_dict(expected))
    assert read_config(tmp_path) == expected


def test_every_new_name_of_a_renamed_field_is_one():
    fields = set(file._flat(dataclasses.asdict(TrainConfig())))
    for version, renamed in file._RENAMED.items():
        assert 1 < version <= file._VERSION
        assert not {old.replace("_", "-") for old in renamed} & fields
        assert {new.replace("_", "-") for new in renamed.values()} <= fields
    added = set().union(*file._ADDED.values())
    assert {name.replace("_", "-") for name in added} <= fields


@pytest.mark.parametrize("version", [3, 0, "1", None, True])
def test_version_that_is_not_known_is_rejected(tmp_path, version):
    write_config(tmp_path, {**to_dict(TrainConfig()), "version": version})
    with pytest.raises(
        InputError, match=r"config\.json: version is .*; expected at most 2, or a n"
    ):
        read_config(tmp_path)


def test_restormer_patches_are_the_published_table():
    sides, batches = (128, 160, 192, 256, 320, 384), (64, 40, 32, 16, 8, 8)
    steps = (0, 92_000, 156_000, 204_000, 240_000, 276_000)
    assert tuple(zip(steps, sides, batches, strict=True)) == RESTORMER_PATCHES
    growing = DataConfig(crop_size=384, progressive=RESTORMER_PATCHES)
    assert growing.stages() == RESTORMER_PATCHES
    assert DataConfig().stages() == ((0, 128, 16),)

"""The parts of train.py, in this process: where it starts, what it rejects and warns of."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import signal
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import rejected
from recipe import SMALL

import train
from drsformer_jax.config import DataConfig, MeshConfig, OptimConfig, RainConfig, TrainConfig
from drsformer_jax.config.file import load_config
from drsformer_jax.data.sources import open_training
from drsformer_jax.errors import InputError
from drsformer_jax.report.results import Kept
from drsformer_jax.scoring.evaluation import Scores
from drsformer_jax.sharding import make_mesh
from drsformer_jax.training.checkpoint import Run
from drsformer_jax.training.hardware import memory_in_one_line
from drsformer_jax.training.optim import schedule_warning
from drsformer_jax.training.starting import (
    announce,
    batches_in_words,
    check_configuration,
    resumed,
)

CONFIG = TrainConfig(
    model=SMALL,
    data=DataConfig(crop_size=16, global_batch=2),
    optim=OptimConfig(learning_rate=1e-3, constant_steps=6, cosine_steps=4),
    mesh=MeshConfig(data=1),
    steps=10,
)


def command(config: TrainConfig, **flags: object) -> train.Command:
    return train.Command(Path("config.py"), Path("runs/a"), config, **flags)


def begun(old: TrainConfig, trained_on: str = "") -> types.SimpleNamespace:
    """A run with a checkpoint of that configuration."""
    return types.SimpleNamespace(
        name="runs/a", config=lambda step: old, trained_on=lambda step: trained_on
    )


def test_batches_of_a_resumed_run_are_those_of_the_steps_that_follow(place):
    pairs = dataclasses.replace(CONFIG.data, train=str(place / "pairs"))
    config = dataclasses.replace(CONFIG, data=pairs)
    training = types.SimpleNamespace(
        config=config, mesh=make_mesh(config.mesh), sources=open_training(config.data, config.seed)
    )

    def crops(start: int, count: int) -> list[np.ndarray]:
        stream = train.sharded_batches(training, start)
        found = [np.asarray(images["rainy"]) for _, images in itertools.islice(stream, count)]
        stream.close()
        return found

    straight = crops(0, 5)
    assert len({images.tobytes() for images in straight}) == 5
    np.testing.assert_array_equal(crops(3, 2), straight[3:])


@pytest.mark.parametrize("best", [4, 6])
def test_a_checkpoint_is_not_evaluated_again_for_the_report(monkeypatch, best):
    config, pairs, written = dataclasses.replace(CONFIG, steps=6), [], []
    scores = [Scores(20.0, 0.5, 25.0, 0.75)]
    pushed = []
    run = types.SimpleNamespace(
        best_step=lambda: best,
        restore_params=lambda step, model: step,
        folder=Path("run"),
        push=lambda: pushed.append(len(written)),
    )
    training = types.SimpleNamespace(
        config=config,
        run=run,
        command=command(config),
        validation=pairs,
        stop=types.SimpleNamespace(asked=lambda: False),
    )
    evaluated = []
    monkeypatch.setattr(train, "Restorer", lambda model, params: f"network of step {params}")
    monkeypatch.setattr(train, "write_results", lambda *what, title: written.append((*what, title)))
    monkeypatch.setattr(
        train, "shared_scores", lambda restorer, *_: evaluated.append(restorer) or scores
    )
    train.report(training, 6, (scores, Kept()), 0.0)
    network = f"network of step {best}"
    assert evaluated == ([] if best == 6 else [network])
    assert written[0][2:5] == (network, pairs, scores)
    assert written[0][-1] == f"a, step {best}"
    assert pushed == [1]  # After they are written.


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 7}, "seed"),
        ({"optim": dataclasses.replace(CONFIG.optim, b1=0.8)}, r"optim\.b1"),
        ({"data": dataclasses.replace(CONFIG.data, mixup=True)}, r"data\.mixup"),
    ],
)
def test_changed_configuration_is_rejected_unless_allowed(change, named, capsys):
    changed = dataclasses.replace(CONFIG, **change)
    with pytest.raises(InputError, match=f"trained with another {named} .*--allow-changes"):
        check_configuration(CONFIG, changed, "runs/a")
    assert capsys.readouterr().out.startswith("- ")
    check_configuration(CONFIG, changed, "runs/a", allow_changes=True)
    assert capsys.readouterr().out.startswith("- ")


def test_another_architecture_is_rejected_even_if_changes_are_allowed():
    wider = dataclasses.replace(CONFIG, model=dataclasses.replace(SMALL, dim=2 * SMALL.dim))
    with pytest.raises(InputError, match="another architecture: dim"):
        check_configuration(CONFIG, wider, "runs/a", allow_changes=True)


def test_other_periods_and_another_mesh_are_shown_and_taken(capsys):
    changed = dataclasses.replace(CONFIG, steps=20, log_every=5, mesh=MeshConfig(fsdp=2))
    check_configuration(CONFIG, changed, "runs/a")
    assert "- steps 10\n+ steps 20\n" in capsys.readouterr().out


def test_steps_beyond_the_schedule_are_warned_of():
    assert schedule_warning(dataclasses.replace(CONFIG, steps=11)) == (
        "warning: --steps is 11, and the learning rate schedule ends at step 10; all later steps "
        "have 1e-06 (--optim.constant-steps and --optim.cosine-steps extend the schedule)"
    )
    configs = (Path(train.__file__).parent / "configs").glob("*.py")
    for config in (CONFIG, *map(load_config, configs)):
        assert schedule_warning(config) == ""


def test_platform_without_a_device_is_one_line(run):
    without = {**run.environment, "JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    result = run("train", "--config", "config.py", environment=without)
    rejected(result, "JAX finds no device .*; expected JAX_PLATFORMS")


def test_memory_of_a_device_that_is_too_small_is_reported_in_one_line():
    found = "RESOURCE_EXHAUSTED: Out of memory allocating 22222386616 bytes.\nmore"
    with (
        pytest.raises(InputError, match=r"does not fit .* 22222386616 bytes\.\); expected a"),
        memory_in_one_line(),
    ):
        raise jax.errors.JaxRuntimeError(found)
    with pytest.raises(jax.errors.JaxRuntimeError), memory_in_one_line():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_the_flags_that_save_memory_are_taken(monkeypatch):
    with pytest.raises(InputError) as error, memory_in_one_line():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    flags = re.findall(r"--[\w.-]+", str(error.value))
    assert flags == ["--mesh.device-batch", "--model.remat", "--model.save-convolutions"]
    config = train.parse_command([flags[0], "2", flags[1]]).train
    assert (config.mesh.device_batch, config.model.remat) == (2, True)


@pytest.mark.parametrize("train_on", ["pairs", "sources", "synthetic"])
def test_older_runs_go_on_unless_they_train_on_rain_that_has_changed(train_on):
    """Fields of rain that older versions did not have stop no run on other pairs."""
    data = {"train": train_on, "validation": "other"}
    if train_on == "sources":  # Instead of `train`, whose default is synthetic.
        data = {"sources": (("pairs", 1.0),), "validation": "other"}
    before = dataclasses.replace(CONFIG, data=DataConfig(**data, rain=RainConfig(veil_share=1.0)))
    after = dataclasses.replace(CONFIG, data=DataConfig(**data))
    if train_on != "synthetic":
        check_configuration(before, after, "runs/a")
    else:
        with pytest.raises(InputError, match=r"was trained with another data\.rain\.veil-share \("):
            check_configuration(before, after, "runs/a")


@pytest.mark.parametrize("given", ["", "other.pth"])
def test_a_run_goes_on_with_what_it_began_from_and_another_start_is_rejected(
    given, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    old = dataclasses.replace(CONFIG, init_from="start.pth")
    for same in ("", "start.pth", "./start.pth", str(tmp_path / "start.pth")):
        new = dataclasses.replace(CONFIG, init_from=same, steps=20)
        found = resumed(new, begun(old), 4, "", allow_changes=False)
        assert found == dataclasses.replace(new, init_from="start.pth")
        assert "init-from" not in capsys.readouterr().out
    new = dataclasses.replace(CONFIG, init_from="other.pth")
    if not given:  # Or it is forgotten, as by older versions.
        assert resumed(new, begun(CONFIG), 4, "", allow_changes=False) == CONFIG
        assert "has begun, so --init-from other.pth has no effect" in capsys.readouterr().out
        return
    with pytest.raises(InputError, match=r"^runs/a has begun from start\.pth; expected another --"):
        resumed(new, begun(old), 4, "", allow_changes=True)


@pytest.mark.parametrize("before", ["", "digest", "another"])
def test_training_pairs_that_are_not_those_of_the_checkpoint_are_warned_of(before, capsys):
    resumed(CONFIG, begun(CONFIG, before), 4, "digest", allow_changes=False)
    line = "warning: the training pairs are not those of the checkpoint of step 4\n"
    assert capsys.readouterr().out == (line if before == "another" else "")


PAIRS = {"train": "pairs", "validation": "pairs"}


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (PAIRS, {"photographs": "other"}),
        (PAIRS, {"window": 256}),
        (PAIRS, {"rains": 3, "validation_rains": 5}),
        ({"validation": "pairs"}, {"validation_rains": 5}),
        ({"train": "pairs"}, {"rains": 3, "window": 256}),
        ({"sources": (("a", 1.0), ("b", 2.0))}, {"train": "other"}),
        ({"progressive": ((0, 64, 8),)}, {"global_batch": 4}),
    ],
)
def test_fields_that_nothing_depends_on_stop_no_run(data, change, capsys):
    before, after = (
        dataclasses.replace(CONFIG, data=DataConfig(**each)) for each in (data, data | change)
    )
    check_configuration(before, after, "runs/a")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "change"),
    [
        ({"train": "pairs"}, {"photographs": "other"}),
        ({"validation": "pairs"}, {"photographs": "other"}),
        ({"validation": "pairs"}, {"window": 256}),
        ({"validation": "pairs"}, {"rains": 3}),
        ({"train": "pairs"}, {"validation_rains": 5}),
        (PAIRS, {"train": "other"}),
        (PAIRS, {"global_batch": 4}),
    ],
)
def test_fields_that_pairs_or_batches_depend_on_do(data, change):
    before, after = (
        dataclasses.replace(CONFIG, data=DataConfig(**each)) for each in (data, data | change)
    )
    with pytest.raises(InputError, match=r"was trained with another data\.[\w-]+ \("):
        check_configuration(before, after, "runs/a")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "crops of a step: 16 of 128x128 pixels"),
        (
            {"progressive": ((0, 64, 8), (9000, 128, 4))},
            "crops of a step: 8 of 64x64 pixels, 4 of 128x128 pixels from step 9,000",
        ),
        (
            {"sources": (("rain200l", 3.0), ("rain200h", 1.0))},
            "crops of a step: 16 of 128x128 pixels; their shares are 0.75 of rain200l, "
            "0.25 of rain200h",
        ),
    ],
)
def test_announcement_has_the_batches_and_the_sources(data, words):
    assert batches_in_words(DataConfig(**data)) == words


def test_announcement_counts_the_devices_of_the_mesh(tmp_path, capsys):
    run = types.SimpleNamespace(folder=tmp_path, name="runs/a")
    state = types.SimpleNamespace(params={"kernel": np.zeros(3)}, step=4)
    announce(run, CONFIG, make_mesh(MeshConfig(data=2)), state, 5, 6)
    assert "5 training and 6 validation pairs, 2 cpu devices of 1 pro" in capsys.readouterr().out


def test_a_damaged_image_to_validate_on_ends_a_run_before_its_first_step(place, tmp_path):
    shutil.copytree(place / "pairs", tmp_path / "pairs")
    path = tmp_path / "pairs/input/1.png"
    path.write_bytes(path.read_bytes()[:200])
    data = dataclasses.replace(
        CONFIG.data, train=str(place / "pairs"), validation=str(tmp_path / "pairs")
    )
    asked = dataclasses.replace(
        command(dataclasses.replace(CONFIG, data=data)), workdir=tmp_path / "run"
    )
    with (
        pytest.raises(InputError, match=r"input/1\.png is no image that can be read"),
        train.opened(asked),
    ):
        pass


def test_signals_end_a_program_that_writes_its_cache_and_the_run_is_free_again(
    monkeypatch, tmp_path
):
    """Afterwards they ask the run to stop."""
    handlers = []

    def interrupted(*_: object) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "cached", interrupted)
    config = dataclasses.replace(CONFIG, data=DataConfig(crop_size=16, rains=1))
    asked = dataclasses.replace(command(config), workdir=tmp_path)
    with pytest.raises(KeyboardInterrupt), train.opened(asked):
        pass
    assert handlers == [signal.getsignal(signal.SIGTERM)]
    with Run(tmp_path, keep=1):
        pass


def test_a_signal_before_the_cache_is_written_leaves_it_out(monkeypatch, tmp_path):
    state = train.initial_state

    def interrupted(*arguments: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return state(*arguments)

    monkeypatch.setattr(train, "initial_state", interrupted)
    monkeypatch.setattr(train, "cached", lambda *_: pytest.fail("the cache is written"))
    config = dataclasses.replace(CONFIG, data=DataConfig(crop_size=16, rains=1))
    asked = dataclasses.replace(command(config), workdir=tmp_path)
    with train.opened(asked) as (training, _):
        assert training.stop.asked()
        assert len(training.sources) == 1

"""A run on disk: what is saved is restored, and the best checkpoint is kept and chosen."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.metadata import checkpoint as metadata
from recipe import SMALL

from drsformer_jax.config import DataConfig, OptimConfig, RainConfig, TrainConfig
from drsformer_jax.config.file import to_dict, write_config
from drsformer_jax.errors import InputError
from drsformer_jax.training import TrainState
from drsformer_jax.training.checkpoint import Run
from drsformer_jax.training.orbax_quirks import _is_news

CONFIG = TrainConfig(model=SMALL, optim=OptimConfig(ema_decay=0.9))
NAN = float("nan")


def state_at(step: int) -> TrainState:
    """A state in which no two leaves are equal."""
    leaves = {
        name: {"kernel": jnp.arange(6.0).reshape(2, 3) + 10 * number + step}
        for number, name in enumerate(("params", "opt_state", "ema"), 1)
    }
    return TrainState(jnp.int32(step), jnp.int32(step - 1), **leaves)


def like(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def scored(folder: Path, scores: dict[int, float], protocol: str = "did_ddn", keep: int = 1) -> Run:
    """A run that is open, with a checkpoint and a score at each step."""
    run = Run(folder, keep)
    for step, psnr in scores.items():
        run.save(CONFIG, state_at(step))
        run.score(step, protocol, psnr, 0.9)
    return run


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A run with checkpoints at steps 2, 4 and 6 of the same scores."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    with scored(folder, {2: 20.0, 4: 20.0, 6: 20.0}, keep=3) as run:
        assert run.steps() == [2, 4, 6]
    return folder


@pytest.fixture
def copy(three, tmp_path) -> Path:
    return shutil.copytree(three, tmp_path / "copy")


def write_scores(folder: Path, scores: dict[int, tuple[str, float]]) -> None:
    document = {
        step: {"protocol": protocol, "psnr": psnr, "ssim": 0.9}
        for step, (protocol, psnr) in scores.items()
    }
    (folder / "validation.json").write_text(json.dumps(document))


def test_every_leaf_of_a_saved_state_is_restored(three):
    with Run(three, keep=None) as run:
        for step in (2, 6):
            expected = state_at(step)
            found = run.restore(step, like(expected))
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            assert found.ema is not None


def test_ema_that_a_checkpoint_lacks_starts_from_its_parameters(tmp_path):
    config = dataclasses.replace(CONFIG, optim=OptimConfig())
    state = state_at(2)
    with Run(tmp_path / "run", keep=1) as run:
        run.save(config, state._replace(ema=None))
    with Run(tmp_path / "run", keep=None) as run:
        found = run.restore(2, like(state))
        jax.tree.map(np.testing.assert_array_equal, found.ema, state.params)
        assert run.restore(2, like(state)._replace(ema=None)).ema is None


def test_best_and_latest_checkpoint_are_kept(tmp_path):
    with scored(tmp_path / "run", {2: 20.0, 4: 25.0, 6: 22.0, 8: 21.0}) as run:
        assert run.best_step() == 4
    with Run(tmp_path / "run", keep=None) as run:
        assert run.steps() == [4, 8]
        assert run.best_step() == 4


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({2: ("did_ddn", 20.0), 4: ("did_ddn", 25.0), 6: ("did_ddn", 22.0)}, 4),
        ({2: ("did_ddn", 25.0), 4: ("did_ddn", 25.0), 6: ("did_ddn", 22.0)}, 4),
        # Scores of two protocols do not compare.
        ({2: ("rain200_spa", 30.0), 4: ("did_ddn", 25.0), 6: ("did_ddn", 22.0)}, 4),
        ({2: ("did_ddn", 30.0), 4: ("did_ddn", 31.0), 6: ("rain200_spa", 22.0)}, 6),
        ({2: ("did_ddn", NAN), 4: ("did_ddn", 25.0), 6: ("did_ddn", 22.0)}, 4),
        ({2: ("did_ddn", 25.0), 4: ("did_ddn", NAN), 6: ("did_ddn", NAN)}, 2),
        ({2: ("did_ddn", 25.0), 4: ("did_ddn", 24.0)}, 2),
        # A score whose checkpoint is gone.
        ({1: ("did_ddn", 40.0), 2: ("did_ddn", 20.0), 4: ("did_ddn", 25.0)}, 4),
        ({}, 6),
    ],
)
def test_best_checkpoint_has_the_highest_psnr_of_the_latest_protocol(copy, scores, best):
    write_scores(copy, scores)
    with Run(copy, keep=None) as run:
        assert run.best_step() == best


def test_scores_of_later_steps_are_dropped_when_a_run_begins_again(copy):
    write_scores(copy, {step: ("did_ddn", 20.0 + step) for step in (2, 4, 6)})
    shutil.rmtree(copy / "checkpoints" / "6")
    with Run(copy, keep=3) as run:
        run.begin(CONFIG, 4)
        assert [run.is_scored(step) for step in (2, 4, 6)] == [True, True, False]
    assert list(json.loads((copy / "validation.json").read_text())) == ["2", "4"]


OTHER_PAIRS = [
    {"validation": "other"},
    {"validation": "synthetic", "validation_rains": 5},
    {"validation": "synthetic", "rain": RainConfig(ragged_share=0.1)},
    {"validation": "synthetic", "photographs": "other"},
]


@pytest.mark.parametrize("other", OTHER_PAIRS)
def test_scores_of_other_pairs_are_dropped_when_a_run_begins_again(copy, other):
    before = dataclasses.replace(CONFIG, data=DataConfig(validation=other["validation"]))
    if other["validation"] == "other":
        before = CONFIG
    config = dataclasses.replace(CONFIG, data=DataConfig(**other))
    write_scores(copy, {step: ("did_ddn", 20.0 + step) for step in (2, 4, 6)})
    write_config(copy, to_dict(before))
    with Run(copy, keep=3) as run:
        run.begin(config, 6)
        assert not any(map(run.is_scored, (2, 4, 6)))
        run.score(6, "did_ddn", 1.0, 0.1)
        assert run.best_step() == 6
    with Run(copy, keep=3) as run:  # Though the checkpoint is still that of the first pairs.
        run.begin(before, 6)
        assert not run.is_scored(6)


def test_scores_of_a_folder_whose_pairs_have_changed_are_dropped(copy):
    write_scores(copy, {2: ("did_ddn", 22.0)})  # Before scores said of which pairs they are.
    for pairs, scored in (("a", [2, 4]), ("a", [2, 4]), ("b", [2])):
        with Run(copy, keep=3) as run:
            run.begin(CONFIG, 6, validated=pairs)
            if not run.is_scored(4) and pairs == "a":
                run.score(4, "did_ddn", 30.0, 0.9)
            assert [step for step in (2, 4, 6) if run.is_scored(step)] == scored
    with Run(copy, keep=3) as run:
        run.begin(CONFIG, 6, validated="b")
        run.score(6, "did_ddn", 25.0, 0.9)
        assert run.best_step() == 6


def test_a_checkpoint_says_what_pairs_it_was_trained_on_and_an_older_one_does_not(copy):
    with Run(copy, keep=3) as run:
        run.begin(CONFIG, 6, trained="a")
        run.save(CONFIG, state_at(8))
        assert (run.trained_on(6), run.trained_on(8)) == ("", "a")
    (path,) = (copy / "checkpoints" / "8").glob("run/*metadata*")
    content = json.loads(path.read_text())
    del content["data"]["pairs"]
    path.write_text(json.dumps(content))
    with Run(copy, keep=None) as run:
        assert run.trained_on(8) == ""
        assert run.config(8) == CONFIG


@pytest.mark.parametrize(
    ("keep", "way_out"),
    [(3, "remove its folder to resume from the step before"), (None, "another step may be")],
)
def test_damaged_checkpoint_is_reported_with_a_way_out_for_training_and_for_others(
    copy, keep, way_out
):
    shutil.rmtree(copy / "checkpoints" / "6" / "run")
    with (
        Run(copy, keep) as run,
        pytest.raises(InputError, match=f"^checkpoint 6 of .*; expected a whole one; {way_out}$"),
    ):
        run.config(6)


def test_scores_of_the_same_pairs_are_kept_though_training_is_on_others(copy):
    before = dataclasses.replace(CONFIG, data=DataConfig(validation="pairs"))
    data = DataConfig(validation="pairs", train="other", rain=RainConfig(light=1.0), rains=3)
    write_scores(copy, {step: ("did_ddn", 20.0 + step) for step in (2, 4, 6)})
    write_config(copy, to_dict(before))
    with Run(copy, keep=3) as run:
        run.begin(dataclasses.replace(CONFIG, data=data, seed=5), 6)
        assert all(map(run.is_scored, (2, 4, 6)))


def test_share_of_images_without_rain_is_no_matter_of_validation(copy):
    for none in (0.05, 0.5):
        data = DataConfig(validation="synthetic", rain=RainConfig(none=none))
        with Run(copy, keep=3) as run:
            run.begin(dataclasses.replace(CONFIG, data=data), 6)
            run.score(6, "did_ddn", 20.0, 0.9)
    with Run(copy, keep=3) as run:
        run.begin(dataclasses.replace(CONFIG, data=DataConfig(validation="synthetic")), 6)
        assert run.is_scored(6)


def test_scores_that_are_not_finite_are_json_and_never_the_best(copy):
    with Run(copy, keep=3) as run:
        for step, psnr in ((2, float("inf")), (4, NAN)):
            run.score(step, "did_ddn", psnr, NAN)

    def reject(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads((copy / "validation.json").read_text(), parse_constant=reject)
    assert found["2"] == {"protocol": "did_ddn", "psnr": "inf", "ssim": None}
    assert found["4"] == {"protocol": "did_ddn", "psnr": None, "ssim": None}
    with Run(copy, keep=None) as run:
        assert run.best_step() == 2


def test_memory_that_is_too_small_is_no_damaged_checkpoint(three, monkeypatch):
    def restore(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    with Run(three, keep=None) as run:
        monkeypatch.setattr(run._manager, "restore", restore)
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            run.restore(2, like(state_at(2)))


def test_checkpoint_of_a_newer_version_is_named(copy):
    (path,) = (copy / "checkpoints" / "4").glob("run/*metadata*")
    content = json.loads(path.read_text())
    content["config"]["version"] = 99
    path.write_text(json.dumps(content))
    with Run(copy, keep=None) as run:
        line = rf"^checkpoint 4 of {copy}: version is 99; expected at most \d+, or a newer dr"
        with pytest.raises(InputError, match=line):
            run.config(4)
        with pytest.raises(InputError, match=rf"^checkpoint 3 of {copy} cannot be read \("):
            run.config(3)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "5",
        '{"two": {"protocol": "did_ddn", "psnr": 20}}',
        '{"2": 20}',
        '{"2": {"psnr": 20}}',
        '{"2": {"protocol": "did_ddn"}}',
        '{"2": {"protocol": "did_ddn", "psnr": "high"}}',
    ],
)
def test_damaged_scores_are_reported_and_the_lock_is_free_again(copy, text):
    path = copy / "validation.json"
    path.write_text(text)
    for keep in (3, None):
        with pytest.raises(InputError, match=r"validation\.json is damaged .*; expected"):
            Run(copy, keep)
    path.unlink()
    with Run(copy, keep=3) as run:
        assert run.steps() == [2, 4, 6]


def test_scores_that_are_not_utf8_are_damaged_too(copy):
    (copy / "validation.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="is damaged"):
        Run(copy, keep=3)


def test_run_belongs_to_one_training_program_at_a_time(tmp_path):
    with Run(tmp_path / "run", keep=1):
        with pytest.raises(InputError, match="run is being trained by another process; expected"):
            Run(tmp_path / "run", keep=1)
        Run(tmp_path / "run", keep=None)
    with Run(tmp_path / "run", keep=1):
        pass


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_disk_that_is_full_at_the_metadata_of_a_checkpoint_is_one_error(
    tmp_path, monkeypatch, caplog, failing
):
    """A later write adds to the metadata that the first has written."""
    write, writes = metadata._MetadataStoreImpl.write, itertools.count(1)

    def full(self, path, *rest):
        if next(writes) >= failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(self, path, *rest)

    monkeypatch.setattr(metadata._MetadataStoreImpl, "write", full)
    with (
        pytest.raises(InputError, match=r"cannot be written .*No space left.* of steps \[\] are"),
        Run(tmp_path, keep=1) as run,
    ):
        run.save(CONFIG, state_at(2))
    assert next(writes) > failing
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("text", "is_told"),
    [("Waiting for previous save to complete took 1.2 seconds. If", False), ("a fault", True)],
)
def test_that_a_save_waited_for_the_one_before_is_no_warning(text, is_told):
    record = logging.LogRecord("absl", logging.WARNING, "", 1, text, (), None)
    assert _is_news(record) == is_told

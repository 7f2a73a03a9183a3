"""Scores of pairs that several processes shard."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drsformer_jax.config import ModelConfig
from drsformer_jax.data.pairs import Pair, Shard
from drsformer_jax.nn.functional import Params
from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring import evaluation
from drsformer_jax.scoring.evaluation import evaluate, shared_scores
from drsformer_jax.training.processes import interleaved


class Memory:
    """Pairs of noise, kept in memory; `read` counts how often each is read."""

    def __init__(self, count: int) -> None:
        draw = np.random.default_rng(0).integers
        self._pairs = [draw(0, 256, (2, 16, 16, 3), dtype=np.uint8) for _ in range(count)]
        self.read = [0] * count

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        self.read[index] += 1
        rainy, clean = self._pairs[index]
        return {"name": f"{index}.png", "rainy": rainy, "clean": clean}

    def size(self, index: int) -> tuple[int, int]:
        return 16, 16


@pytest.mark.parametrize(("count", "processes"), [(5, 4), (9, 4), (4, 4), (3, 4), (7, 1), (8, 3)])
def test_rows_of_several_processes_come_back_in_the_order_of_the_pairs(count, processes):
    pairs = Memory(count)
    most = -(-count // processes)
    gathered = np.full((processes, most, 2), np.nan)
    for process in range(processes):
        shard = Shard(pairs, process, processes)
        for index in range(len(shard)):
            name = shard[index]["name"]
            assert name == f"{shard.global_index(index)}.png"
            gathered[process, index] = float(name.removesuffix(".png")), process
    rows = interleaved(gathered, count)
    assert rows[:, 0].tolist() == list(range(count))
    assert pairs.read == [1] * count


def test_a_process_alone_scores_every_pair_once_and_shows_what_it_restored(
    network: tuple[ModelConfig, Params],
):
    restorer, pairs = Restorer(*network), Memory(3)
    seen = []
    scores = shared_scores(restorer, pairs, "did_ddn", seen=lambda *each: seen.append(each))
    assert pairs.read == [1, 1, 1]
    expected = list(evaluate(restorer, pairs, "did_ddn"))
    assert scores == [each for _, _, each in expected]
    for index, (found, wanted) in enumerate(zip(seen, expected, strict=True)):
        assert (found[0], found[1]["name"], found[3]) == (index, f"{index}.png", wanted[2])
        np.testing.assert_array_equal(found[2], wanted[1])
    assert sum(restorer.programs.values()) == 6


def test_only_an_image_whose_program_is_compiled_is_limited(
    network: tuple[ModelConfig, Params], monkeypatch: pytest.MonkeyPatch
):
    waits = []
    monkeypatch.setattr(
        evaluation, "waits_for", lambda what, limited=True: waits.append((what, limited))
    )
    shared_scores(Restorer(*network), Memory(2), "did_ddn")
    images = [(what, limited) for what, limited in waits if what.startswith("image ")]
    first, second = (f"image {number} of 2 of the evaluation" for number in (1, 2))
    assert images == [(first, True), (first, False), (second, True), (second, True)]


def test_an_evaluation_stops_before_the_next_image(network: tuple[ModelConfig, Params]):
    restorer, pairs = Restorer(*network), Memory(3)
    asked = iter([False, True])
    assert shared_scores(restorer, pairs, "did_ddn", stop=lambda: next(asked)) is None
    assert sum(restorer.programs.values()) == 1


def test_each_device_restores_an_image_at_a_time_and_the_scores_are_the_same(
    network: tuple[ModelConfig, Params],
):
    several, pairs = Restorer(*network, devices=3), Memory(4)
    seen: list[int] = []
    scores = shared_scores(several, pairs, "did_ddn", seen=lambda index, *_: seen.append(index))
    assert pairs.read == [1] * 4
    assert seen == [0, 1, 2, 3]
    assert several.programs == {(3, (16, 16)): 2}
    expected = shared_scores(Restorer(*network), pairs, "did_ddn")
    for found, wanted in zip(scores, expected, strict=True):
        np.testing.assert_allclose(
            dataclasses.astuple(found), dataclasses.astuple(wanted), rtol=1e-4
        )
    assert scores == [each for *_, each in evaluate(several, pairs, "did_ddn")]
    asked = iter([False, True])
    assert shared_scores(several, pairs, "did_ddn", stop=lambda: next(asked)) is None

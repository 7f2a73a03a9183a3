"""Images of any size, depth and number are restored, few programs serving them all."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest

import drsformer_jax
from drsformer_jax.errors import InputError
from drsformer_jax.nn.functional import apply
from drsformer_jax.nn.rows import AT_ONCE, Shards, Strips
from drsformer_jax.ops.implementations import jit_for
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring import restorer as restorer_module
from drsformer_jax.restoring.memory import forward_bytes, strips_bytes
from drsformer_jax.restoring.program import compiled_for, restore_batch
from drsformer_jax.types import Array

TWENTY = [(9 + 3 * i, 80 - 2 * i) for i in range(20)]


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    white = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, white, (*shape, 3), dtype, endpoint=True)


@pytest.fixture(scope="module")
def restorer(network):
    """Everything goes through the buckets of the twenty sizes."""
    restorer = Restorer(*network)
    restorer.plan(TWENTY)
    return restorer


applied = jit_for("cpu", apply, static_argnums=0)


def exactly(network, rainy: np.ndarray) -> np.ndarray:
    """The official way: pad by reflection to multiples of 8, restore, cut, clamp, round."""
    config, params = network
    white = np.iinfo(rainy.dtype).max
    h, w, _ = rainy.shape
    padded = np.pad(rainy / white, [(0, -h % 8), (0, -w % 8), (0, 0)], mode="reflect")
    restored = applied(config, params, jax.numpy.asarray(padded[None], config.dtype))
    return np.rint(np.clip(np.float64(restored[0, :h, :w]), 0, 1) * white).astype(rainy.dtype)


def assert_differ_by_rounding(found: np.ndarray, expected: np.ndarray, levels: int = 1) -> None:
    assert found.dtype == expected.dtype
    difference = np.abs(found.astype(np.int64) - expected)
    assert difference.max() <= levels
    assert np.mean(difference > 0) < 0.01 * levels**2


def test_twenty_images_of_twenty_sizes_take_three_compilations(network):
    restorer = Restorer(*network)
    restorer.plan(TWENTY)
    program = compiled_for("cpu")
    before = program._cache_size()
    restored = [restorer(noise(*size)) for size in TWENTY]
    assert program._cache_size() - before <= 3
    assert len(restorer.programs) <= 3
    assert sum(restorer.programs.values()) == 20
    for size, image in list(zip(TWENTY, restored, strict=True))[::12]:
        assert_differ_by_rounding(image, exactly(network, noise(*size)))


@pytest.mark.parametrize("size", [(1, 1), (7, 12)])
def test_any_size_is_restored_as_the_official_program_does(network, restorer, size):
    assert_differ_by_rounding(restorer(noise(*size)), exactly(network, noise(*size)))


def test_sixteen_bits_are_restored_in_floating_point(network, restorer):
    deep = noise(20, 30, dtype=np.uint16)
    assert_differ_by_rounding(restorer(deep), exactly(network, deep), levels=2)
    assert len(np.unique(restorer(deep) % 257)) > 200, "not eight bits made wider"


def test_batch_equals_its_images_one_by_one(restorer):
    batch = noise(3, 20, 30)
    restored = restorer(batch)
    assert restored.shape == batch.shape
    for image, alone in zip(restored, batch, strict=True):
        assert_differ_by_rounding(image, restorer(alone))


def test_batch_beyond_memory_is_restored_one_by_one(network):
    restorer = Restorer(*network, memory=forward_bytes(network[0], 24, 32))
    expected = [restorer(image) for image in noise(2, 20, 30)]
    np.testing.assert_array_equal(restorer(noise(2, 20, 30)), expected)


def test_threads_share_a_restorer(restorer):
    images = [noise(8 + i, 30) for i in range(8)]
    expected = [restorer(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(restorer, images * 3), expected * 3, strict=True):
            np.testing.assert_array_equal(found, alone)


def test_library_needs_four_lines(model, network):
    restorer = drsformer_jax.load(model)
    assert_differ_by_rounding(restorer(noise(20, 30)), exactly(network, noise(20, 30)))


def test_tiles_are_near_to_the_whole_image_and_of_one_size(network):
    whole, tiled = Restorer(*network, tile=0), Restorer(*network, tile=48, overlap=16)
    image = noise(100, 90)
    error = whole(image).astype(float) - tiled(image)
    assert 0 < np.sqrt(np.mean(error**2)) < 2
    assert tiled.programs == {(1, (48, 48)): 9}
    small = noise(41, 44)
    np.testing.assert_array_equal(tiled(small), whole(small))


def test_images_beyond_memory_are_restored_in_strips_exactly(network):
    config, _ = network
    small = Restorer(*network, memory=strips_bytes(config, 264, 40, 32))
    assert small.rows((64, 40)) == AT_ONCE
    assert small.rows((264, 40)) == Strips(height=32)
    assert small.bucket((259, 37)) == (264, 40), "the ladder's bucket is too large"
    image, whole = noise(259, 37), Restorer(*network, tile=0)
    whole.plan([image.shape[:2]])
    assert_differ_by_rounding(small(image), whole(image))


def test_accelerators_share_images_beyond_the_memory_of_one_exactly(network):
    config, _ = network
    several = Restorer(*network, memory=forward_bytes(config, 104, 144), devices=3)
    assert several.rows((96, 96)) == AT_ONCE
    assert several.rows((136, 144)) == Shards(count=3)
    assert several.bucket((131, 141)) == (168, 160), "rows for three devices that halve them"
    image = noise(131, 141)
    assert_differ_by_rounding(several(image), Restorer(*network, tile=0)(image))


def test_batch_takes_as_many_as_memory_holds(network):
    config, _ = network
    two = Restorer(*network, tile=0, memory=2 * forward_bytes(config, 24, 32))
    two.batch([noise(20, 30)] * 3, 4)
    assert two.programs == {(2, (24, 32)): 2}


def test_overlap_without_tiles_is_rejected(network):
    with pytest.raises(InputError, match="the overlap is 32, the tile auto; expected a tile's"):
        Restorer(*network, overlap=32)


def test_images_of_a_bucket_are_computed_together_and_come_back_in_order(restorer):
    sizes = [(20, 30), (70, 40), (30, 80), (33, 8), (7, 7)]
    deep = [noise(*size, dtype=np.uint16) for size in sizes[:1]]
    images = deep + [noise(*size) for size in sizes[1:]]
    before = Counter(restorer.programs)
    together = restorer.batch(images, 3)
    assert restorer.programs - before == {(3, (32, 80)): 1, (3, (72, 48)): 1}, "one is filled up"
    for found, image in zip(together, images, strict=True):
        assert found.shape == image.shape
        assert_differ_by_rounding(found, restorer(image), levels=257 if found.itemsize > 1 else 1)


def test_narrow_type_is_near_and_not_the_same(model, network):
    image = noise(20, 30)
    narrow = drsformer_jax.load(model, dtype="bfloat16")
    assert narrow.config.dtype == "bfloat16"
    error = narrow(image).astype(float) - exactly(network, image)
    assert 0 < np.sqrt(np.mean(error**2)) < 2


def test_kernels_that_are_asked_for_change_nothing_on_other_hardware(model, network):
    image = noise(20, 30)
    restorer = drsformer_jax.load(model, kernels="pallas")
    assert restorer.config.kernels == "pallas"
    np.testing.assert_array_equal(restorer(image), drsformer_jax.load(model)(image))


def out_of_memory(*fails: bool) -> Callable[..., Array]:
    """`restore_batch` as on a device whose memory is too small, for the calls that are to fail."""
    left = list(fails)

    def run(*arguments: Any) -> Array:
        if left and left.pop(0):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return restore_batch(*arguments)

    return run


def test_strips_are_tried_where_memory_runs_out_and_said_once(network, monkeypatch):
    restorer, image = Restorer(*network), noise(259, 37)
    restorer.plan([image.shape[:2]])
    expected = restorer(image)
    assert restorer.rows((264, 40)) == AT_ONCE
    monkeypatch.setattr(restorer_module, "restore_batch", out_of_memory(True, True))
    with pytest.warns(RuntimeWarning, match="^40x264 pixels took more .* in strips of") as warned:
        restored = restorer(image)
    assert_differ_by_rounding(restored, expected)
    strips = restorer.rows((264, 40))
    assert isinstance(strips, Strips)
    assert f"in strips of {strips.height} rows from here on" in str(warned[0].message)
    assert restorer.memory < strips_bytes(network[0], 264, 40, 2 * strips.height)
    np.testing.assert_array_equal(restorer(image), restored)
    # Once more it runs out: nothing is said, since warnings would fail this test.
    monkeypatch.setattr(restorer_module, "restore_batch", out_of_memory(True))
    assert_differ_by_rounding(restorer(image), expected)
    assert restorer.rows((264, 40)).height < strips.height


def test_fewer_images_at_a_time_are_tried_where_memory_runs_out(network, monkeypatch):
    restorer = Restorer(*network, tile=0, memory=4 * forward_bytes(network[0], 24, 32))
    expected = restorer(noise(4, 20, 30))
    restorer.programs.clear()
    monkeypatch.setattr(restorer_module, "restore_batch", out_of_memory(False, True))
    with pytest.warns(RuntimeWarning, match="computed 2 at a time from here on"):
        restored = restorer.batch([*noise(4, 20, 30)] * 2, 4)
    np.testing.assert_array_equal(restored, [*expected] * 2)
    assert restorer.programs == {(4, (24, 32)): 1, (2, (24, 32)): 2}


def test_devices_are_tried_where_memory_runs_out(network, monkeypatch):
    restorer, image = Restorer(*network, devices=3), noise(131, 141)
    expected = restorer(image)
    monkeypatch.setattr(restorer_module, "restore_batch", out_of_memory(True))
    with pytest.warns(RuntimeWarning, match="by 3 devices from here on"):
        assert_differ_by_rounding(restorer(image), expected)


def test_process_that_shares_with_others_tries_no_other_way(network, monkeypatch):
    restorer, image = Restorer(*network, devices=3), noise(131, 141)
    assert restorer.rows(restorer.bucket(image.shape[:2])) == AT_ONCE
    before = restorer.memory
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(restorer_module, "restore_batch", out_of_memory(True))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        restorer(image)
    assert restorer.memory == before


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        ("auto", "not even in strips; expected a smaller image"),
        (0, "memory at once; expected a smaller image"),
        (48, "not even in strips; expected smaller tiles"),
    ],
)
def test_memory_that_is_never_enough_is_reported_in_one_line(network, monkeypatch, tile, message):
    restorer = Restorer(*network, tile=tile)
    monkeypatch.setattr(restorer_module, "restore_batch", out_of_memory(*[True] * 50))
    with pytest.raises(InputError, match=rf"^\d+x\d+ pixels do not fit into .*{message}"):
        restorer(noise(64, 37))


def test_other_errors_of_the_device_are_let_out(network, monkeypatch):
    def fail(*_: Any) -> Array:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(restorer_module, "restore_batch", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        Restorer(*network)(noise(8, 8))


@pytest.mark.parametrize("process_wide", [False, True])
def test_float64_is_computed_in_float64_whatever_the_process_computes_in(network, process_wide):
    config, params = network
    wide = dataclasses.replace(config, dtype="float64", param_dtype="float64")
    deep = noise(20, 30, dtype=np.uint16)
    with jax.enable_x64(True):
        wide_params = jax.tree.map(lambda leaf: jax.device_put(np.float64(leaf)), params)
        expected = exactly((wide, wide_params), deep)
    with jax.enable_x64(process_wide):
        narrow = Restorer(config, params)(deep)
        np.testing.assert_array_equal(Restorer(wide, wide_params)(deep), expected)
        np.testing.assert_array_equal(Restorer(config, params)(deep), narrow)
        assert jax.config.jax_enable_x64 == process_wide
    assert (narrow != expected).any(), "float32 rounds otherwise"


def test_too_little_memory_for_strips_is_reported_in_one_line(network):
    restorer = Restorer(*network, memory=forward_bytes(network[0], 24, 32))
    restorer.plan([(8, 8), (400, 400)])
    with pytest.raises(InputError, match=r"400x400 pixels do not fit into .* bytes of memory, not"):
        restorer(noise(400, 400))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 1, 4, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_other_arrays_are_rejected_in_one_line(restorer, wrong):
    with pytest.raises(InputError, match=r"rainy is .*; expected uint8 or uint16, \(h, w, 3\) or"):
        restorer(wrong)


def test_images_of_a_batch_are_computed_by_several_devices_alike(network):
    one, several = Restorer(*network), Restorer(*network, devices=3)
    assert (one.together, several.together) == (1, 3)
    images = [noise(20 + i, 30) for i in range(4)]
    for found, image in zip(several.batch(images), images, strict=True):
        assert_differ_by_rounding(found, one(image))
    assert several.programs == {(6, (24, 32)): 1}, "two for each device, and two are filled up"


def test_each_device_takes_as_many_images_as_its_memory_holds(network):
    memory = forward_bytes(network[0], 24, 32)
    several = Restorer(*network, memory=2 * memory, devices=3)
    several.batch([noise(20, 30)] * 10)
    assert several.programs == {(6, (24, 32)): 2}
    small = Restorer(*network, memory=memory - 1, devices=3)
    small.batch([noise(20, 30)] * 2)
    assert {count for count, _ in small.programs} == {1}

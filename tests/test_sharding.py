"""Sharded train states and batches: the result is the same on every mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from recipe import SMALL, relative_error
from steps import ShardedStep

from drsformer_jax.config import (
    PRESETS,
    RESTORMER_PATCHES,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from drsformer_jax.data.pipeline import on_device
from drsformer_jax.errors import InputError
from drsformer_jax.sharding import (
    averaged_over_shards,
    batch_sharding,
    check_batches,
    gathered,
    make_mesh,
    state_shardings,
)
from drsformer_jax.training.step import abstract_state, microbatches

BATCH, SIDE, STEPS = 16, 16, 5
WHOLE = MeshConfig(1)
ACCUMULATING = MeshConfig(8, device_batch=1)
MESHES = [MeshConfig(8), MeshConfig(2, 2, 2, fsdp_min_size=0)]


def config(dtype: str, mesh: MeshConfig, **data: object) -> TrainConfig:
    return TrainConfig(
        model=dataclasses.replace(SMALL, dtype=dtype, param_dtype=dtype),
        data=DataConfig(crop_size=SIDE, global_batch=BATCH, **data),
        optim=OptimConfig(learning_rate=1e-3, ema_decay=0.9),
        mesh=mesh,
    )


def images(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    shape = (BATCH, SIDE, SIDE, 3)
    return {name: rng.integers(0, 256, shape, np.uint8) for name in ("rainy", "clean")}


@functools.cache
def trained(dtype: str, mesh: MeshConfig):
    """Metrics and states, on the host, of five steps, and the HLO text of their program."""
    with jax.enable_x64(dtype == "float64"):
        sharded = ShardedStep(config(dtype, mesh))
        state, metrics, states = sharded.state(), [], []
        program = sharded.compiled(images(0))
        for step in range(STEPS):
            # The compiled program rejects a state with another sharding than the initial one.
            state, scalars = program(state, sharded.batch(images(step)))
            metrics.append(jax.device_get(scalars))
            states.append(jax.device_get(state))
        return metrics, states, program.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [*MESHES, ACCUMULATING], ids=str)
def test_five_float64_steps_are_the_same_on_every_mesh(mesh):
    expected, straight, _ = trained("float64", WHOLE)
    metrics, states, _ = trained("float64", mesh)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [scalars[name] for scalars in metrics],
            [scalars[name] for scalars in expected],
            rtol=1e-12,
        )
    for found, value in zip(
        jax.tree.leaves(states[-1]), jax.tree.leaves(straight[-1]), strict=True
    ):
        np.testing.assert_allclose(found, value, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_first_float32_loss_is_the_same_on_eight_devices():
    expected, found = (trained("float32", mesh)[0][0] for mesh in (WHOLE, ACCUMULATING))
    assert math.isclose(found["loss"], expected["loss"], rel_tol=1e-6)


def gradient(dtype: str, mesh: MeshConfig) -> np.ndarray:
    """Of the first step, before clipping; Adam's running mean holds a tenth of the clipped one."""
    (metrics, *_), (state, *_), _ = trained(dtype, mesh)
    ((_, mean),) = optax.tree.get_all_with_path(state.opt_state, "mu")
    clipped = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(mean)])
    return clipped * metrics["grad_norm"]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-4)])
def test_accumulated_gradient_equals_that_of_the_whole_batch(dtype, bound):
    assert relative_error(gradient(dtype, ACCUMULATING), gradient(dtype, WHOLE)) < bound


def communication(text: str) -> dict[str, int]:
    return Counter(re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", text))


@pytest.mark.slow
def test_devices_communicate_only_one_sum_of_gradients_a_step():
    assert communication(trained("float64", MESHES[0])[2]) == {"all-reduce": 1}
    accumulating = trained("float64", ACCUMULATING)[2]
    assert " while(" in accumulating
    assert communication(accumulating) == {"all-reduce": 1}


@pytest.mark.parametrize(
    ("mesh", "batch", "side", "count"),
    [
        (MeshConfig(1), 16, 128, 1),
        (MeshConfig(1, device_batch=16), 16, 128, 1),
        (MeshConfig(1, device_batch=4), 16, 128, 4),
        (MeshConfig(1, device_batch=5), 16, 128, 4),
        (MeshConfig(4, device_batch=4), 16, 128, 1),
        (MeshConfig(2, 2, device_batch=3), 16, 128, 2),
        (MeshConfig(1, device_batch=1), 16, 64, 4),
        (MeshConfig(1, device_batch=1), 16, 128, 16),
        (MeshConfig(1, 1, 2, device_batch=1), 16, 128, 8),
        (MeshConfig(1, device_batch=1), 16, 192, 16),
    ],
)
def test_batch_has_as_few_microbatches_as_the_device_batch_allows(mesh, batch, side, count):
    settings = TrainConfig(mesh=mesh)
    assert microbatches(settings, make_mesh(mesh), batch, side) == count


def test_microbatches_of_progressive_patches_have_no_more_pixels_than_the_largest():
    settings = TrainConfig(
        data=DataConfig(crop_size=384, progressive=RESTORMER_PATCHES),
        mesh=MeshConfig(8, device_batch=1),
    )
    mesh = make_mesh(settings.mesh)
    for _, side, batch in RESTORMER_PATCHES:
        images = batch // 8 / microbatches(settings, mesh, batch, side)
        assert images * side**2 <= 384**2


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("down1_2/kernel", (3, 3, 48, 24), PartitionSpec(None, None, "fsdp")),
        ("reduce_chan_level2/kernel", (48, 48), PartitionSpec(None, "fsdp")),
        ("reduce_chan_level2/kernel", (192, 96), PartitionSpec("fsdp")),
        ("latent/layers/ffn/kernel", (8, 5, 5, 510), PartitionSpec()),
        ("latent/layers/attn/kernel", (8, 384, 1152), PartitionSpec(None, None, "fsdp")),
        ("latent/layers/attn/kernel", (8, 4, 3), PartitionSpec(None, "fsdp")),
        ("latent/layers/norm/weight", (8, 384), PartitionSpec()),
        ("encoder_level0/gate_in/bias", (64,), PartitionSpec()),
        ("output/kernel", (3, 3, 90, 3), PartitionSpec()),
        ("step", (), PartitionSpec()),
    ],
)
def test_longest_divisible_axis_is_sharded_but_never_a_stack_or_a_vector(path, shape, spec):
    tree = functools.reduce(
        lambda tree, name: {name: tree}, reversed(path.split("/")), np.empty(shape)
    )
    (found,) = jax.tree.leaves(state_shardings(tree, make_mesh(MeshConfig(2, 4)), 0))
    assert found.spec == spec


def test_arrays_of_fewer_elements_than_the_least_are_replicated():
    tree = {"small": np.empty((4, 3)), "large": np.empty((4, 4)), "layers": np.empty((2, 4, 2))}
    found = state_shardings(tree, make_mesh(MeshConfig(2, 4)), 16)
    sharded = {name: sharding.spec != PartitionSpec() for name, sharding in found.items()}
    assert sharded == {"small": False, "large": True, "layers": True}


def test_nearly_all_of_the_published_network_and_its_optimizer_is_sharded():
    settings = TrainConfig(model=PRESETS["drsformer"])
    state = abstract_state(settings, make_mesh(MeshConfig(1, 8)))
    for tree in (state.params, state.opt_state):
        leaves = jax.tree.leaves(tree)
        held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        assert held / sum(leaf.size for leaf in leaves) < 0.2


def test_gathered_parameters_are_unsharded_on_one_device():
    sharded = ShardedStep(config("float32", MeshConfig(1, 8, fsdp_min_size=0)))
    params = sharded.state().params
    assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    for found, value in zip(
        jax.tree.leaves(gathered(params, sharded.mesh)), jax.tree.leaves(params), strict=True
    ):
        assert len(found.devices()) == 1
        np.testing.assert_array_equal(found, value)


def test_global_batch_is_sharded_in_order_over_all_devices():
    sharding = batch_sharding(make_mesh(MeshConfig()))
    rainy = np.arange(16 * 2 * 2 * 3, dtype=np.uint8).reshape(16, 2, 2, 3)
    batch = {"name": ["x"] * 16, "rainy": rainy, "clean": 255 - rainy, "skipped": []}
    ((given, copied),) = on_device((each for each in [batch]), sharding)
    assert given is batch
    for name, whole in (("rainy", rainy), ("clean", 255 - rainy)):
        pieces = copied[name].addressable_shards
        assert len({piece.device for piece in pieces}) == 8
        for number, piece in enumerate(pieces):
            np.testing.assert_array_equal(piece.data, whole[2 * number : 2 * number + 2])


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(2), (2, 1, 1)),
        (MeshConfig(-1, 2, 2), (2, 2, 2)),
        (MeshConfig(1, -1), (1, 8, 1)),
        (MeshConfig(4, 1, -1), (4, 1, 2)),
    ],
)
def test_axis_of_minus_one_takes_the_rest_of_the_devices(mesh, sizes):
    assert tuple(make_mesh(mesh).shape.values()) == sizes


@pytest.mark.parametrize("mesh", [MeshConfig(16), MeshConfig(-1, 3), MeshConfig(-1, 16)], ids=str)
def test_mesh_that_does_not_fit_the_devices_is_rejected(mesh):
    with pytest.raises(InputError, match=r"the mesh is data .*; expected a product of 8"):
        make_mesh(mesh)


@pytest.mark.parametrize("rows", [8, -1])
def test_rows_of_an_image_stay_with_one_process(rows):
    class Device:
        def __init__(self, number):
            self.id, self.process_index = number, number % 2

    devices = [Device(number) for number in range(8)]
    with pytest.raises(InputError, match="expected rows to divide 4, the devices of a process"):
        make_mesh(MeshConfig(1, 1, rows), devices)
    mesh = make_mesh(MeshConfig(2, 1, -1), devices)
    assert mesh.shape["rows"] == 4
    assert [[each.id for each in row] for row in mesh.devices[:, 0]] == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(
    ("sides", "path"),
    [
        ((2, 2, 1), ["000", "010", "110", "100"]),
        ((2, 4, 1), ["000", "010", "020", "030", "130", "120", "110", "100"]),
        ((1, 1, 3), ["000", "001", "002"]),
    ],
)
def test_devices_of_a_process_follow_the_links_of_its_chips(sides, path):
    class Chip:
        def __init__(self, number, coords):
            self.id, self.process_index, self.coords = number, 0, (4 + coords[0], *coords[1:])

    # As TPUs are numbered: the first coordinate is the fastest.
    places = sorted(np.ndindex(*sides), key=lambda place: place[::-1])
    chips = [Chip(number, place) for number, place in enumerate(places)]
    mesh = make_mesh(MeshConfig(1, 1, -1), chips[::-1])
    found = [each.coords for each in mesh.devices[0, 0]]
    assert found == [(4 + int(x), int(y), int(z)) for x, y, z in path]


def test_batch_that_cannot_be_sharded_evenly_is_rejected():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    check_batches(DataConfig(crop_size=16, global_batch=4), mesh)
    with pytest.raises(InputError, match="the global batch is 6; expected a multiple of 4"):
        check_batches(DataConfig(crop_size=16, global_batch=6), mesh)
    with pytest.raises(InputError, match="the patches have 24 rows; expected a multiple of 16"):
        check_batches(DataConfig(crop_size=24, global_batch=4), mesh)


@pytest.mark.parametrize("mesh", [MeshConfig(8), MeshConfig(1, 1, 2), MeshConfig(2, 2, 2)], ids=str)
def test_gradients_are_averaged_over_all_devices(mesh):
    def loss(params, rainy, clean):
        scaled = rainy * params["vector"] + params["matrix"].sum()
        return ((scaled - clean) ** 2).mean()

    rng = np.random.default_rng(0)
    params = {"vector": rng.standard_normal(3), "matrix": rng.standard_normal((4, 2))}
    params = jax.tree.map(np.float32, params)
    rainy, clean = rng.random((2, 8, 16, 4, 3), np.float32)
    gradient = jax.value_and_grad(loss)
    found = jax.jit(averaged_over_shards(gradient, make_mesh(mesh), 0))(params, rainy, clean)
    jax.tree.map(
        lambda value, expected: np.testing.assert_allclose(value, expected, rtol=1e-5),
        found,
        gradient(params, rainy, clean),
    )

"""A program of StableHLO gives what the network gives, where this package is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export
from programs import run_without_the_package
from recipe import SMALL, load_small

from drsformer_jax.exporting.command import Export
from drsformer_jax.exporting.stablehlo import PLATFORMS, stablehlo
from drsformer_jax.nn.functional import apply, init_params
from drsformer_jax.ops import strips
from drsformer_jax.restoring import Restorer
from drsformer_jax.weights import params_from_torch

DOCS = Path(__file__).parents[2] / "docs" / "exporting.md"
ANY = (None, None, None)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random((*shape, 3), np.float32)


def padded(rainy: np.ndarray) -> np.ndarray:
    borders = [(0, 0), *((0, -side % 8) for side in rainy.shape[1:3]), (0, 0)]
    return np.pad(rainy, borders, "reflect")


def exported(config, params, shape=ANY):
    """The program as it is read back; images of few rows have several strips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "STRIP_ELEMENTS", 2**13)
        return export.deserialize(stablehlo(config, params, shape))


def restored(config, params, rainy):
    """What the network makes of images, as the official program pads and clamps them."""
    clean = jax.jit(apply, static_argnums=0)(config, params, padded(rainy))
    return np.clip(clean, 0, 1)[:, : rainy.shape[1], : rainy.shape[2]]


@pytest.fixture(scope="module")
def sparse():
    """A network with top-k attention."""
    config = replace(SMALL, heads=(1, 1, 1, 2), attention="topk", feed_forward="gdfn")
    return config, init_params(config, jax.random.key(0))


@pytest.fixture(scope="module")
def program(sparse):
    """That network for any number of images of any size."""
    return exported(*sparse)


# On the smallest images, scores are close and rounding decides between them.
@pytest.mark.parametrize("shape", [(1, 64, 56), (3, 32, 40), (1, 21, 70)])
def test_program_for_any_size_equals_the_network(program, sparse, shape):
    rainy = images(*shape)
    found = np.asarray(program.call(rainy))
    np.testing.assert_allclose(found, restored(*sparse, rainy), rtol=0, atol=2e-6)


@pytest.mark.slow
def test_program_for_one_size_equals_the_network_and_takes_no_other(sparse):
    program = exported(*sparse, (2, 30, 64))
    rainy = images(2, 30, 64)
    found = np.asarray(program.call(rainy))
    np.testing.assert_allclose(found, restored(*sparse, rainy), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="Shape mismatch"):
        program.call(images(2, 32, 64))


def test_program_has_code_for_every_platform(program):
    assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    assert "stablehlo.case" in program.mlir_module()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drsformer", "restormer", "bias"])
def test_architectures_are_exported_for_any_size(name):
    golden = load_small(name)
    config = golden.config()
    params = params_from_torch(golden.weights, config)
    program = exported(config, params)
    rainy = images(1, 45, 72)
    found = np.asarray(program.call(rainy))
    np.testing.assert_allclose(found, restored(config, params, rainy), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_bfloat16_is_computed_inside_and_the_images_stay_float32(sparse):
    config = replace(sparse[0], dtype="bfloat16")
    program = exported(config, sparse[1])
    rainy = images(1, 32, 40)
    found = np.asarray(program.call(rainy))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, restored(config, sparse[1], rainy), rtol=0, atol=2e-2)
    assert np.abs(found - restored(*sparse, rainy)).max() > 1e-5


@pytest.mark.slow
def test_loader_of_the_docs_restores_a_photograph_without_this_package(model, tmp_path):
    from skimage import data

    from drsformer_jax.images.pixels import read_image, write_image

    rainy = data.astronaut()[100:163, 150:241]
    write_image(tmp_path / "rainy.png", rainy)
    Export(model, tmp_path / "derain.stablehlo").run()
    code = re.search(r"```python\n(.*?jax.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 12
    run_without_the_package(code, tmp_path)
    found = read_image(tmp_path / "clean.png").astype(int)
    assert np.abs(found - Restorer.load(model)(rainy)).max() <= 1

"""An ONNX file gives in ONNX Runtime what the network gives, for any number and size of images."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import run_without_the_package
from recipe import load_small

from drsformer_jax.errors import InputError
from drsformer_jax.exporting.command import Export
from drsformer_jax.exporting.stablehlo import program_of
from drsformer_jax.restoring import Restorer
from drsformer_jax.weights import params_from_torch, params_to_torch

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("onnx", reason="ONNX is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

DOCS = Path(__file__).parents[2] / "docs" / "exporting.md"


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    from skimage import data

    return data.astronaut()[50:135, 150:301]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drsformer", "restormer", "bias", "bias_free", "dfn", "fn"])
def test_file_of_each_architecture_equals_the_network_on_a_photograph(name, photograph):
    from drsformer_jax.exporting.onnx_file import onnx_file

    golden = load_small(name)
    config = golden.config()
    params = params_from_torch(golden.weights, config)
    session = onnxruntime.InferenceSession(onnx_file(config, params, (None, None, None)))
    # The weights are drawn, so the residual is large: most of what is not cut off is compared.
    rainy = np.stack([photograph, photograph[::-1]]).astype(np.float32) / 255
    expected = np.asarray(jax.jit(program_of(config, params))(rainy))
    np.testing.assert_allclose(session.run(None, {"rainy": rainy})[0], expected, rtol=0, atol=1e-4)


def test_session_of_the_docs_restores_a_photograph_without_this_package(
    model, photograph, tmp_path
):
    from drsformer_jax.images.pixels import read_image, write_image

    write_image(tmp_path / "rainy.png", photograph)
    Export(model, tmp_path / "derain.onnx").run()
    code = re.search(r"```python\n([^`]*onnxruntime.*?)```", DOCS.read_text(), re.DOTALL)[1]
    run_without_the_package(code, tmp_path)
    found = read_image(tmp_path / "clean.png").astype(int)
    assert np.abs(found - Restorer.load(model)(photograph)).max() <= 1


def test_file_of_one_size_says_so(model, tmp_path):
    out = tmp_path / "a.onnx"
    Export(model, out, size="32x24", batch=2).run()
    session = onnxruntime.InferenceSession(out)
    assert [value.shape for value in session.get_inputs()] == [[2, 24, 32, 3]]
    assert [value.shape for value in session.get_outputs()] == [[2, 24, 32, 3]]


def test_a_file_that_differs_from_the_network_is_refused(network, monkeypatch):
    from drsformer_jax.exporting import onnx_file

    config, params = network
    others = jax.tree.map(lambda leaf: 1.01 * leaf, params)
    monkeypatch.setattr(
        onnx_file, "params_to_torch", lambda _, config: params_to_torch(others, config)
    )
    with pytest.raises(InputError, match=r"file differs from the network by .* on 4 images"):
        onnx_file.onnx_file(config, params, (None, None, None))


def test_bfloat16_is_no_type_of_onnx_files(model, tmp_path):
    with pytest.raises(InputError, match=r"would compute in bfloat16.*expected --dtype float32"):
        Export(model, tmp_path / "a.onnx", dtype="bfloat16").run()

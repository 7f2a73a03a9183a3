"""Other runtimes compute what PyTorch computes."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("name", "package"), [("OpenVINO", "openvino"), ("ONNX Runtime", "onnxruntime")]
)
@pytest.mark.filterwarnings("ignore")  # Of the converters, about PyTorch.
def test_runtime_equals_pytorch_on_an_image_of_another_size_than_it_was_traced_with(name, package):
    torch = pytest.importorskip("torch")
    pytest.importorskip(package)
    from runtimes import PROGRAMS

    from drsformer_jax.config import ModelConfig
    from drsformer_jax.exporting.torch_network import DRSformer

    torch.manual_seed(0)
    model = DRSformer(ModelConfig(8, (1, 1, 1, 1), (1, 1, 1, 1))).eval()
    rainy = np.random.default_rng(0).random((1, 3, 40, 72), np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(rainy)).numpy()
    found = PROGRAMS[name](model, rainy.shape)(rainy)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)

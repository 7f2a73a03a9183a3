"""The network in PyTorch is the official one."""

from __future__ import annotations

import numpy as np
import pytest
from recipe import FORWARD, load_small

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize(
    "name",
    [
        name if name == "drsformer" else pytest.param(name, marks=pytest.mark.slow)
        for name in FORWARD
    ],
)
def test_pytorch_network_equals_the_reference_and_has_the_official_keys(name):
    from golden import reference

    from drsformer_jax.exporting.torch_network import with_weights

    golden = load_small(name)
    model = with_weights(golden.config(), golden.weights).double()
    assert model.state_dict().keys() == reference.official_shapes(golden.architecture).keys()
    image = torch.from_numpy(golden["input"]).double().permute(0, 3, 1, 2)
    with torch.no_grad():
        found = model(image).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, golden["output"], rtol=0, atol=1e-12)

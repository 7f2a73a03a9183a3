"""What benchmarks compare with, measure by and judge by; their times are no matter of tests."""

from __future__ import annotations

import numpy as np
import pytest


def test_pytorch_network_equals_the_reference_and_has_the_official_keys():
    torch = pytest.importorskip("torch")
    from golden import reference
    from recipe import load_small
    from torch_network import DRSformer

    for name in ("drsformer", "no_mefc"):
        golden = load_small(name)
        architecture = golden.architecture
        sizes = (architecture[field] for field in ("dim", "blocks", "heads"))
        model = DRSformer(*sizes, mefc=name == "drsformer").double()
        assert model.state_dict().keys() == reference.official_shapes(architecture).keys()
        model.load_state_dict(
            {key: torch.from_numpy(weight) for key, weight in golden.weights.items()}, strict=True
        )
        picture = torch.from_numpy(golden["input"]).double().permute(0, 3, 1, 2)
        with torch.no_grad():
            found = model(picture).permute(0, 2, 3, 1)
        np.testing.assert_allclose(found, golden["output"], rtol=0, atol=1e-12)

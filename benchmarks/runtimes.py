"""The PyTorch network in runtimes for CPUs that it is deployed with: OpenVINO and ONNX Runtime.

Both compute in float32 with all cores that they are allowed. What they need, beside PyTorch:

    pip install openvino onnx onnxruntime
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

Restore = Callable[[np.ndarray], np.ndarray]
"""From rainy to restored images, b c h w."""

EXAMPLE = (1, 3, 64, 64)
"""Shape of the image that the network is traced with. Small: tracing computes it."""


def openvino_program(model: nn.Module, shape: tuple[int, ...]) -> Restore:
    """The network in OpenVINO, without the way over ONNX.

    Args:
        model: the network, on the CPU.
        shape: of the images.
    """
    import openvino
    import torch

    converted = openvino.convert_model(model, example_input=torch.zeros(EXAMPLE))
    converted.reshape(list(shape))
    # By default it computes in bfloat16 on processors that have it.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    program = openvino.Core().compile_model(converted, "CPU", hints)
    return lambda rainy: program(rainy)[0]


def onnxruntime_program(model: nn.Module, shape: tuple[int, ...]) -> Restore:
    """The network in ONNX Runtime.

    Args:
        model: the network, on the CPU.
        shape: of the images; the file has no fixed height and width.
    """
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            model,
            (torch.zeros(shape[0], *EXAMPLE[1:]),),
            file,
            input_names=["rainy"],
            dynamic_axes={"rainy": {2: "height", 3: "width"}},
            # The exporter through torch.export took 92 s where this one takes 8.
            dynamo=False,
            # Folding took 19 GB.
            do_constant_folding=False,
        )
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda rainy: session.run(None, {"rainy": rainy})[0]


PROGRAMS = {"OpenVINO": openvino_program, "ONNX Runtime": onnxruntime_program}
"""By the names of the runtimes."""

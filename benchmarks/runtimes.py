"""The PyTorch network in runtimes for CPUs that it is deployed with: OpenVINO and ONNX Runtime.

Both compute in float32 with all cores that they are allowed. What they need:

    pip install openvino 'drsformer_jax[onnx]'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

Restore = Callable[[np.ndarray], np.ndarray]
"""From rainy to restored images, b c h w."""

OPENVINO_HINTS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
"""By default it computes in bfloat16 on processors that have it."""
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
    program = openvino.Core().compile_model(converted, "CPU", OPENVINO_HINTS)
    return lambda rainy: program(rainy)[0]


def onnxruntime_program(model: nn.Module, shape: tuple[int, ...]) -> Restore:
    """The network in ONNX Runtime.

    Args:
        model: the network, on the CPU.
        shape: of the images; the file has no fixed height and width.
    """
    import onnxruntime

    from drsformer_jax.exporting.onnx_file import INPUT, traced

    content = traced(model, (shape[0], *EXAMPLE[1:]), {2: "height", 3: "width"})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda rainy: session.run(None, {INPUT: rainy})[0]


PROGRAMS = {"OpenVINO": openvino_program, "ONNX Runtime": onnxruntime_program}
"""By the names of the runtimes."""

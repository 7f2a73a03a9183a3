"""The network as an ONNX file, written by PyTorch and compared with ours in ONNX Runtime."""

from __future__ import annotations

import io
import warnings

import jax
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from drsformer_jax.config import SIZE_MULTIPLE, ModelConfig
from drsformer_jax.errors import InputError
from drsformer_jax.exporting.stablehlo import Shape, program_of
from drsformer_jax.exporting.torch_network import with_weights
from drsformer_jax.nn.functional import Params
from drsformer_jax.weights.convert import params_to_torch

INPUT, OUTPUT = "rainy", "clean"
"""Names of the program's input and output."""
CLOSE = 1e-4
"""Largest difference between what the file and the network restore, of values in [0, 1]."""
_IMAGES = 4


def onnx_file(config: ModelConfig, params: Params, shape: Shape) -> bytes:
    """The program as a file of ONNX, in float32, with the parameters inside.

    Args:
        config: the network, with float32 alone.
        params: its parameters.
        shape: of what the program takes.

    Raises:
        InputError: if ONNX Runtime computes something else of the file than JAX of the network.
    """
    network = with_weights(config, params_to_torch(params, config)).eval()
    axes = {0: "b", 1: "h", 2: "w"}
    content = traced(_Program(network), (1, 64, 64, 3), axes)
    _check(content, config, params)
    return _with_shape(content, shape)


def traced(module: nn.Module, shape: tuple[int, ...], axes: dict[int, str]) -> bytes:
    """A module as a file of ONNX, from `INPUT` to `OUTPUT`, both of one shape.

    Args:
        module: the module, on the CPU.
        shape: of an example; small, because tracing computes it.
        axes: names of those that may have any length.
    """
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # Of sizes that tracing keeps: they are tested.
        torch.onnx.export(
            module,
            (torch.zeros(shape),),
            file,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: axes, OUTPUT: axes},
            # The exporter through torch.export took 92 s for DRSformer where this one takes 8.
            dynamo=False,
            # Folding took 19 GB.
            do_constant_folding=False,
        )
    return file.getvalue()


class _Program(nn.Module):
    """The program of `stablehlo.program_of`, around the network in PyTorch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rainy: Tensor) -> Tensor:
        """From b h w 3 to b h w 3."""
        _, height, width, _ = rainy.shape
        padded = rainy[:, _reflected(height)][:, :, _reflected(width)]
        clean = self.network(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return clean[:, :height, :width].clamp(0, 1)


def _reflected(length: int | Tensor) -> Tensor:
    """As in `stablehlo`; where it is traced, the length is an array."""
    length = torch.as_tensor(length)
    index = torch.arange(length + (-length) % SIZE_MULTIPLE)
    period = torch.clamp(2 * length - 2, min=1)
    index = index % period
    return torch.minimum(index, period - index)


def _check(content: bytes, config: ModelConfig, params: Params) -> None:
    """Compares ONNX Runtime with JAX on images of another size than was traced.

    Rounding decides between close scores of the top-k attention, so that on an image that has such
    the two may differ by more. A wrong file differs on every image.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    program = jax.jit(program_of(config, params))
    differences = []
    for seed in range(_IMAGES):
        rainy = np.random.default_rng(seed).random((2, 43, 52, 3), np.float32)
        found = session.run([OUTPUT], {INPUT: rainy})[0]
        differences.append(float(np.abs(found - np.asarray(program(rainy))).max()))
        if differences[-1] <= CLOSE:
            return
    raise InputError(
        f"the ONNX file differs from the network by {min(differences):.1e} or more on {_IMAGES} "
        f"images; expected at most {CLOSE}"
    )


def _with_shape(content: bytes, shape: Shape) -> bytes:
    """The file for images of this shape: what is None stays open."""
    model = onnx.load_from_string(content)
    for value in (*model.graph.input, *model.graph.output):
        for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            if size is not None:
                dimension.dim_value = size
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())

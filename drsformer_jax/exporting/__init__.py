"""Exported programs: a network in one file that runs without this package.

A program takes images of float32 (b, h, w, 3), RGB, in [0, 1], and gives the same. As in the
official program images are padded right and below to a multiple of 8 by reflection and the result
is cut back and clamped, all inside the program.

`stablehlo` writes it for JAX on CPUs, NVIDIA GPUs and TPUs; `onnx_file` as ONNX, from the network
in PyTorch (`torch_network`).
"""

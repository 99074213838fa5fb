"""Depthwise convolution with a large kernel, stride 1, "same" zero padding; bias and activation fused."""

from kernels.depthwise_conv2d.op import depthwise_conv2d  # isort: skip - registers the operators
from kernels.depthwise_conv2d import flops  # noqa: F401 - registers their FLOPs
from kernels.depthwise_conv2d.module import DepthwiseConv2d, convert_depthwise_conv2d
from kernels.depthwise_conv2d.precision import float32_precision, set_float32_precision

__all__ = [
    "DepthwiseConv2d",
    "convert_depthwise_conv2d",
    "depthwise_conv2d",
    "float32_precision",
    "set_float32_precision",
]

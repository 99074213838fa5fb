"""The operations that Widefield exists for. Importing this package registers `torch.ops.widefield`."""

from kernels.depthwise_conv2d import (
    DepthwiseConv2d,
    convert_depthwise_conv2d,
    depthwise_conv2d,
    float32_precision,
    set_float32_precision,
)
from kernels.masked_patch_loss import masked_patch_loss
from kernels.native import native_library

__all__ = [
    "DepthwiseConv2d",
    "convert_depthwise_conv2d",
    "depthwise_conv2d",
    "float32_precision",
    "masked_patch_loss",
    "native_library",
    "set_float32_precision",
]

"""The operations that Widefield exists for. Importing this package registers `torch.ops.widefield`."""

from kernels.depthwise_conv2d import depthwise_conv2d
from kernels.masked_patch_loss import masked_patch_loss
from kernels.native import native_library

__all__ = ["depthwise_conv2d", "masked_patch_loss", "native_library"]

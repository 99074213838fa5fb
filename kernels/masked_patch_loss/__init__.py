"""The loss of masked image modelling on the masked patches only, with its gradient computed in the forward pass."""

from kernels.masked_patch_loss.op import masked_patch_loss

__all__ = ["masked_patch_loss"]

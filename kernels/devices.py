"""Which GPUs run the Triton-language kernels."""

import warnings

import torch

LEAST_CAPABILITY = (8, 0)  # the least that Triton supports, and the first with bfloat16


def runs_kernels(device: torch.device) -> bool:
    """Whether our kernels run on a GPU: one of NVIDIA's, of compute capability 8.0 or more. Warn of any other.

    PyTorch with ROCm calls AMD's GPUs "cuda" too; their capability is another number.
    """
    if torch.version.hip is not None:
        lacking = "ROCm"
    elif (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        lacking = f"compute capability {capability}"
    else:
        return True
    remedy = "our kernels are for NVIDIA's GPUs of compute capability 8.0 or more"
    warnings.warn(f"no kernel for {lacking}, PyTorch's own operations are used: {remedy}", stacklevel=2)
    return False

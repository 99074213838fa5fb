"""The first part of gpu_check: whether a GPU is there and computes, and which one it is."""

import json
import sys

from benchmarks.commands import no_options


def main() -> int:
    import torch

    from benchmarks.harness import gpu, versions

    if not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} sees no GPU")
        return 1
    a = torch.randn(256, 256, device="cuda")
    if not torch.allclose((a @ a).cpu(), a.cpu() @ a.cpu(), rtol=1e-2, atol=1e-2):
        print("a matrix product on the GPU differs from the CPU's")
        return 1
    print(json.dumps(gpu() | versions("torch", "triton", "numpy")))
    return 0


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    sys.exit(main())

"""Run by test_precision.py under TRITON_INTERPRET=1: the kernels' largest errors beside those of PyTorch's convolution.

The same types and inputs, both against float64; PyTorch's is the CPU's. The kernels' results are taken in float32 and
rounded by PyTorch: the interpreter cuts bfloat16 off where a GPU rounds.
"""

import sys

import torch
import torch.nn.functional as F
from cases import Case

from kernels.depthwise_conv2d import grad_weight, kernel, toeplitz

CASES = [Case(5, 1, 14, 14, 27, 27), Case(17, 1, 7, 7, 13, 13), Case(1, 1, 4, 40, 31, 31), Case(8, 2, 12, 13, 5, 5)]


def pytorch(input, weight, grad):
    weight = weight.clone().requires_grad_()
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    output = F.conv2d(input, weight, padding=padding, groups=input.shape[1])
    return output.detach(), torch.autograd.grad(output, weight, grad)[0]


def ours(input, weight, grad):
    output, result = (torch.empty_like(t, dtype=torch.float32) for t in (input, weight))
    if weight.shape[2] == 5:
        kernel.launch(input, weight, None, output, "none")
    else:
        toeplitz.launch(input, weight, None, output, "none")
    grad_weight.launch(grad, input, result)
    return output.to(input.dtype), result.to(input.dtype)


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    for case in CASES:
        generator = torch.Generator().manual_seed(0)
        image = (case.batch, case.channels, case.height, case.width)
        shapes = (image, (case.channels, 1, case.kernel_height, case.kernel_width), image)
        tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        exact = pytorch(*(t.double() for t in tensors))
        errors = [
            [(a.double() - e).abs().max().item() for a, e in zip(way(*tensors), exact, strict=True)]
            for way in (ours, pytorch)
        ]
        for name, mine, theirs in zip(("output", "grad_weight"), *errors, strict=True):
            if case.kernel_height == 5 and name == "output" and dtype == torch.float32:
                continue  # a GPU and oneDNN fuse its multiply-adds, the interpreter rounds twice
            print(f"{case} {name} {mine:.3g} {theirs:.3g} {mine / theirs:.3f}")


if __name__ == "__main__":
    main()

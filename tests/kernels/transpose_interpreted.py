"""Run by test_transpose.py under TRITON_INTERPRET=1: both ways, into poisoned memory."""

import sys

import torch

from kernels.depthwise_conv2d import transpose

SHAPES = [(2, 128, 8, 8), (3, 70, 14, 14), (1, 65, 1, 129), (2, 3, 9, 7), (1, 2, 1, 1), (2, 1, 5, 5)]


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    real = transpose.launch

    def poisoned(source, target, rows, columns):
        target.fill_(float("nan"))
        real(source, target, rows, columns)

    transpose.launch = poisoned
    for shape in SHAPES:
        plain = torch.randn(shape).to(dtype)
        last = plain.contiguous(memory_format=torch.channels_last)
        there = transpose.contiguous(last)
        assert there.is_contiguous()
        assert torch.equal(there, plain)
        back = transpose.restore_format(plain, last)
        assert back.stride() == last.stride()
        assert torch.equal(back, plain)
        assert transpose.contiguous(plain) is plain
        assert transpose.restore_format(plain, plain) is plain
        strided = torch.randn(*shape[:3], 2 * shape[3]).to(dtype)[..., ::2]
        assert torch.equal(transpose.contiguous(strided), strided)
    print(len(SHAPES))


if __name__ == "__main__":
    main()

"""One of two processes of test_sharding.py, each with half of the images."""

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from kernels import depthwise_conv2d

assert "torch.distributed.tensor" not in sys.modules, "it takes seconds, and few need it"

from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)

import kernels.depthwise_conv2d.sharding  # noqa: E402, F401


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    for activation, biased in (("none", False), ("relu", True), ("gelu", True), ("gelu", False)):
        tensors = [made(4, 16, 9, 7), made(16, 1, 5, 3), *([made(16)] if biased else [])]
        for images in (Shard(0), Shard(2), Replicate()):
            placed: list[Placement] = [images, *[Replicate()] * 2]
            parts = [
                distribute_tensor(t.detach(), mesh, [p]).requires_grad_() for t, p in zip(tensors, placed, strict=False)
            ]
            results = []
            for arguments in (tensors, parts):
                bias = arguments[2] if biased else None
                output = depthwise_conv2d(arguments[0], arguments[1], bias, activation)
                results.append((output, *torch.autograd.grad(output.square().sum(), arguments)))
            for whole, sharded in zip(*results, strict=True):
                assert isinstance(sharded, DTensor)
                torch.testing.assert_close(sharded.full_tensor(), whole)
            if images == Shard(0):
                placements = [each.placements[0] for each in results[1]]
                assert placements == [Shard(0), Shard(0), Partial(), Partial()][: len(placements)], placements
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

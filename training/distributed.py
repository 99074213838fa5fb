"""Processes started by torchrun: their ranks, sums and batch statistics over all of them."""

import os
from typing import Any, TypeVar

import timm.layers
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kernels import DepthwiseConv2d
from models.weight_files import first_line
from training.settings import SettingsError

Network = TypeVar("Network", bound=nn.Module)


def setup(device: str) -> str:
    """Join torchrun's other processes, if there are any; returns the device of this process.

    Raises `SettingsError` for a device that PyTorch cannot use.
    """
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    check_device(device)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(backend(device))
    return device


def check_device(device: str) -> None:
    """Raise `SettingsError` for a device that PyTorch cannot use."""
    try:
        torch.zeros(1, device=device).item()  # fails on the device "meta"
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise SettingsError(f"--device {device} cannot be used ({first_line(error)}): choose another") from error


def backend(device: str) -> str:
    """Return the process group's backend. NCCL without Gloo could not sum tensors on the CPU, such as counts."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


def shutdown() -> None:
    """Leave the group, so that no process waits for this one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, without gradient; the tensor itself if there is one process."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def all_gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes, without gradient: [B,...], the same B in each -> [processes * B,...]."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def data_parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap `module` so that gradients are averaged over all processes. Buffers are made equal only once, here."""
    for each in module.modules():
        if isinstance(each, DepthwiseConv2d) and each.weight.is_contiguous():  # [C,1,Kh,Kw]
            # channels_last is contiguous too, with another stride for the axis of size 1. DDP's buckets would have the
            # weight's stride, but a sum of two gradients has the standard one.
            each.weight.data = each.weight.data.view(-1).view(each.weight.shape)
    devices = [device.index] if device.type == "cuda" else None
    network = DistributedDataParallel(module, devices, gradient_as_bucket_view=True)  # no second copy of all gradients
    network.broadcast_buffers = False  # the argument of this name warns since torch 2.13; 2.11 lacks its successor
    return network


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes, forward and backward: each process's activations contribute to every process's loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return all_sum(grads[0].contiguous())


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, for CPUs, where PyTorch's SyncBatchNorm refuses to run."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast x may be bf16
        count = all_sum(torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.float64))
        mean = _SumOverProcesses.apply(x.sum((0, 2, 3))) / count.to(x.dtype)  # [C]
        centred = x - mean.view(1, -1, 1, 1)
        var = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count.to(x.dtype)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(var.detach() * (count / (count - 1)).to(x.dtype), momentum)
        out = centred * torch.rsqrt(var + self.eps).view(1, -1, 1, 1)
        if self.weight is not None:
            out = out * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return out.to(dtype)


def convert_sync_batchnorm(model: Network, device: str) -> Network:
    """Let the batch norms of `model` span all processes: PyTorch's SyncBatchNorm on GPUs, `CpuSyncBatchNorm` on CPUs.

    Raises `SettingsError` on CPUs for batch norms that include more, such as an activation (some of timm's).
    """
    if device.startswith("cuda"):
        return timm.layers.convert_sync_batchnorm(model)  # it knows norms that hold an activation, too
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm
        elif isinstance(module, _BatchNorm) and not isinstance(module, CpuSyncBatchNorm):
            raise SettingsError(f"--sync-bn on CPUs: {type(model).__name__} has {type(module).__name__}; leave it out")
    return model

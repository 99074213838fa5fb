"""The candidates on a GPU: the operator, PyTorch's depthwise convolutions, a whole-image Toeplitz product."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.accuracy import Tensors
from benchmarks.kernels.layers import PASSES, Layer
from benchmarks.timing import Step
from kernels import depthwise_conv2d
from kernels.depthwise_conv2d.pytorch import convolution

OURS, NATIVE = "widefield", "pytorch nchw"
TOEPLITZ_SIZE = 14  # from here on its [C,HW,HW] matrices outgrow the images

Convolve = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Candidate:
    """One way to compute the layer. `kind`: ours, native, cudnn, other. `brief`: also measured in the sweep."""

    name: str
    convolve: Convolve
    kind: str = "other"
    layout: torch.memory_format = torch.contiguous_format
    settings: Callable[[], AbstractContextManager[Any]] = nullcontext
    passes: tuple[str, ...] = PASSES
    brief: bool = False
    suits: Callable[[Layer], bool] = lambda layer: True


def cudnn_directly(input: Tensor, weight: Tensor) -> Tensor:
    """Call cuDNN whatever PyTorch would choose: older versions have no setting for it."""
    padding, cudnn = [weight.shape[2] // 2] * 2, torch.backends.cudnn
    arguments = (padding, [1, 1], [1, 1], weight.shape[0], cudnn.benchmark, False, False)
    return torch.ops.aten.cudnn_convolution(input, weight, *arguments)


def toeplitz_matrix(weight: Tensor, size: int) -> Tensor:
    """[C,1,K,K] -> [C,HW,HW], from input pixels to output pixels."""
    channels, _, kernel, _ = weight.shape
    place = torch.arange(size, device=weight.device)
    tap = place[:, None] - place[None, :] + kernel // 2  # [in,out] along one side
    inside = (tap >= 0) & (tap < kernel)
    flat = tap[:, None, :, None] * kernel + tap[None, :, None, :]  # [in y,in x,out y,out x]
    flat = torch.where(inside[:, None, :, None] & inside[None, :, None, :], flat, kernel**2)
    padded = F.pad(weight.flatten(1), (0, 1))  # the last tap is zero
    return padded.index_select(1, flat.flatten()).view(channels, size**2, size**2)


def toeplitz_bmm(input: Tensor, matrix: Tensor) -> Tensor:
    """A batched product over channels; its output is [C,N,HW] in memory, which saves it a transposition."""
    rows = input.flatten(2).transpose(0, 1)  # [C,N,HW]
    return torch.bmm(rows, matrix).transpose(0, 1).unflatten(2, input.shape[2:])


@contextmanager
def cudnn_settings(**values: Any) -> Iterator[None]:
    """Set attributes of torch.backends.cudnn, such as benchmark=True, inside the block."""
    backend = torch.backends.cudnn
    before = {name: getattr(backend, name) for name in values}
    try:
        for name, value in values.items():
            setattr(backend, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(backend, name, value)


def candidates(compiled: bool = True) -> Iterator[Candidate]:
    """Yield every way that this PyTorch has. `compiled`: also torch.compile, which takes seconds a shape."""
    last = torch.channels_last
    yield Candidate(OURS, depthwise_conv2d, "ours", brief=True)
    yield Candidate(f"{OURS} channels_last", depthwise_conv2d, "ours", last)
    yield Candidate(NATIVE, convolution, "native", brief=True)
    for benchmark in (False, True):
        suffix, brief = (" benchmark", True) if benchmark else ("", False)
        settings = partial(cudnn_settings, benchmark=benchmark)
        yield Candidate(f"cudnn channels_last{suffix}", convolution, "cudnn", last, settings, brief=brief)
        if hasattr(torch.backends.cudnn, "depthwise_kernel"):
            for choice, kind in (("cudnn", "cudnn"), ("native", "native")):
                chosen = partial(cudnn_settings, benchmark=benchmark, depthwise_kernel=choice)
                for layout, name in ((torch.contiguous_format, "nchw"), (last, "channels_last")):
                    yield Candidate(f"depthwise_kernel={choice} {name}{suffix}", convolution, kind, layout, chosen)
        else:  # its gradients go where PyTorch sends them: those are measured above
            yield Candidate(f"cudnn nchw{suffix}", cudnn_directly, "cudnn", settings=settings, passes=("forward",))
    if compiled:
        compiler = partial(torch.compile, dynamic=False, fullgraph=True)
        yield Candidate("torch.compile nchw", compiler(convolution))
        yield Candidate("torch.compile channels_last", compiler(convolution), layout=last)
    yield Candidate(
        "toeplitz bmm",
        toeplitz_bmm,
        passes=PASSES[:2],
        suits=lambda layer: layer.size <= TOEPLITZ_SIZE and layer.kernel > 5,
    )


def steps(candidate: Candidate, which: str, sets: list[Tensors]) -> list[Step]:
    """Return a call of one pass for each set of inputs, in the candidate's layout; a call returns the pass's result.

    The Toeplitz matrix is built here, outside the measured time: a served model's filters do not change.
    """
    calls: list[Step] = []
    for tensors in sets:
        input, grad, weight = (
            t.detach().contiguous(memory_format=candidate.layout) for t in (tensors.input, tensors.grad, tensors.weight)
        )
        operand = toeplitz_matrix(weight, input.shape[2]) if candidate.convolve is toeplitz_bmm else weight
        if which == "forward":
            calls.append(partial(candidate.convolve, input, operand))
            continue
        wanted = input if which == "grad_input" else operand  # no other: it could cost time
        wanted.requires_grad_()
        output = candidate.convolve(input, operand)
        calls.append(partial(_gradient, output, wanted, grad))
    return calls


def _gradient(output: Tensor, wanted: Tensor, grad: Tensor) -> Tensor:
    return torch.autograd.grad(output, wanted, grad, retain_graph=True)[0]

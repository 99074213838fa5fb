"""Choose the implementation of a call on the GPU, and run it."""

from typing import Any

import torch
from torch import Tensor

from kernels.depthwise_conv2d import pytorch
from kernels.depthwise_conv2d.precision import precision_of
from kernels.devices import runs_kernels
from kernels.layout import contiguous_or_channels_last

TOEPLITZ_TAPS = 25  # from 5 x 5 on the tensor cores are used, as the tuner chose for most layers on an H200 (README.md)
LARGEST_SIDE = 255  # of a filter on the tensor cores: toeplitz_kernel.window_place divides in 32 bits
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRID_LIMIT = 65535  # CUDA's, on the grid's second dimension, which is the channels
COUNTABLE = 2**31 - 128  # images, pixels of one or of a channel, elements of a filter: in 32 bits, by blocks up to 128


def choose_kernel(dtype: torch.dtype, kernel_size: tuple[int, int]) -> str:
    """Return "toeplitz" (tensor cores), "taps" (few taps or very many, no tensor cores) or "pytorch" (no kernel).

    "toeplitz" and "taps" differ only in forward and grad_input: grad_weight has one kernel for both.
    """
    if dtype not in TRITON_DTYPES:
        return "pytorch"
    few = kernel_size[0] * kernel_size[1] < TOEPLITZ_TAPS
    return "taps" if few or max(kernel_size) > LARGEST_SIDE else "toeplitz"


def kernel_for(input: Tensor, kernel_size: tuple[int, int]) -> str:
    """Return `choose_kernel`'s answer for the device and sizes of `input`."""
    batch, channels, height, width = input.shape
    taps = kernel_size[0] * kernel_size[1]
    uncountable = channels > GRID_LIMIT or max(batch, height * width, channels * taps) > COUNTABLE
    if not runs_kernels(input.device) or uncountable:
        return "pytorch"
    return choose_kernel(input.dtype, kernel_size)


def forward_cuda(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none", flip: bool = False
) -> Tensor:
    """Return act(convolution + bias) [N,C,H,W] in the memory format of `contiguous_or_channels_last(input)`.

    `flip` turns the filter by 180 degrees, as the input's gradient needs it.
    """
    source, precision = contiguous_or_channels_last(input), precision_of(input.dtype)
    size = (weight.shape[2], weight.shape[3])
    kernel = kernel_for(source, size)
    if kernel == "pytorch":
        return run_forward(pytorch.algorithm_for(source), source, weight, bias, activation, precision, flip)
    if source.numel() == 0:
        return torch.empty_like(source)
    from kernels.depthwise_conv2d import tuning

    def run(algorithm: Any) -> Tensor:
        return run_forward(algorithm, source, weight, bias, activation, precision, flip)

    with torch.cuda.device(source.device):
        return run(tuning.forward_algorithm(source, size, activation, precision, kernel, run) or kernel)


def run_forward(
    algorithm: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    precision: str,
    flip: bool = False,
) -> Tensor:
    """Compute act(convolution + bias) of a contiguous or channels_last `input` [N,C,H,W], in its memory format.

    `algorithm`: a tile of the Toeplitz kernel; "toeplitz", the tensor-core kernel and tile by rule; another of
    `tile_files.NAMES`; or a `WholeImageTile`, which only benchmarks/kernels asks for.
    """
    if flip and (algorithm == "taps" or algorithm in pytorch.MEMORY_FORMATS):
        weight, flip = weight.flip(2, 3), False
    if algorithm in pytorch.MEMORY_FORMATS:
        return pytorch.run_forward(algorithm, input, weight, bias, activation, precision)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    if algorithm == "taps":
        from kernels.depthwise_conv2d import kernel as taps

        output = torch.empty_like(input)
        taps.launch(input, weight, bias, output, activation)
        return output
    from kernels.depthwise_conv2d import packed_image, toeplitz, transpose, whole_image

    # These kernels read runs of a row: channels_last is transposed to contiguous memory and back.
    source = transpose.contiguous(input)
    output = torch.empty_like(source)
    if isinstance(algorithm, whole_image.WholeImageTile):
        kernel = packed_image if algorithm.packed else whole_image
        kernel.launch(source, weight, bias, output, activation, precision, flip, algorithm)
    elif algorithm == "toeplitz" and whole_image.suits(input, weight.shape[2:]):
        whole_image.launch(source, weight, bias, output, activation, precision, flip)
    else:
        tile = None if algorithm == "toeplitz" else algorithm
        toeplitz.launch(source, weight, bias, output, activation, precision, tile, flip)
    return transpose.restore_format(output, input)


def grad_weight_cuda(grad: Tensor, input: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return the filter's gradient [C,1,Kh,Kw] from `grad` and `input` [N,C,H,W] of any strides."""
    precision = precision_of(input.dtype)
    if kernel_for(input, kernel_size) == "pytorch":
        return pytorch.run_grad_weight(pytorch.algorithm_for(input), grad, input, kernel_size, precision)
    if input.numel() == 0:
        return input.new_zeros(input.shape[1], 1, *kernel_size)
    if len(input) > 1 and input.numel() // input.shape[1] > COUNTABLE:
        half = len(input) // 2
        first = grad_weight_cuda(grad[:half], input[:half], kernel_size)
        return first + grad_weight_cuda(grad[half:], input[half:], kernel_size)
    from kernels.depthwise_conv2d import grad_weight, transpose, tuning

    def run(algorithm: Any) -> Tensor:
        if algorithm in pytorch.MEMORY_FORMATS:
            return pytorch.run_grad_weight(algorithm, grad, input, kernel_size, precision)
        result = input.new_empty(input.shape[1], 1, *kernel_size)
        grad_weight.launch(transpose.contiguous(grad), transpose.contiguous(input), result, precision, tile=algorithm)
        return result

    with torch.cuda.device(input.device):
        algorithm = tuning.grad_weight_algorithm(input, kernel_size, precision, run)
        algorithm = algorithm or grad_weight.choose_tile(*input.shape[2:], *kernel_size, input.element_size())
        return run(algorithm or "pytorch")

"""The filter's gradient on the tensor cores: the tiling of a shape, and the launch (maths: README.md)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from kernels.depthwise_conv2d.grad_weight_kernel import grad_weight_kernel, reduce_kernel

PROGRAMS = 264  # two for each of an H200's multiprocessors
LEAST_STEPS = 8  # of BLOCK_K in a program, so that the pipeline fills
BLOCK_TAPS = 128


@dataclass(frozen=True)
class GradWeightTile:
    """The tiling of one shape: a matrix product of [taps * step_x, step_y * (window + extra)] in steps of block_k."""

    step_y: int
    step_x: int
    taps: int
    window: int
    extra: int
    block_k: int
    warps: int
    stages: int


def seen_taps(kernel: int, side: int) -> int:
    """Return how many taps along one side some pixel of the image sees: an odd number in the filter's middle."""
    return min(kernel, 2 * side - 1)


def power_of_two(number: int) -> int:
    """Return the largest power of 2, at most 8, that divides `number`."""
    return next(power for power in (8, 4, 2, 1) if number % power == 0)


def window_offset(kernel_width: int, step_x: int, window: int) -> int:
    """Return how many columns left of its pixels a window begins: at a multiple of step_x if it has room for that."""
    pad = kernel_width // 2
    aligned = triton.cdiv(pad, step_x) * step_x
    return aligned if aligned - pad + kernel_width + step_x - 1 <= window else pad


def candidates(height: int, width: int, kernel_height: int, kernel_width: int, element_bytes: int):
    """Yield (estimated cycles per pixel, tile) for every pair of steps that fits.

    The cycles come from instruction counts, not measurements. No pair fits if too many taps are seen: 65 x 65 in
    float32, 129 x 129 in 16-bit types, 257 rows.
    """
    kernel_height, kernel_width = seen_taps(kernel_height, height), seen_taps(kernel_width, width)
    for step_y in (1, 2, 4, 8):
        for step_x in (1, 2, 4, 8):
            taps = max(triton.next_power_of_2(kernel_height + step_y - 1), triton.cdiv(16, step_x))
            needed = max(kernel_width + step_x - 1, triton.cdiv(16, step_y))
            window, extra = triton.next_power_of_2(needed), 0
            if 32 < needed <= 48:
                window, extra = 32, 16
            rows, columns = taps * step_x, step_y * (window + extra)
            if rows > 256 or rows * columns > (96 if element_bytes == 4 else 192) * 128:
                continue
            offset = window_offset(kernel_width, step_x, window + extra)
            vector = min(step_x, power_of_two(width))
            loads = rows / vector + columns / min(vector, power_of_two(offset))
            covered = triton.cdiv(height, step_y) * triton.cdiv(width, step_x)  # outer products
            cycles = covered * (rows * columns / 1024 + loads / 10) / (height * width)
            # IEEE products keep a step's operands in registers: larger steps, or fewer warps, spill.
            block_k, warps = (16, 8) if element_bytes == 4 else (64, 8 if rows * columns > 64 * 64 else 4)
            yield cycles, GradWeightTile(step_y, step_x, taps, window, extra, block_k, warps, 3)


@lru_cache(1024)
def choose_tile(
    height: int, width: int, kernel_height: int, kernel_width: int, element_bytes: int
) -> GradWeightTile | None:
    """Return the candidate with the fewest estimated cycles, None if there is no candidate."""
    options = candidates(height, width, kernel_height, kernel_width, element_bytes)
    return min(options, key=lambda option: option[0], default=(0, None))[1]


def choose_splits(triples: int, channels: int, block_k: int) -> tuple[int, int]:
    """Return (programs per channel, steps of block_k in each) with which few channels fill the device too.

    They do not depend on the device, and so neither does the order in which the sums are added.
    """
    blocks = triton.cdiv(triples, block_k)
    splits = max(1, min(triton.cdiv(PROGRAMS, channels), blocks // LEAST_STEPS))
    steps = triton.cdiv(blocks, splits)
    return triton.cdiv(blocks, steps), steps


def most_registers(element_bytes: int) -> int | None:
    """Return the limit of registers per thread (None: the assembler's, which in float32 is lower and spills)."""
    return 255 if element_bytes == 4 else None


def launch(grad, input, grad_weight, precision="ieee", tile=None):
    """Fill grad_weight [C,1,KH,KW] from grad and input [N,C,H,W]; all are contiguous and not empty."""
    batch, channels, height, width = input.shape
    kernel_height, kernel_width = grad_weight.shape[2:]
    rows, columns = seen_taps(kernel_height, height), seen_taps(kernel_width, width)
    tile = tile or choose_tile(height, width, kernel_height, kernel_width, input.element_size())
    offset = window_offset(columns, tile.step_x, tile.window + tile.extra)
    triples = batch * triton.cdiv(height, tile.step_y) * triton.cdiv(width, tile.step_x)
    splits, steps = choose_splits(triples, channels, tile.block_k)
    product = (tile.taps * tile.step_x, tile.step_y * (tile.window + tile.extra))
    partial = torch.empty((splits, channels, *product), dtype=torch.float32, device=input.device)
    shape = {"STEP_Y": tile.step_y, "STEP_X": tile.step_x, "TAPS": tile.taps}
    shape |= {"WINDOW": tile.window, "EXTRA": tile.extra}
    grad_weight_kernel[(splits, channels)](
        grad,
        input,
        partial,
        batch,
        channels,
        steps,
        H=height,
        W=width,
        PAD=rows // 2,
        OFFSET=offset,
        **shape,
        BLOCK_K=tile.block_k,
        PRECISION=precision,
        INDEX=tl.int32 if input.numel() < 2**31 else tl.int64,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
        maxnreg=most_registers(input.element_size()),
    )
    reduce_kernel[(triton.cdiv(kernel_height * kernel_width, BLOCK_TAPS), channels)](
        partial,
        grad,
        input,
        grad_weight,
        batch,
        channels,
        height,
        width,
        kernel_height,
        kernel_width,
        (kernel_height - rows) // 2,
        (kernel_width - columns) // 2,
        offset - columns // 2,
        splits,
        **shape,
        BLOCK_TAPS=BLOCK_TAPS,
        BLOCK_PIXELS=1024,
        SUM=tl.float64 if grad_weight.dtype == torch.float32 else tl.float32,
        num_warps=4,
        enable_fp_fusion=True,
    )

"""The tiling of a shape for the tensor-core kernel, and the launch."""

import math
from dataclasses import dataclass
from functools import lru_cache

import triton
import triton.language as tl

from kernels.depthwise_conv2d.activation import ACTIVATIONS
from kernels.depthwise_conv2d.packing import pack_filter
from kernels.depthwise_conv2d.toeplitz_kernel import toeplitz_kernel

# Of a copy through the L1 cache: before version 3.9 Triton has copies of 16 bytes pass it by, whatever it is told.
CACHED_BYTES = 16 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 8


@dataclass(frozen=True)
class Tile:
    """The tiling of one shape; the input window begins `offset` columns left of the output tile."""

    rows: int
    columns: int
    window: int
    offset: int
    block_m: int
    block_k: int
    warps: int
    stages: int
    cached: bool = False  # the packed filter is read through the L1 cache

    def is_flat(self, width: int) -> bool:
        """Whether a window is a run of whole rows of an image of this width."""
        return self.window == width <= self.columns


@lru_cache(1024)
def choose_tile(batch: int, height: int, width: int, kernel_width: int, element_bytes: int) -> Tile:
    """Return the tile by rule, from the shape: fast on an H200 where it was measured, else reasoned (README.md)."""
    pad = kernel_width // 2
    if width <= 64:  # whole rows
        columns, window, offset = max(8, triton.next_power_of_2(width)), width, 0
    else:
        columns, offset = 32, triton.cdiv(pad, 8) * 8  # windows begin at whole vectors
        window = 16 * triton.cdiv(offset + columns + pad, 16)
    blocks = (16, 32, 64) if element_bytes == 4 else (16, 32, 64, 128)
    forms = [(rows, block_m) for rows in (1, 2, 4, 8) if rows * columns <= 128 for block_m in blocks]
    rows, block_m = choose_form(batch, height, forms)
    block_k = 128 // element_bytes
    return Tile(rows, columns, window, offset, block_m, block_k, warps_for(block_m * rows * columns, element_bytes), 3)


def choose_form(batch, height, forms):
    """Return (rows, block_m) from `forms`: the most rows that leave 64 (row block, image) pairs, else the fewest, since
    few images need more programs; then the largest block_m that the pairs fill to three quarters, else the smallest.
    """
    pairs = {rows: batch * triton.cdiv(height, rows) for rows, _ in forms}
    rows = max((rows for rows in pairs if pairs[rows] >= 64), default=min(pairs))
    blocks = [block_m for each, block_m in forms if each == rows]
    filled = [  # to three quarters
        block_m
        for block_m in blocks
        if block_m <= triton.next_power_of_2(pairs[rows])
        and 3 * block_m * triton.cdiv(pairs[rows], block_m) <= 4 * pairs[rows]
    ]
    return rows, max(filled, default=min(blocks))


def warps_for(sums: int, element_bytes: int) -> int:
    """Return the warps for a program with `sums` accumulators; products in float32 need more registers."""
    return 8 if sums >= (4096 if element_bytes == 4 else 16384) else 4


def alignment(input, output, tile) -> int:
    """Return the alignment, in elements and at most 8, of every run of pixels: the widest load that is allowed."""
    height, width = input.shape[2:]
    places = [tensor.data_ptr() // tensor.element_size() for tensor in (input, output)]
    places += [height * width, tile.rows * width] if tile.is_flat(width) else [width]
    return next(elements for elements in (8, 4, 2, 1) if all(place % elements == 0 for place in places))


def log_images(batch, height, tile):
    """Return log2 of the images per row block in a program: the fewest programs, then the fewest row blocks in each."""
    blocks = triton.cdiv(height, tile.rows)

    def programs(log):
        return triton.cdiv(batch, 2**log) * triton.cdiv(blocks, tile.block_m >> log)

    return min(range(tile.block_m.bit_length()), key=lambda log: (programs(log), -log))


def launch(input, weight, bias, output, activation, precision="ieee", tile=None, flip=False):
    """Fill output [N,C,H,W] with act(convolution + bias); all are contiguous. `flip` turns `weight` [C,1,KH,KW]."""
    batch, channels, height, width = input.shape
    kernel_height, kernel_width = weight.shape[2:]
    tile = tile or choose_tile(batch, height, width, kernel_width, input.element_size())
    packed = pack_filter(weight, tile, flip)
    log, aligned = log_images(batch, height, tile), alignment(input, output, tile)
    groups = triton.cdiv(batch, 2**log) * triton.cdiv(triton.cdiv(height, tile.rows), tile.block_m >> log)
    toeplitz_kernel[(groups * triton.cdiv(width, tile.columns), channels)](
        input,
        packed,
        weight,
        weight if bias is None else bias,
        output,
        batch,
        channels,
        height,
        width,
        kernel_height,
        kernel_width,
        tile.offset,
        packed.shape[1],
        log,
        int(bias is not None),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        WINDOW=tile.window,
        BLOCK_M=tile.block_m,
        BLOCK_K=tile.block_k,
        ALIGNMENT=aligned,
        ROW_ALIGNMENT=math.gcd(width, aligned),
        FLAT=tile.is_flat(width),
        FLIP=flip,
        PRECISION=precision,
        ACTIVATION=ACTIVATIONS[activation],
        INDEX=tl.int32 if input.numel() < 2**31 else tl.int64,
        CACHED=CACHED_BYTES // input.element_size() if tile.cached else 0,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )

"""The filter as the tensor-core kernels read it: each of its rows a Toeplitz matrix (maths: README.md)."""

import triton
import triton.language as tl

PACK_BLOCK = 256  # elements of a plane that a program writes at once
PACK_GROUP = 8  # planes a program: one each would be 20,992 programs of 512 bytes in RepLKNet-31B's third stage


@triton.jit
def pack_filter_kernel(
    weight_ptr,  # [C,1,KH,KW] contiguous
    packed_ptr,  # [C,PLANES,WINDOW,COLUMNS]
    KH,
    KW,
    offset,  # columns that the window begins left of the tile
    planes,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """packed[c,q,u,x] = weight[c,0,q-ROWS+1,u-offset-x+KW//2], 0 outside the filter: GROUP planes q a program.

    Bytes: the packed filter written once; the filter WINDOW times, from the caches.
    """
    c = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * GROUP + tl.arange(0, GROUP)  # [G]
    i = q - (ROWS - 1)
    weight_ptr += c * KH * KW
    packed_ptr += c * planes * (WINDOW * COLUMNS)
    for begin in range(0, WINDOW * COLUMNS, BLOCK):
        element = begin + tl.arange(0, BLOCK)  # [E] = (u,x); its divisions are shared by the planes
        j = element // COLUMNS - offset - element % COLUMNS + KW // 2
        inside = ((i >= 0) & (i < KH))[:, None] & ((j >= 0) & (j < KW))[None, :]
        value = tl.load(weight_ptr + (i * KW)[:, None] + j[None, :], mask=inside, other=0)
        place = (q * (WINDOW * COLUMNS))[:, None] + element[None, :]
        written = (q < planes)[:, None] & (element < WINDOW * COLUMNS)[None, :]
        tl.store(packed_ptr + place, value, mask=written)


def pack_filter(weight, tile):
    """[C,1,KH,KW] -> the Toeplitz planes [C,KH+2*(rows-1),window,columns] of the weight's type."""
    channels, _, kernel_height, kernel_width = weight.shape
    planes = kernel_height + 2 * (tile.rows - 1)
    packed = weight.new_empty(channels, planes, tile.window, tile.columns)
    pack_filter_kernel[(channels, triton.cdiv(planes, PACK_GROUP))](
        weight,
        packed,
        kernel_height,
        kernel_width,
        tile.offset,
        planes,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        WINDOW=tile.window,
        BLOCK=PACK_BLOCK,
        GROUP=PACK_GROUP,
    )
    return packed

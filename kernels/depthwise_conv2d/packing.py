"""The filter as the tensor-core kernels read it: each of its rows a Toeplitz matrix (maths: README.md)."""

import triton
import triton.language as tl

PACK_BLOCK = 512  # elements of a plane that a program writes at once
PACK_GROUP = 8  # planes per program: one each would be 20,992 programs of 512 bytes in RepLKNet-31B's third stage


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
    FLIP: tl.constexpr,  # the filter is turned by 180 degrees first
):
    """packed[c,q,u,x] = weight[c,0,q-ROWS+1,u-offset-x+KW//2], 0 outside the filter: GROUP planes q a program.

    Bytes: the packed filter written once; the filter WINDOW times, from the caches.
    """
    SIGN: tl.constexpr = -1 if FLIP else 1
    plane = WINDOW * (COLUMNS // 8 * 8)  # COLUMNS is a multiple of 8: told so, the compiler stores vectors
    c = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * GROUP
    weight_ptr += c * KH * KW
    packed_ptr += (c * planes + q) * plane
    for begin in range(0, plane, BLOCK):
        four = begin + 4 * tl.arange(0, BLOCK // 4)  # [F], the first of four x of one u
        j = four // COLUMNS - offset - four % COLUMNS + KW // 2
        tap = j
        if FLIP:
            tap = KW - 1 - j
        for g in tl.static_range(GROUP):
            i = q + g - (ROWS - 1) + 0 * four
            row = i
            if FLIP:
                row = KH - 1 - i
            source = weight_ptr + (row * KW + tap)
            here = i.to(tl.uint32) < KH
            w0 = tl.load(source, mask=here & (j.to(tl.uint32) < KW), other=0)
            w1 = tl.load(source - SIGN, mask=here & ((j - 1).to(tl.uint32) < KW), other=0)
            w2 = tl.load(source - 2 * SIGN, mask=here & ((j - 2).to(tl.uint32) < KW), other=0)
            w3 = tl.load(source - 3 * SIGN, mask=here & ((j - 3).to(tl.uint32) < KW), other=0)
            values = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(BLOCK)  # [F,2,2]: w0 w1 w2 w3
            element = begin + tl.arange(0, BLOCK)
            written = (element < plane) & (q + g + 0 * element < planes)
            tl.store(packed_ptr + (g * plane + element), values, mask=written)


def pack_filter(weight, tile, flip=False):
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
        FLIP=flip,
        enable_fp_fusion=True,
    )
    return packed

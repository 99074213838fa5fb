"""Which forms of the kernels the native library carries: architectures, types, tiles, alignments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

FOLDER = Path(__file__).parents[1] / "depthwise_conv2d"
POINTER = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
Specialisation = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]  # kernel, signature, constants, divisible

SIMPLE_ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# 8.6 and 8.9 run 8.0's: the same tensor-core instructions, in less shared memory than they have.
TOEPLITZ_ARCHITECTURES = (80, 90, 100, 120)
# (rows, columns, window, offset): whole rows of up to 8, 16 and 32 pixels; wider images with filters of up to 33 and of
# up to 65 columns. The alignment is that of the widths the tile meets most: 14, 28 and 56.
TILES = {
    (8, 8, 8, 0): 1,
    (8, 16, 16, 0): 2,
    (4, 32, 32, 0): 4,
    (4, 32, 64, 16): 8,
    (4, 32, 96, 32): 8,
}
ANY_ROW = (4, 32, 64, 16)  # compiled unaligned too: serves the rows of every width that are not aligned
WIDEST = (4, 32, 96, 32)  # for filters of more than 33 columns on images of more than 32: rare, large blocks only
BLOCK_M = (16, 64)  # pairs of row block and image: few for small batches, which take half the rows as well


@dataclass(frozen=True)
class Simple:
    """kernel.py: no assumption on alignment or divisibility, so that a cubin serves every shape."""

    architecture: int
    dtype: str
    layout: str
    source: ClassVar[str] = "kernel.py"
    stages: ClassVar[int] = 3

    @property
    def warps(self) -> int:
        from kernels.depthwise_conv2d.kernel import NUM_WARPS

        return NUM_WARPS

    @property
    def blocks(self) -> tuple[int, int]:
        from kernels.depthwise_conv2d.kernel import BLOCKS

        return BLOCKS[self.layout]

    def __str__(self) -> str:
        return f"sm_{self.architecture}_{self.dtype}_{self.layout}"

    def specialisation(self) -> Specialisation:
        from kernels.depthwise_conv2d.kernel import depthwise_conv2d_kernel as kernel

        constants = dict(zip(("BLOCK_P", "BLOCK_C"), self.blocks, strict=True))
        wide = ("stride_n", "stride_c", "stride_h", "stride_w")
        return kernel, signature(kernel, POINTER[self.dtype], constants, wide), constants, {}

    def row(self) -> str:
        last = "true" if self.layout == "channels_last" else "false"
        return f"DataType::{self.dtype}, {last}, {self.blocks[0]}, {self.blocks[1]}"


@dataclass(frozen=True)
class Pack:
    """packing.py: copies bits, so that one cubin serves all types of a size, and every tile."""

    architecture: int
    element_bytes: int
    source: ClassVar[str] = "packing.py"
    warps: ClassVar[int] = 4
    stages: ClassVar[int] = 3

    def __str__(self) -> str:
        return f"sm_{self.architecture}_pack_{self.element_bytes}"

    def specialisation(self) -> Specialisation:
        from kernels.depthwise_conv2d.packing import PACK_BLOCK, PACK_GROUP
        from kernels.depthwise_conv2d.packing import pack_filter_kernel as kernel

        constants = {"BLOCK": PACK_BLOCK, "GROUP": PACK_GROUP, "FLIP": False}
        return kernel, signature(kernel, f"*i{8 * self.element_bytes}", constants), constants, {}

    def row(self) -> str:
        return f"{self.element_bytes}"


@dataclass(frozen=True)
class Toeplitz:
    """toeplitz.toeplitz_kernel on contiguous memory of fewer than 2^31 elements, any activation."""

    architecture: int
    dtype: str
    tile: tuple[int, int, int, int]
    block_m: int
    alignment: int
    source: ClassVar[str] = "toeplitz_kernel.py"
    stages: ClassVar[int] = 3

    @property
    def warps(self) -> int:
        from kernels.depthwise_conv2d.toeplitz import warps_for

        sums = self.block_m * self.tile[0] * self.tile[1]
        if self.alignment == 1 and sums >= 8192:
            return 8  # single elements take more registers than 4 warps have
        return warps_for(sums, self.element_bytes)

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    def __str__(self) -> str:
        tile = "x".join(map(str, self.tile[:3]))
        return f"sm_{self.architecture}_{self.dtype}_{tile}_m{self.block_m}_a{self.alignment}"

    def specialisation(self) -> Specialisation:
        import triton.language as tl

        from kernels.depthwise_conv2d.toeplitz_kernel import toeplitz_kernel as kernel

        rows, columns, window, offset = self.tile
        constants: dict[str, Any] = {}
        constants |= {"ROWS": rows, "COLUMNS": columns, "WINDOW": window, "offset": offset, "BLOCK_M": self.block_m}
        constants |= {"BLOCK_K": 128 // self.element_bytes, "ALIGNMENT": self.alignment}
        constants |= {"FLAT": False, "FLIP": False, "PRECISION": "ieee", "INDEX": tl.int32, "INTERPRETED": False}
        bytes_known = min(16, self.alignment * self.element_bytes)
        divisible = {"packed_ptr": 16, "input_ptr": bytes_known, "output_ptr": bytes_known}
        return kernel, signature(kernel, POINTER[self.dtype], constants), constants, divisible

    def row(self) -> str:
        rows, columns, window, offset = self.tile
        return f"DataType::{self.dtype}, {rows}, {columns}, {window}, {offset}, {self.block_m}, {self.alignment}"


Variant = Simple | Pack | Toeplitz


def signature(kernel: Any, pointer: str, constants: dict[str, Any], wide: tuple[str, ...] = ()) -> dict[str, str]:
    """The type of each argument in the kernel's order: what is not a constant is known at run time only."""
    types = {name: pointer if name.endswith("_ptr") else "i64" if name in wide else "i32" for name in kernel.arg_names}
    return types | {name: "constexpr" for name in constants}


def toeplitz_variants(architecture: int) -> list[Variant]:
    """In float32 alignment does not pay: single elements are copied asynchronously too, and arithmetic is the limit."""
    variants: list[Variant] = []
    for dtype in POINTER:
        for tile, aligned in TILES.items():
            alignment = 1 if dtype == "float32" else aligned
            if tile != WIDEST:
                few = (tile[0] // 2, *tile[1:])
                variants.append(Toeplitz(architecture, dtype, few, min(BLOCK_M), alignment))
            variants.append(Toeplitz(architecture, dtype, tile, max(BLOCK_M), alignment))
        if dtype != "float32":
            variants.append(Toeplitz(architecture, dtype, ANY_ROW, max(BLOCK_M), 1))
    return variants


def all_variants() -> list[Variant]:
    simple = [Simple(a, d, m) for a in SIMPLE_ARCHITECTURES for d in POINTER for m in ("contiguous", "channels_last")]
    pack = [Pack(a, size) for a in TOEPLITZ_ARCHITECTURES for size in (2, 4)]
    return [*simple, *pack, *(v for a in TOEPLITZ_ARCHITECTURES for v in toeplitz_variants(a))]

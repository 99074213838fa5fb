"""The variants of the kernels in the native library: architectures, types, tiles, alignments."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import triton.language as tl

from kernels.depthwise_conv2d import kernel as taps
from kernels.depthwise_conv2d import packing, toeplitz, whole_image
from kernels.depthwise_conv2d.activation import ACTIVATIONS
from kernels.depthwise_conv2d.toeplitz_kernel import toeplitz_kernel

FOLDER = Path(__file__).parents[1] / "depthwise_conv2d"
POINTER = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
Specialisation = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]  # kernel, signature, constants, divisible

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# 8.6 and 8.9 run the cubins of 8.0: they have its tensor-core instructions, and shared memory enough.
TENSOR_CORE_ARCHITECTURES = (80, 90, 100, 120)
TENSOR_CORE_DTYPES = ("float16", "bfloat16")
# (rows, block_m) by columns: most of what toeplitz.choose_tile returns for RepLKNet's layers. In float32 block_m is at
# most 64.
FLAT_FORMS = {
    8: ((1, 16), (8, 64)),
    16: ((1, 32), (8, 64)),
    32: ((1, 32), (2, 128), (4, 128)),
    64: ((1, 64), (2, 128)),
}
WINDOW_FORMS = {32: ((1, 64), (4, 128))}
# The alignment, in elements, of a flat tile's rows in 16-bit types: that of images of 7, 14, 28 and 56 columns.
ROW_ALIGNMENT = {8: 1, 16: 2, 32: 4, 64: 8}
ANY_ROW = {True: (64, 2, 64), False: (32, 4, 64)}  # columns, rows, block_m for unaligned rows, by flat
WHOLE_IMAGES = ((14, 27), (7, 13))  # height = width and kernel: constants of that kernel
WHOLE_BLOCKS = (16, 64)  # images
RELU = ACTIVATIONS["relu"]
ANY_ACTIVATION = -1


@dataclass(frozen=True)
class Taps:
    """kernel.py: no assumption on alignment or divisibility, so that a cubin serves every shape."""

    architecture: int
    dtype: str
    layout: str
    source: ClassVar[str] = "kernel.py"
    warps: ClassVar[int] = taps.NUM_WARPS
    stages: ClassVar[int] = 3

    @property
    def blocks(self) -> tuple[int, int]:
        return taps.BLOCKS[self.layout]

    def __str__(self) -> str:
        return f"sm_{self.architecture}_{self.dtype}_{self.layout}"

    def specialisation(self) -> Specialisation:
        constants = dict(zip(("BLOCK_P", "BLOCK_C"), self.blocks, strict=True))
        wide = ("stride_n", "stride_c", "stride_h", "stride_w")
        kernel = taps.depthwise_conv2d_kernel
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
        kernel = packing.pack_filter_kernel
        constants = {"BLOCK": packing.PACK_BLOCK, "GROUP": packing.PACK_GROUP, "FLIP": False}
        types = signature(kernel, f"*i{8 * self.element_bytes}", constants)
        return kernel, types, constants, {"packed_ptr": 16}

    def row(self) -> str:
        return f"{self.element_bytes}"


@dataclass(frozen=True)
class Toeplitz:
    """toeplitz_kernel.py on contiguous memory of fewer than 2^31 elements: the window is known at run time."""

    architecture: int
    dtype: str
    flat: bool
    columns: int
    rows: int
    block_m: int
    row_alignment: int
    activation: int = ANY_ACTIVATION
    source: ClassVar[str] = "toeplitz_kernel.py"
    stages: ClassVar[int] = 3

    @property
    def warps(self) -> int:
        sums = self.block_m * self.rows * self.columns
        if self.row_alignment == 1 and sums >= 8192:
            return 8  # single elements need more registers than 4 warps have
        return toeplitz.warps_for(sums, self.element_bytes)

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def alignment(self) -> int:
        """The alignment, in elements, of a run of whole rows of a square image, and so of every load."""
        rows = min(self.rows, self.row_alignment) if self.flat else 1
        return min(8, rows * self.row_alignment)

    def __str__(self) -> str:
        tile = f"{self.rows}x{self.columns}_{'flat' if self.flat else 'window'}_m{self.block_m}_a{self.row_alignment}"
        return f"sm_{self.architecture}_{self.dtype}_{tile}{'_relu' if self.activation == RELU else ''}"

    def specialisation(self) -> Specialisation:
        constants: dict[str, Any] = {}
        constants |= {"ROWS": self.rows, "COLUMNS": self.columns, "BLOCK_M": self.block_m, "FLAT": self.flat}
        constants |= {"BLOCK_K": 128 // self.element_bytes}
        constants |= {"ALIGNMENT": self.alignment, "ROW_ALIGNMENT": self.row_alignment}
        constants |= {"FLIP": False, "PRECISION": "ieee", "INDEX": tl.int32, "CACHED": 0}
        if self.activation != ANY_ACTIVATION:
            constants["ACTIVATION"] = self.activation
        bytes_known = min(16, self.alignment * self.element_bytes)
        divisible = {"packed_ptr": 16, "input_ptr": bytes_known, "output_ptr": bytes_known}
        return toeplitz_kernel, signature(toeplitz_kernel, POINTER[self.dtype], constants), constants, divisible

    def row(self) -> str:
        flat = "true" if self.flat else "false"
        sizes = f"{self.columns}, {self.rows}, {self.block_m}, {self.alignment}, {self.row_alignment}"
        return f"DataType::{self.dtype}, {flat}, {sizes}, {self.activation}"


@dataclass(frozen=True)
class WholeImage:
    """whole_image.py on contiguous memory of fewer than 2^31 elements, for one size of image and of filter."""

    architecture: int
    dtype: str
    size: int
    kernel: int
    block_n: int
    source: ClassVar[str] = "whole_image.py"
    stages: ClassVar[int] = whole_image.STAGES

    @property
    def warps(self) -> int:
        return whole_image.warps_for(self.block_n)

    @property
    def alignment(self) -> int:
        return self.size & -self.size

    def __str__(self) -> str:
        return f"sm_{self.architecture}_{self.dtype}_whole_{self.size}_k{self.kernel}_n{self.block_n}"

    def specialisation(self) -> Specialisation:
        kernel = whole_image.whole_image_kernel
        constants = whole_image.sizes(self.size, self.size, self.kernel, self.kernel, self.block_n)
        constants |= {"FLIP": False, "PRECISION": "ieee", "INDEX": tl.int32}
        divisible = dict.fromkeys(("input_ptr", "output_ptr"), 2 * self.alignment)
        return kernel, signature(kernel, POINTER[self.dtype], constants), constants, divisible

    def row(self) -> str:
        return f"DataType::{self.dtype}, {self.size}, {self.kernel}, {self.block_n}, {self.alignment}"


Variant = Taps | Pack | Toeplitz | WholeImage


def signature(kernel: Any, pointer: str, constants: dict[str, Any], wide: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the type of each argument in the kernel's order; those in `constants` are "constexpr"."""
    types = {name: pointer if name.endswith("_ptr") else "i64" if name in wide else "i32" for name in kernel.arg_names}
    return types | {name: "constexpr" for name in constants}


def toeplitz_variants(architecture: int, dtype: str) -> list[Variant]:
    """Return the Toeplitz kernels to compile. None in float32 is for aligned rows, which would not be faster: single
    elements are copied asynchronously too, and arithmetic is the limit."""
    plain = dtype == "float32"
    variants: list[Variant] = []
    for flat, forms_by_columns in ((True, FLAT_FORMS), (False, WINDOW_FORMS)):
        for columns, forms in forms_by_columns.items():
            alignment = 1 if plain else ROW_ALIGNMENT[columns] if flat else 8
            for rows, block_m in forms:
                block_m = min(64, block_m) if plain else block_m
                variants.append(Toeplitz(architecture, dtype, flat, columns, rows, block_m, alignment))
    if not plain:
        variants += [Toeplitz(architecture, dtype, flat, *ANY_ROW[flat], row_alignment=1) for flat in (True, False)]
        variants += [
            Toeplitz(architecture, dtype, True, columns, rows, block_m, ROW_ALIGNMENT[columns], RELU)
            for columns, rows, block_m in shipped_forms(architecture)
        ]
    return variants


def shipped_forms(architecture: int) -> list[tuple[int, int, int]]:
    """Return (columns, rows, block_m) of the flat tiles in tiles.json that FLAT_FORMS lacks. They are so large that
    registers suffice for only one activation: ReLU, RepLKNet's."""
    tiles = json.loads((FOLDER / "tiles.json").read_text())
    wanted = [tile for name, tile in tiles.items() if name.startswith(f"toeplitz sm_{architecture} ")]
    return [
        (tile["columns"], tile["rows"], tile["block_m"])
        for tile in wanted
        if (tile["rows"], tile["block_m"]) not in FLAT_FORMS[tile["columns"]]
    ]


def all_variants(architectures: Collection[int] = ARCHITECTURES) -> list[Variant]:
    """Return what is compiled for GPUs of these architectures."""
    tensor_cores = [a for a in TENSOR_CORE_ARCHITECTURES if a in {80 if gpu < 90 else gpu for gpu in architectures}]
    few_taps = [Taps(a, d, m) for a in architectures for d in POINTER for m in ("contiguous", "channels_last")]
    pack = [Pack(a, size) for a in tensor_cores for size in (2, 4)]
    toeplitz = [v for a in tensor_cores for d in POINTER for v in toeplitz_variants(a, d)]
    whole = [
        WholeImage(a, dtype, size, kernel, block_n)
        for a in tensor_cores
        for dtype in TENSOR_CORE_DTYPES
        for size, kernel in WHOLE_IMAGES
        for block_n in WHOLE_BLOCKS
    ]
    return [*few_taps, *pack, *toeplitz, *whole]

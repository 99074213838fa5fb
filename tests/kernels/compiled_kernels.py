"""Each kernel's machine code for an architecture, compiled as the just-in-time compiler would for contiguous memory."""

import math
from pathlib import Path

import torch
from machine_code import MachineCode, machine_code

STAGES = {  # of RepLKNet-31B at 224 px: channels, height = width, kernel
    "stage1": (128, 56, 31),
    "stage2": (256, 28, 29),
    "stage3": (512, 14, 27),
    "stage4": (1024, 7, 13),
}
POINTER = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def compile_forward(architecture, dtype, tile, width, folder: Path, activation=0, precision="ieee") -> MachineCode:
    import triton.language as tl

    from kernels.depthwise_conv2d.toeplitz import CACHED_BYTES
    from kernels.depthwise_conv2d.toeplitz_kernel import toeplitz_kernel as kernel

    constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, "WINDOW": tile.window, "BLOCK_M": tile.block_m}
    flat = tile.window == width
    run = math.gcd(width * width, tile.rows * width) if flat else width  # pixels that a run begins at a multiple of
    aligned = math.gcd(run, 8)
    constants |= {"BLOCK_K": tile.block_k, "ALIGNMENT": aligned, "ROW_ALIGNMENT": math.gcd(width, aligned)}
    constants |= {"FLAT": flat, "FLIP": False, "CACHED": CACHED_BYTES // dtype.itemsize if tile.cached else 0}
    constants |= {"PRECISION": precision, "ACTIVATION": activation, "INDEX": tl.int32}
    pointers = {name: POINTER[dtype] for name in kernel.arg_names if name.endswith("_ptr")}
    return machine_code(kernel, architecture, pointers, constants, tile.warps, tile.stages, folder)


def compile_whole_image(
    architecture, size, kernel_size, dtype, batch, folder: Path, name="whole_image", form=None
) -> MachineCode:
    """`name`: of the module, with NAME_kernel in it; `form`: a WholeImageTile's fields, in the place of the rule's."""
    import importlib
    from unittest import mock

    from kernels.depthwise_conv2d.whole_image import WholeImageTile

    module = importlib.import_module(f"kernels.depthwise_conv2d.{name}")
    launched = {}

    class Launch:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: launched.update(constants)

    input = torch.empty(batch, 64, size, size, dtype=dtype)
    weight = torch.empty(64, 1, kernel_size, kernel_size, dtype=dtype)
    with mock.patch.object(module, f"{name}_kernel", Launch()):
        module.launch(input, weight, None, input, "gelu", tile=form and WholeImageTile(*form))
    warps, stages = launched.pop("num_warps"), launched.pop("num_stages")
    assert launched.pop("enable_fp_fusion")
    kernel = getattr(module, f"{name}_kernel")
    pointers = {name: POINTER[dtype] for name in kernel.arg_names if name.endswith("_ptr")}
    return machine_code(kernel, architecture, pointers, launched, warps, stages, folder)


def compile_grad_weight(architecture, size, kernel_size, dtype, folder: Path, precision="ieee", tile=None, **more):
    """(machine code, the tile: the rule's where none is given)."""
    import triton.language as tl

    from kernels.depthwise_conv2d.grad_weight import choose_tile, most_registers, window_offset
    from kernels.depthwise_conv2d.grad_weight_kernel import grad_weight_kernel as kernel

    tile = tile or choose_tile(size, size, kernel_size, kernel_size, dtype.itemsize)
    constants = {"H": size, "W": size, "PAD": kernel_size // 2, "STEP_Y": tile.step_y, "STEP_X": tile.step_x}
    constants |= {"TAPS": tile.taps, "WINDOW": tile.window, "EXTRA": tile.extra, "BLOCK_K": tile.block_k}
    constants |= {"OFFSET": window_offset(kernel_size, tile.step_x, tile.window + tile.extra)}
    constants |= {"PRECISION": precision, "INDEX": tl.int32} | more
    pointers = {"grad_ptr": POINTER[dtype], "input_ptr": POINTER[dtype], "partial_ptr": "*fp32"}
    registers = most_registers(dtype.itemsize)
    code = machine_code(kernel, architecture, pointers, constants, tile.warps, tile.stages, folder, registers=registers)
    return code, tile

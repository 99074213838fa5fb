"""The Triton-language kernel compiled ahead of time: a cubin for each architecture, type and layout. No GPU needed."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
DTYPES = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
KERNEL_SOURCE = Path(__file__).parents[1] / "depthwise_conv2d" / "kernel.py"
POINTERS = ("input_ptr", "weight_ptr", "bias_ptr", "output_ptr")
STRIDES = ("stride_n", "stride_c", "stride_h", "stride_w")
INTEGERS = ("C", "H", "W", "KH", "KW", "has_bias", "activation")


@dataclass(frozen=True)
class CompiledKernel:
    """A cubin file and what its launch needs."""

    architecture: int
    dtype: str
    layout: str
    file: str
    name: str
    shared_bytes: int
    warps: int
    block_pixels: int
    block_channels: int


def compile_all(cache: Path) -> list[CompiledKernel]:
    """Compile what `cache` does not hold yet; the cache is keyed by the kernel's source and Triton's version."""
    import triton

    key = hashlib.sha256(KERNEL_SOURCE.read_bytes() + Path(__file__).read_bytes() + triton.__version__.encode())
    folder = cache / key.hexdigest()[:16]
    index = folder / "index.json"
    if index.exists():
        return [
            CompiledKernel(**{**entry, "file": str(folder / entry["file"])}) for entry in json.loads(index.read_text())
        ]
    shutil.rmtree(cache, ignore_errors=True)  # what an older kernel or Triton left
    folder.mkdir(parents=True)
    kernels = [
        compile_one(architecture, dtype, layout, folder)
        for architecture in ARCHITECTURES
        for dtype in DTYPES
        for layout in ("contiguous", "channels_last")
    ]
    index.write_text(json.dumps([{**asdict(kernel), "file": Path(kernel.file).name} for kernel in kernels], indent=1))
    return kernels


def compile_one(architecture: int, dtype: str, layout: str, folder: Path) -> CompiledKernel:
    """No assumption on alignment or divisibility: the cubin serves every shape.

    Raises `RuntimeError` when the kernel wants scratch memory, which the launch does not give.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kernels.depthwise_conv2d.kernel import BLOCKS, NUM_WARPS, depthwise_conv2d_kernel

    block_p, block_c = BLOCKS[layout]
    signature = {name: DTYPES[dtype] for name in POINTERS}
    signature |= {name: "i64" for name in STRIDES} | {name: "i32" for name in INTEGERS}
    signature |= {"BLOCK_P": "constexpr", "BLOCK_C": "constexpr"}
    ordered = {name: signature[name] for name in depthwise_conv2d_kernel.arg_names}
    source = ASTSource(depthwise_conv2d_kernel, ordered, {"BLOCK_P": block_p, "BLOCK_C": block_c})
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": NUM_WARPS, "enable_fp_fusion": True})
    metadata = compiled.metadata
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, scratch, 0):
            raise RuntimeError(f"{dtype} sm_{architecture}: {scratch} is {getattr(metadata, scratch)}, 0 is expected")
    file = folder / f"sm_{architecture}_{dtype}_{layout}.cubin"
    file.write_bytes(compiled.asm["cubin"])
    return CompiledKernel(
        architecture, dtype, layout, str(file), metadata.name, metadata.shared, metadata.num_warps, block_p, block_c
    )


def cubin_table(kernels: list[CompiledKernel]) -> str:
    """C++ source with every cubin in the library's read-only data and the table that cuda_launch.cpp searches."""
    lines = ['#include "cuda_launch.h"', ""]
    for index, kernel in enumerate(kernels):
        symbol = f"widefield_cubin_{index}"
        data = f'.section .rodata\\n.balign 64\\n{symbol}:\\n.incbin \\"{kernel.file}\\"\\n.previous\\n'
        lines += [f'asm("{data}");', f'extern const unsigned char cubin_{index}[] asm("{symbol}");']
    lines += ["", "namespace widefield {", "const Cubin kCubins[] = {"]
    for index, k in enumerate(kernels):
        last = "true" if k.layout == "channels_last" else "false"
        what = f'{k.architecture}, DataType::{k.dtype}, {last}, cubin_{index}, "{k.name}"'
        lines.append(f"    {{{what}, {k.shared_bytes}, {k.warps}, {k.block_pixels}, {k.block_channels}}},")
    if not kernels:
        lines.append("    {}")  # an array of no elements is not C++
    lines += ["};", f"const int kCubinCount = {len(kernels)};", "}  // namespace widefield", ""]
    return "\n".join(lines)

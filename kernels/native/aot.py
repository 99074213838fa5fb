"""The Triton-language kernels compiled ahead of time, with no GPU, and the table of them that the C++ launch searches.

What is compiled is variants.py's choice; a cubin is compiled once for a kernel's source, its warps and stages and
Triton's version.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kernels.native.variants import FOLDER, Pack, Taps, Toeplitz, Variant, WholeImage, all_variants

KINDS = (Taps, Pack, Toeplitz, WholeImage)


@dataclass(frozen=True)
class CompiledKernel:
    """A cubin file and what its launch needs."""

    variant: Variant
    file: str
    name: str
    shared_bytes: int
    warps: int


def compile_all(cache: Path, variants: list[Variant] | None = None) -> list[CompiledKernel]:
    """Compile what `cache` does not hold yet, in as many processes as there are cores."""
    variants = all_variants() if variants is None else variants
    folders = {source: cache / source_key(source) for source in {kind.source for kind in KINDS}}
    for old in cache.iterdir() if cache.is_dir() else []:  # what an older kernel or Triton left
        if old not in folders.values():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folders[v.source] / f"{v}_w{v.warps}_s{v.stages}.cubin" for v in variants]
    missing = [(v, path) for v, path in zip(variants, paths, strict=True) if not path.with_suffix(".json").exists()]
    if missing:
        import triton  # noqa: F401 - imported once, before the processes part

        os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # or the listing in each cubin is larger than its code
        workers = min(len(missing), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            list(pool.map(compile_one, *zip(*missing, strict=True)))
    return [
        CompiledKernel(variant, str(path), **json.loads(path.with_suffix(".json").read_text()))
        for variant, path in zip(variants, paths, strict=True)
    ]


def source_key(source: str) -> str:
    """Changes when the kernel, how it is compiled or Triton does."""
    import triton

    digest = hashlib.sha256(triton.__version__.encode())
    kernel = (FOLDER / source, FOLDER / "activation.py")  # which all but one call
    for path in (*kernel, Path(__file__), Path(__file__).with_name("variants.py")):
        digest.update(path.read_bytes())
    return f"{Path(source).stem}-{digest.hexdigest()[:16]}"


def compile_one(variant: Variant, path: Path) -> None:
    """Writes the cubin and, last and in one step, what its launch needs beside it.

    Raises `RuntimeError` when the kernel wants scratch memory, which the launch does not give.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature, constants, divisible = variant.specialisation()
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", n]] for name, n in divisible.items()}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", variant.architecture, 32), options=options)
    metadata = compiled.metadata
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, scratch, 0):
            raise RuntimeError(f"{variant}: {scratch} is {getattr(metadata, scratch)}, 0 is expected")
    draft = path.with_suffix(f".{os.getpid()}")  # another build may be reading what is there
    draft.write_bytes(compiled.asm["cubin"])
    draft.replace(path)
    needed = {"name": metadata.name, "shared_bytes": metadata.shared, "warps": metadata.num_warps}
    draft.write_text(json.dumps(needed))
    draft.replace(path.with_suffix(".json"))


def cubin_table(kernels: list[CompiledKernel]) -> str:
    """C++ source with every cubin in the library's read-only data and the tables that cuda_launch.cpp searches."""
    lines = ['#include "cuda_launch.h"', ""]
    rows: dict[type, list[str]] = {kind: [] for kind in KINDS}
    for index, kernel in enumerate(kernels):
        symbol = f"widefield_cubin_{index}"
        data = f'.section .rodata\\n.balign 64\\n{symbol}:\\n.incbin \\"{kernel.file}\\"\\n.previous\\n'
        lines += [f'asm("{data}");', f'extern const unsigned char cubin_{index}[] asm("{symbol}");']
        what = f'{kernel.variant.architecture}, cubin_{index}, "{kernel.name}", {kernel.shared_bytes}, {kernel.warps}'
        rows[type(kernel.variant)].append(f"    {{{{{what}}}, {kernel.variant.row()}}},")
    lines += ["", "namespace widefield {"]
    for kind, table in rows.items():
        name = kind.__name__
        # an array of no elements is not C++
        lines += [f"const {name}Kernel k{name}Kernels[] = {{", *(table or ["    {}"]), "};"]
        lines += [f"const int k{name}KernelCount = {len(table)};"]
    return "\n".join([*lines, "}  // namespace widefield", ""])

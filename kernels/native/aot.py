"""Ahead-of-time compilation of the Triton-language kernels, without a GPU.

variants.py says what is compiled. A cubin is compiled again only if its kernel's source, its warps or stages, or Triton
has changed.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.native.variants import FOLDER, Variant, all_variants


@dataclass(frozen=True)
class CompiledKernel:
    """A cubin file and what its launch needs."""

    variant: Variant
    file: str
    name: str
    shared_bytes: int
    warps: int


def compile_all(cache: Path, variants: list[Variant] | None = None) -> list[CompiledKernel]:
    """Compile what `cache` does not hold yet, in as many processes as there are cores; return all kernels."""
    variants = all_variants() if variants is None else variants
    folders = {source: cache / source_key(source) for source in {variant.source for variant in variants}}
    for old in cache.iterdir() if cache.is_dir() else []:  # cubins of an older kernel or Triton
        if old not in folders.values():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folders[v.source] / f"{v}_w{v.warps}_s{v.stages}.cubin" for v in variants]
    missing = [(v, path) for v, path in zip(variants, paths, strict=True) if not path.with_suffix(".json").exists()]
    if missing:
        os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # else each cubin has line information larger than its code
        workers = min(len(missing), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            list(pool.map(compile_one, *zip(*missing, strict=True)))
    return [
        CompiledKernel(variant, str(path), **json.loads(path.with_suffix(".json").read_text()))
        for variant, path in zip(variants, paths, strict=True)
    ]


def source_key(source: str) -> str:
    """Return a name that changes with the kernel, how it is compiled and Triton's version."""
    digest = hashlib.sha256(triton.__version__.encode())
    kernel = (FOLDER / name for name in (source, "activation.py", "product.py"))  # most kernels call the last two
    for path in (*kernel, Path(__file__), Path(__file__).with_name("variants.py")):
        digest.update(path.read_bytes())
    return f"{Path(source).stem}-{digest.hexdigest()[:16]}"


def compile_one(variant: Variant, path: Path) -> None:
    """Write the cubin to `path` and then, atomically, what its launch needs to a JSON file beside it.

    Raises `RuntimeError` if the kernel needs scratch memory, which the launch does not provide.
    """
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

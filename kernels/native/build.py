"""Build kernels/native/lib/libwidefield.so with g++: `python kernels/native/build.py`.

No GPU and no CUDA toolkit are needed. Without Triton the library is built for the CPU only, with a message.
WIDEFIELD_ARCHITECTURES="86 90" builds for GPUs of compute capability 8.6 and 9.0 only, in less time; a later build
without it, or with others, is made anew.

Run by its path, this script imports PyTorch only if there is something to build, and never loads an older library,
which may not fit.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
OUTPUT = HERE / "lib" / "libwidefield.so"
KERNELS = (  # and what chooses their forms
    "kernel.py",
    "activation.py",
    "product.py",
    "toeplitz.py",
    "toeplitz_kernel.py",
    "packing.py",
    "whole_image.py",
    "tiles.json",
)
KINDS = ("Taps", "Pack", "Toeplitz", "WholeImage")  # classes of variants.py, and prefixes of cuda_launch.h's tables
# 2.10: the oldest libtorch that the library loads into, whatever the headers' version.
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-maybe-uninitialized", TARGET)


class BuildError(RuntimeError):
    """The library could not be built; one that was there is unchanged."""


def torch_folder() -> Path:
    """Return the torch package's folder without importing torch, which takes seconds. Raises `BuildError`."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin or not spec.submodule_search_locations:  # no origin: an empty folder left by pip
        raise BuildError("PyTorch is not installed: pip install 'torch>=2.11'")
    return Path(spec.submodule_search_locations[0])


def fingerprint(torch: Path) -> str:
    """Return a hash of the sources, the compiler's flags, the architectures and the versions of PyTorch and Triton."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    inputs = sorted(path for suffix in ("cpp", "h", "py") for path in HERE.glob(f"*.{suffix}"))
    inputs += [HERE.parent / "depthwise_conv2d" / name for name in KERNELS]
    for path in [*inputs, torch / "version.py"]:
        digest.update(path.read_bytes())
    digest.update(triton_version().encode())
    digest.update(" ".join(architectures()).encode())
    return digest.hexdigest()


def architectures() -> list[str]:
    """Return the architectures that $WIDEFIELD_ARCHITECTURES names; none: all of variants.ARCHITECTURES."""
    return sorted(set(os.environ.get("WIDEFIELD_ARCHITECTURES", "").split()))


def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_current(output: Path = OUTPUT) -> bool:
    """Whether it is built, from these sources and for this PyTorch and Triton. Raises `BuildError` without PyTorch."""
    stamp = output.with_suffix(".stamp")
    return output.exists() and stamp.exists() and stamp.read_text() == fingerprint(torch_folder())


def build(output: Path = OUTPUT) -> str:
    """Build unless the library is up to date; return a line that says what was done. Raises `BuildError`."""
    torch = torch_folder()
    wanted = fingerprint(torch)
    if is_current(output):
        return f"{output.name} is up to date"
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise BuildError("g++ is missing: sudo apt-get install g++")
    started = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    kernels = compile_kernels(output.parent / "cubins")
    seconds = time.perf_counter() - started
    compile_library(compiler, torch, kernels, output)
    output.with_suffix(".stamp").write_text(wanted)
    total = time.perf_counter() - started
    gpus = " ".join(architectures()) or "all architectures"
    cubins = f"{len(kernels)} cubins for {gpus} in {seconds:.0f} s"
    gpu = cubins if kernels else "for the CPU only: Triton is not installed"
    return f"built {output.name} in {total:.0f} s ({gpu}, {output.stat().st_size / 1e6:.1f} MB)"


def compile_kernels(cache: Path) -> list:
    """Return the cubins, none without Triton. Raises `BuildError` for an architecture that is unknown."""
    if not triton_version():
        return []
    from kernels.native.aot import compile_all
    from kernels.native.variants import ARCHITECTURES, all_variants

    named = architectures()
    if unknown := set(named) - set(map(str, ARCHITECTURES)):
        known = " ".join(map(str, ARCHITECTURES))
        raise BuildError(f"WIDEFIELD_ARCHITECTURES has {min(unknown)}: choose among {known}, separated by spaces")
    return compile_all(cache, all_variants([a for a in ARCHITECTURES if not named or str(a) in named]))


def compile_library(compiler: str, torch: Path, kernels: list, output: Path) -> None:
    """Compile the sources in parallel and link them; the new library replaces the old one atomically."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=output.parent) as folder:
        work = Path(folder)
        (work / "cubins.cpp").write_text(cubin_table(kernels))
        sources = [*sorted(HERE.glob("*.cpp")), work / "cubins.cpp"]
        include = [f"-I{HERE}", f"-isystem{torch / 'include'}"]
        objects = [work / f"{source.stem}.o" for source in sources]
        run_all([compiler, *FLAGS, *include, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True))
        library = work / output.name
        # libtorch_cpu is linked even if unused, so that LD_PRELOAD in a server without torch loads it.
        link = [compiler, "-shared", "-o", str(library), *map(str, objects), f"-L{torch / 'lib'}", "-Wl,--no-as-needed"]
        link += ["-ltorch_cpu", "-Wl,--as-needed", "-ldl", "-pthread"]
        run_all([link])
        library.replace(output)


def cubin_table(kernels: list) -> str:
    """Return C++ source with every cubin, in read-only data, and the tables that cuda_launch.cpp searches."""
    lines = ['#include "cuda_launch.h"', ""]
    rows: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for index, kernel in enumerate(kernels):
        symbol = f"widefield_cubin_{index}"
        data = f'.section .rodata\\n.balign 64\\n{symbol}:\\n.incbin \\"{kernel.file}\\"\\n.previous\\n'
        lines += [f'asm("{data}");', f'extern const unsigned char cubin_{index}[] asm("{symbol}");']
        what = f'{kernel.variant.architecture}, cubin_{index}, "{kernel.name}", {kernel.shared_bytes}, {kernel.warps}'
        rows[type(kernel.variant).__name__].append(f"    {{{{{what}}}, {kernel.variant.row()}}},")
    lines += ["", "namespace widefield {"]
    for name, table in rows.items():
        # an array of no elements is not C++
        lines += [f"const {name}Kernel k{name}Kernels[] = {{", *(table or ["    {}"]), "};"]
        lines += [f"const int k{name}KernelCount = {len(table)};"]
    return "\n".join([*lines, "}  // namespace widefield", ""])


# From here to `end` as in server/backends/build.py: neither may import the other, and each is run by its path.
def run_all(commands: Iterable[list[str]]) -> None:
    """Run the commands in parallel. If one fails, end the others and raise `BuildError`."""
    with ExitStack() as stack:
        processes = [(command, start(command, stack)) for command in commands]
        for command, process in processes:
            errors = process.communicate()[1]
            if process.returncode != 0:
                raise BuildError(f"{' '.join(command)}\n{errors.strip()}")


def start(command: list[str], stack: ExitStack) -> subprocess.Popen:
    """Start the command in its own process group, which `stack` ends: g++ starts child processes."""
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    except OSError as error:
        raise BuildError(f"compiler {error.filename} cannot be run ({error.strerror}): name one in CXX") from None
    stack.enter_context(process)  # waits for the process at the end
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        print(build())
    except BuildError as error:
        print(f"native library: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.environ["WIDEFIELD_NATIVE"] = "0"
    sys.path.insert(0, str(HERE.parents[1]))
    sys.exit(main())

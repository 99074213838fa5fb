"""Builds the embedded server's PyTorch backend with g++ alone: `python server/backends/pytorch/build.py`.

It is linked against this environment's libtorch, and built again when that changes.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "lib" / "libtriton_pytorch.so"
SOURCES = ("backend.cpp", "lone.cpp", "model.cpp", "request.cpp", "settings.cpp")
HEADERS = ("json.h", "lone.h", "model.h", "request.h", "settings.h", "tritonbackend.h")
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-fopenmp")


class BuildError(RuntimeError):
    """The backend could not be built; one that was there is unchanged."""


def torch_folder() -> Path:
    """The torch package's folder, found without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin or not spec.submodule_search_locations:  # no origin: what pip left of one
        raise BuildError("PyTorch is not installed: pip install 'torch>=2.11'")
    return Path(spec.submodule_search_locations[0])


def fingerprint(torch: Path) -> str:
    """Changes when a source, the compiler's flags or PyTorch does, or when PyTorch lies elsewhere."""
    digest = hashlib.sha256(f"{FLAGS} {torch}".encode())
    for path in [*(HERE / name for name in (*SOURCES, *HEADERS, "build.py")), torch / "version.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(output: Path = OUTPUT) -> bool:
    """Whether the backend is built, from these sources and for this environment's PyTorch. Raises `BuildError`."""
    stamp = output.with_suffix(".stamp")
    return output.exists() and stamp.exists() and stamp.read_text() == fingerprint(torch_folder())


def build(output: Path = OUTPUT) -> str:
    """Build unless the backend is current; returns a line that says what was done. Raises `BuildError`."""
    if is_current(output):
        return f"{output.name} is up to date"
    torch = torch_folder()
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise BuildError("g++ is missing: sudo apt-get install g++")
    started = time.perf_counter()
    work = output.parent / f"build-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        include = [f"-isystem{torch / 'include'}", f"-isystem{torch / 'include/torch/csrc/api/include'}"]
        objects = [str(work / f"{Path(name).stem}.o") for name in SOURCES]
        run_all(
            [compiler, *FLAGS, *include, "-c", str(HERE / name), "-o", target]
            for name, target in zip(SOURCES, objects, strict=True)
        )
        library = work / output.name
        libtorch = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
        run_all([[compiler, "-shared", "-o", str(library), *objects, *libtorch]])
        library.replace(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    output.with_suffix(".stamp").write_text(fingerprint(torch))
    return f"built {output.name} in {time.perf_counter() - started:.0f} s"


def run_all(commands: Iterable[list[str]]) -> None:
    """The commands, side by side."""
    try:
        processes = [(command, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) for command in commands]
    except OSError as error:
        raise BuildError(f"compiler {error.filename} cannot be run ({error.strerror}): name one in CXX") from None
    for command, process in processes:
        errors = process.communicate()[1]
        if process.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{errors.strip()}")


def main() -> int:
    try:
        print(build())
    except BuildError as error:
        print(f"PyTorch backend: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

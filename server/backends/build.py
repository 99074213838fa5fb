"""Build the embedded server's libraries with g++: `python server/backends/build.py [pytorch] [resize] ...`.

`pytorch` is the backend that runs TorchScript, linked against this environment's libtorch. `python_in_process` is the
backend that runs the preprocess step, `resize` is Pillow's resize for that step, and `fixes` is preloaded into
tritonserver to work around defects of its own; these three need no other library. A library is rebuilt when its
sources, flags or PyTorch change.
"""

import argparse
import hashlib
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
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    folder: Path  # of the sources
    output: Path
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    headers: tuple[str, ...] = ()
    torch: bool = False

    @property
    def stamp(self) -> Path:
        return self.output.with_suffix(".stamp")


SHARED = ("../backend.h", "../tritonbackend.h")
PYTORCH = Library(
    HERE / "pytorch",
    HERE / "pytorch" / "lib" / "libtriton_pytorch.so",
    sources=("backend.cpp", "configure.cpp", "lone.cpp", "model.cpp", "request.cpp", "settings.cpp"),
    flags=("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-fopenmp"),
    headers=(*SHARED, "configure.h", "json.h", "lone.h", "model.h", "request.h", "settings.h"),
    torch=True,
)
PYTHON_IN_PROCESS = Library(
    HERE / "python_in_process",
    HERE / "python_in_process" / "lib" / "libtriton_python_in_process.so",
    sources=("backend.cpp", "request.cpp"),
    flags=("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall"),
    headers=(*SHARED, "request.h"),
)
RESIZE = Library(
    HERE / "resize",
    HERE / "resize" / "lib" / "libwidefield_resize.so",
    sources=("resize.cpp",),
    # Without -ffp-contract=off, a fused multiply-add rounds once, and the weights differ from Pillow's.
    flags=("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-ffp-contract=off"),
)
FIXES = Library(
    HERE / "fixes",
    HERE / "fixes" / "lib" / "libwidefield_fixes.so",
    sources=("batcher.cpp", "deleted.cpp", "unload.cpp", "warmup.cpp"),
    flags=("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall"),
)
BACKENDS = (PYTORCH, PYTHON_IN_PROCESS)
LIBRARIES = {library.folder.name: library for library in (*BACKENDS, RESIZE, FIXES)}


class BuildError(RuntimeError):
    """A library could not be built; an earlier build of it is unchanged."""


def torch_folder() -> Path:
    """Return the torch package's folder without importing torch, which takes seconds. Raises `BuildError`."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin or not spec.submodule_search_locations:  # no origin: an empty folder left by pip
        raise BuildError("PyTorch is not installed: pip install 'torch>=2.11'")
    return Path(spec.submodule_search_locations[0])


def fingerprint(library: Library) -> str:
    """Return a hash of the sources, the compiler's flags and, if needed, PyTorch's version and folder."""
    torch = torch_folder().resolve() if library.torch else None  # the same through any symbolic link
    digest = hashlib.sha256(f"{library.flags} {torch}".encode())
    for path in [*(library.folder / name for name in (*library.sources, *library.headers)), HERE / "build.py"]:
        digest.update(path.read_bytes())
    if torch is not None:
        digest.update((torch / "version.py").read_bytes())
    return digest.hexdigest()


def is_current(library: Library) -> bool:
    """Whether the library is built from these sources for this PyTorch. Raises `BuildError` if PyTorch is missing."""
    wanted = fingerprint(library)
    return library.output.exists() and library.stamp.exists() and library.stamp.read_text() == wanted


def build(library: Library) -> str:
    """Build the library unless it is current; return a line that says what was done. Raises `BuildError`."""
    output = library.output
    if is_current(library):
        return f"{output.name} is up to date"
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise BuildError("g++ is missing: sudo apt-get install g++")
    include, link = torch_options() if library.torch else ([], [])
    started = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=output.parent) as work:
        objects = [f"{work}/{Path(name).stem}.o" for name in library.sources]
        run_all(
            [compiler, *library.flags, *include, "-c", str(library.folder / name), "-o", target]
            for name, target in zip(library.sources, objects, strict=True)
        )
        run_all([[compiler, "-shared", "-o", f"{work}/{output.name}", *objects, *link]])
        Path(work, output.name).replace(output)
    library.stamp.write_text(fingerprint(library))
    return f"built {output.name} in {time.perf_counter() - started:.0f} s"


def torch_options() -> tuple[list[str], list[str]]:
    """Return the options for PyTorch of the compiler and of the linker."""
    torch = torch_folder()
    include = [f"-isystem{torch / 'include'}", f"-isystem{torch / 'include/torch/csrc/api/include'}"]
    return include, [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]


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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="LIBRARY", help=f"{', '.join(LIBRARIES)} (default: all of them)")
    names = parser.parse_args(arguments).names or list(LIBRARIES)
    if unknown := [name for name in names if name not in LIBRARIES]:
        parser.error(f"{unknown[0]}: no such library: choose from {', '.join(LIBRARIES)}")
    for name in names:
        try:
            print(build(LIBRARIES[name]))
        except BuildError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

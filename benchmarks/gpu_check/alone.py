"""A second process that loads the native library and never imports `kernels`, which registers Python's operator."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import ROOT


def run_alone(
    module: str, write_files: Callable[[Path], None], *arguments: str, capture_output: bool = False
) -> subprocess.CompletedProcess[str] | None:
    """Run `module LIBRARY FOLDER ARGUMENTS`, whose folder `write_files` fills; None, and a line, without a library."""
    from kernels import native_library

    library = native_library()
    if library is None:
        print("the native library is not built: python kernels/native/build.py")
        return None
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        command = [sys.executable, "-m", module, str(library), folder, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=capture_output, text=True)


def check_alone() -> None:
    """Raise `RuntimeError` if `kernels` is imported."""
    if "kernels" in sys.modules:
        raise RuntimeError("`kernels` was imported: the operator may have been Python's")

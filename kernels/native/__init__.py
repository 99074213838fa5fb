"""Find and load the library that brings the operations to processes without Python."""

import os
import warnings
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent / "lib" / "libwidefield.so"


def native_library() -> Path | None:
    """Return the path of the library, $WIDEFIELD_LIBRARY or else in kernels/native/lib; None if it is not built.

    Raises `RuntimeError` if the variable names no file.
    """
    if named := os.environ.get("WIDEFIELD_LIBRARY"):
        if not Path(named).is_file():
            raise RuntimeError(f"WIDEFIELD_LIBRARY={named} is not a file: name a libwidefield.so, or unset it")
        return Path(named)
    return LIBRARY if LIBRARY.is_file() else None


def is_wanted() -> bool:
    """Whether $WIDEFIELD_NATIVE allows the library: 1, the default, or 0. Raises `RuntimeError` for anything else."""
    switch = os.environ.get("WIDEFIELD_NATIVE", "1")
    if switch not in ("0", "1"):
        raise RuntimeError(f"WIDEFIELD_NATIVE={switch}: 0 leaves the library out, 1 loads it if it is built")
    return switch == "1"


@cache
def warn_if_missing() -> None:
    """Warn once that PyTorch computes on the CPU, unless that is wanted."""
    if is_wanted():
        build = "python kernels/native/build.py in a checkout builds it; WIDEFIELD_NATIVE=0 ends this warning"
        warnings.warn(f"kernels: no native library, so PyTorch computes, many times slower: {build}", stacklevel=2)


def is_loaded() -> bool:
    """Whether the library's operators are registered, by `load_native_library` or by torch.ops.load_library."""
    return hasattr(torch.ops.widefield, "has_cpu_kernels")


def load_native_library() -> bool:
    """Load the library if it is built and wanted. Return whether it was loaded.

    Raises `RuntimeError` as `native_library` and `is_wanted` do, and if the library was built for another PyTorch.
    """
    if not is_wanted() or (path := native_library()) is None:
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise RuntimeError(
            f"{path} does not load into PyTorch {torch.__version__}: build it again with make native"
        ) from error
    return True

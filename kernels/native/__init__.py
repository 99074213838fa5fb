"""Find and load the library that brings the operations to processes without Python."""

import os
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


def is_loaded() -> bool:
    """Whether the library's operators are registered, by `load_native_library` or by torch.ops.load_library."""
    return hasattr(torch.ops.widefield, "has_cpu_kernels")


def load_native_library() -> bool:
    """Load the library if it is built and WIDEFIELD_NATIVE is not 0. Return whether it was loaded.

    Raises `RuntimeError` as `native_library` does, and if the library was built for another PyTorch.
    """
    if os.environ.get("WIDEFIELD_NATIVE") == "0" or (path := native_library()) is None:
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise RuntimeError(
            f"{path} does not load into PyTorch {torch.__version__}: build it again with make native"
        ) from error
    return True

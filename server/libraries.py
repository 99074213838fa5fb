"""Finds the libraries of tritonserver: the native operators, the preprocess step's resize and the fixes."""

import os
from collections.abc import Mapping
from pathlib import Path

from server.backends import build as backends
from server.errors import InstallationError, OptionError
from server.repository import Repository

DEFAULT_LIBRARY = Path(__file__).resolve().parents[1] / "kernels" / "native" / "lib" / "libwidefield.so"
ELF = b"\x7fELF"


def find_library(
    library: str | Path | None, repository: Repository, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Return the native library: `library`, else $WIDEFIELD_LIBRARY, else the built one; None if no model needs it.

    Raises `OptionError` if the given file is not a library, `InstallationError` if a model needs one and there is none.
    """
    named = library if library is not None else environment.get("WIDEFIELD_LIBRARY") or None
    if named is not None:
        return _named(named, "native library", "run python kernels/native/build.py")
    if DEFAULT_LIBRARY.is_file():
        return DEFAULT_LIBRARY
    if repository.needs_library:
        raise InstallationError(
            f"model {repository.needs_library} needs {DEFAULT_LIBRARY.name}, not built yet: "
            "run python kernels/native/build.py"
        )
    return None


def find_resize(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the resize library: $WIDEFIELD_RESIZE, else the built one; None if that is missing or out of date.

    Raises `OptionError` if $WIDEFIELD_RESIZE is not a library.
    """
    if named := environment.get("WIDEFIELD_RESIZE"):
        return _named(named, "WIDEFIELD_RESIZE", "unset it, or run python server/backends/build.py resize")
    return backends.RESIZE.output if backends.is_current(backends.RESIZE) else None


def find_fixes(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the fixes of tritonserver: $WIDEFIELD_FIXES, else the built ones; None if it is empty, or if these are
    missing or out of date.

    Raises `OptionError` if $WIDEFIELD_FIXES is not a library.
    """
    named = environment.get("WIDEFIELD_FIXES")
    if named is None:
        return backends.FIXES.output if backends.is_current(backends.FIXES) else None
    remedy = "unset it, or run python server/backends/build.py fixes"
    return _named(named, "WIDEFIELD_FIXES", remedy) if named else None


def _named(named: str | Path, what: str, remedy: str) -> Path:
    path = Path(os.path.expanduser(named)).absolute()
    try:
        with path.open("rb") as file:
            found = file.read(len(ELF))
    except OSError as error:
        raise OptionError(f"{what} {path} cannot be read ({error.strerror}): {remedy}") from None
    if found != ELF:
        raise OptionError(f"{what} {path} is not a shared library: {remedy}")
    return path

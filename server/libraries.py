"""Finds the libraries of tritonserver: the native operators, the preprocess step's resize and the fixes."""

import os
from pathlib import Path

from server.backends import build as backends
from server.errors import InstallationError, OptionError
from server.repository import Repository

DEFAULT_LIBRARY = Path(__file__).resolve().parents[1] / "kernels" / "native" / "lib" / "libwidefield.so"
ELF = b"\x7fELF"


def find_library(library: str | Path | None, repository: Repository) -> Path | None:
    """Return the native library: `library`, else $WIDEFIELD_LIBRARY, else the built one; None if no model needs it.

    Raises `OptionError` if the given file is not a library, `InstallationError` if a model needs one and there is none.
    """
    named = library if library is not None else os.environ.get("WIDEFIELD_LIBRARY") or None
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


def find_resize() -> Path | None:
    """Return the resize library. Raises `OptionError` if $WIDEFIELD_RESIZE is not a library."""
    return _find(backends.RESIZE, "WIDEFIELD_RESIZE")


def find_fixes() -> Path | None:
    """Return the fixes of tritonserver; none for an empty $WIDEFIELD_FIXES. Raises `OptionError` as `find_resize`."""
    return None if os.environ.get("WIDEFIELD_FIXES") == "" else _find(backends.FIXES, "WIDEFIELD_FIXES")


def _find(library: backends.Library, variable: str) -> Path | None:
    """Return the library that `variable` names, else the built one; None if that is missing or out of date."""
    if named := os.environ.get(variable):
        return _named(named, variable, f"unset it, or run python server/backends/build.py {library.folder.name}")
    return library.output if backends.is_current(library) else None


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

"""Checks before the start, with one line each; tritonserver would report these errors late, at length or not at all."""

import ctypes
import difflib
import importlib.metadata
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.endpoints import PORT_FLAGS
from server.errors import InstallationError, OptionError
from server.locate import Installation

OURS = {  # tritonserver's option -> the launcher's option that sets it
    **{flag: flag for flag in PORT_FLAGS.values()},
    "--http-address": "--host",
    "--grpc-address": "--host",
    "--metrics-address": "--metrics-host",
    "--exit-timeout-secs": "--drain-seconds",
}
EMBEDDED_BACKENDS = ("python", "pytorch", "python_in_process")  # the wheel's, and those in server/backends


def check_options(not_negative: Mapping[str, float], positive: Mapping[str, float]) -> None:
    """Raise `OptionError` for a value out of range. Both arguments: name on the command line -> value."""
    for name, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise OptionError(f"--{name} is {value:g}: give 0 or more")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise OptionError(f"--{name} is {value:g}: give more than 0")


def check_passed_on(options: Sequence[str]) -> None:
    """Raise `OptionError` for an option after `--` that would hide the server from the launcher."""
    for name in (option.partition("=")[0] for option in options):
        if name in OURS:
            raise OptionError(f"{name} cannot be passed on, the launcher sets it: give {OURS[name]} before --")
        if name == "--allow-http":
            raise OptionError("--allow-http cannot be passed on, the launcher asks the server over HTTP: leave it out")


def check_numpy(model: str) -> None:
    """Raise `InstallationError` for numpy 2: the embedded Python backend, which `model` uses, returns empty tensors."""
    try:
        version = importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        raise InstallationError('numpy is missing: pip install "numpy<2"') from None
    if int(version.split(".")[0]) >= 2:
        raise InstallationError(
            f"numpy {version} makes the embedded tritonserver answer empty tensors for model {model}: "
            f'pip install "numpy<2" (Python 3.12 or older), or {in_own_process(model)}'
        )


def in_own_process(model: str) -> str:
    return (
        "let it run in the server's own process: "
        f'its config.pbtxt copied to {model}/configs/embedded.pbtxt, with backend: "python_in_process"'
    )


def check_stub_libraries(stub: Path, environment: dict[str, str]) -> None:
    """Raise `InstallationError` unless the dynamic loader finds the stub's libraries. Does not run the stub."""
    listing = subprocess.run(
        [str(stub)], env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
    )
    missing = [line.split()[0] for line in listing.stdout.splitlines() if "not found" in line]
    if missing:
        raise InstallationError(f"libraries of the Python backend are missing: {', '.join(missing)}")


def check_libpython(name: str) -> None:
    """Raise `InstallationError` if the dynamic loader does not find libpython: tritonserver would crash."""
    try:
        ctypes.CDLL(name)
    except OSError:
        raise InstallationError(
            f"{name} is missing, the Python backend needs it: apt-get install {name.partition('.so')[0]} "
            "(or use a Python built with --enable-shared)"
        ) from None


def check_python_on_path(folder: Path) -> None:
    """Raise `InstallationError` if `folder`, which is put first on PATH, has no python3 for the stub to find."""
    if not os.access(folder / "python3", os.X_OK):
        raise InstallationError(f"{folder} has no python3, the Python backend needs one: use a virtual environment")


def check_loadable(folder: Path) -> None:
    """Raise `InstallationError` if `folder` is mounted noexec: tritonserver loads libraries from it."""
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise InstallationError(
            f"{folder.parent} is mounted noexec, and the server's backends are loaded from there: "
            "name another folder in TMPDIR"
        )


def check_backends(needed: Mapping[str, str], installation: Installation, extra: Sequence[str] = ()) -> None:
    """Raise `InstallationError` for a missing backend. `needed`: model -> backend; `extra`: tritonserver's options."""
    if not installation.embedded or any(option.startswith("--backend-directory") for option in extra):
        return
    for model, backend in needed.items():
        if backend not in EMBEDDED_BACKENDS:
            rebuild = "build it with build_models.py --format torchscript, or " if backend == "onnxruntime" else ""
            (meant,) = difflib.get_close_matches(backend, EMBEDDED_BACKENDS, n=1) or ("",)
            remedy = f"did you mean {meant}?" if meant else f"{rebuild}serve it with NVIDIA's container (deploy/)"
            raise InstallationError(
                f"model {model} needs the {backend} backend, which the embedded tritonserver does not have (it has "
                f"{', '.join(EMBEDDED_BACKENDS)}): {remedy}"
            )


def check_log_file(path: Path) -> None:
    """Create the log file and its folder if they do not exist. Raises `OptionError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise OptionError(
            f"log file {path} cannot be written ({error.strerror}): name another with --log-file"
        ) from None

"""Checks before the start, with one line each; tritonserver would report these errors late, at length or not at all."""

import ctypes
import difflib
import importlib.metadata
import itertools
import math
import os
import random
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from server.errors import InstallationError, OptionError, PortInUseError
from server.locate import Installation

PORT_FLAGS = {"http": "--http-port", "grpc": "--grpc-port", "metrics": "--metrics-port"}
OURS = {  # tritonserver's option -> the launcher's option that sets it
    **{flag: flag for flag in PORT_FLAGS.values()},
    "--http-address": "--host",
    "--grpc-address": "--host",
    "--metrics-address": "--metrics-host",
    "--exit-timeout-secs": "--drain-seconds",
}
ANY_ADDRESS = ("0.0.0.0", "::")
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


def resolve(host: str) -> str:
    """Return the numeric address of `host` on this machine, IPv4 if it has one. Raises `OptionError`."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise OptionError(f"host {host!r} is not an address: use 127.0.0.1 or 0.0.0.0") from None
    address = str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])
    try:
        with socket.socket(family(address)) as probe:
            probe.bind((address, 0))
    except OSError as error:
        raise OptionError(
            f"host {host} is not an address of this machine ({error.strerror}): use 127.0.0.1 or 0.0.0.0"
        ) from None
    return address


def check_ports(asked: Mapping[str, tuple[str, int]]) -> None:
    """Raise `OptionError` or `PortInUseError` for ports that cannot be used. `asked`: service -> numeric host, port."""
    for service, (_, port) in asked.items():
        if not 1 <= port <= 65535:
            raise OptionError(f"{PORT_FLAGS[service]} is {port}: choose one from 1024 to 65535, or 0 for any free one")
    for (first, (host, port)), (second, (other_host, other_port)) in itertools.combinations(asked.items(), 2):
        if port == other_port and overlap(host, other_host):
            raise OptionError(f"port {port} is given to both {first} and {second}: give each its own")
    for service, (host, port) in asked.items():
        if port_is_free(host, port):
            continue
        owner = port_owner(port)
        raise PortInUseError(
            f"port {port} is in use{f' by {owner}' if owner else ''}: stop it, or choose another with "
            f"{PORT_FLAGS[service]}"
        )


def overlap(host: str, other: str) -> bool:
    """Whether two services on these hosts need different ports. gRPC at 0.0.0.0 listens on IPv6 too."""
    return host == other or host in ANY_ADDRESS or other in ANY_ADDRESS


def port_is_free(host: str, port: int) -> bool:
    """Whether a service can listen on the port of `host`, a numeric address."""
    with socket.socket(family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except PermissionError:
            raise OptionError(f"port {port} needs root: choose one above 1023") from None
        except OSError:
            return False
    return True


def port_owner(port: int) -> str:
    """Return the name and pid of the process that listens on `port`; empty if they are unknown."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def free_ports(hosts: Sequence[str]) -> list[int]:
    """Choose a free port for each of the numeric hosts; all differ.

    They are below Linux's ephemeral ports, which other processes may be given before tritonserver listens.
    """
    candidates = iter(random.SystemRandom().sample(range(10_000, 30_000), 5_000))  # not affected by random.seed
    return [next(port for port in candidates if port_is_free(host, port)) for host in hosts]


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET

"""Checks before the start: what tritonserver would say late, in many lines or not at all, said early in one."""

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
OURS = {  # tritonserver's options -> those that the launcher makes them from, and knows the server by
    **{flag: flag for flag in PORT_FLAGS.values()},
    "--http-address": "--host",
    "--grpc-address": "--host",
    "--metrics-address": "--metrics-host",
    "--exit-timeout-secs": "--drain-seconds",
}
ANY_ADDRESS = ("0.0.0.0", "::")
EMBEDDED_BACKENDS = ("python", "pytorch", "python_in_process")  # the wheel's own, and those in server/backends


def check_options(not_negative: Mapping[str, float], positive: Mapping[str, float]) -> None:
    """Option -> value, as the command line names it."""
    for name, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise OptionError(f"--{name} is {value:g}: give 0 or more")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise OptionError(f"--{name} is {value:g}: give more than 0")


def check_passed_on(options: Sequence[str]) -> None:
    """Refuses those of tritonserver's own options, which follow `--`, by which the launcher would lose track of it."""
    for name in (option.partition("=")[0] for option in options):
        if name in OURS:
            raise OptionError(f"{name} cannot be passed on, the launcher sets it: give {OURS[name]} before --")
        if name == "--allow-http":
            raise OptionError("--allow-http cannot be passed on, the launcher asks the server over HTTP: leave it out")


def check_numpy(model: str) -> None:
    """The embedded server's Python backend, which `model` names, answers empty tensors under numpy 2, silently."""
    try:
        version = importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        raise InstallationError('numpy is missing: pip install "numpy<2"') from None
    if int(version.split(".")[0]) >= 2:
        raise InstallationError(
            f"numpy {version} makes the embedded tritonserver answer empty tensors for model {model}: "
            'pip install "numpy<2" (Python 3.12 or older), or let it run in the server\'s own process: '
            f'its config.pbtxt copied to {model}/configs/embedded.pbtxt, with backend: "python_in_process"'
        )


def check_stub_libraries(stub: Path, environment: dict[str, str]) -> None:
    """Asks the dynamic loader, without running the stub, whether all its libraries are found."""
    listing = subprocess.run(
        [str(stub)], env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
    )
    missing = [line.split()[0] for line in listing.stdout.splitlines() if "not found" in line]
    if missing:
        raise InstallationError(f"libraries of the Python backend are missing: {', '.join(missing)}")


def check_libpython(name: str) -> None:
    """tritonserver would crash where the dynamic loader does not find it."""
    try:
        ctypes.CDLL(name)
    except OSError:
        raise InstallationError(
            f"{name} is missing, the Python backend needs it: apt-get install {name.partition('.so')[0]} "
            "(or use a Python built with --enable-shared)"
        ) from None


def check_python_on_path(folder: Path) -> None:
    """The stub finds its packages through the first python3 on PATH: the launcher puts `folder` there."""
    if not os.access(folder / "python3", os.X_OK):
        raise InstallationError(f"{folder} has no python3, the Python backend needs one: use a virtual environment")


def check_loadable(folder: Path) -> None:
    """tritonserver loads libraries from there; of a mount that forbids it the loader says "failed to map segment"."""
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise InstallationError(
            f"{folder.parent} is mounted noexec, and the server's backends are loaded from there: "
            "name another folder in TMPDIR"
        )


def check_backends(needed: Mapping[str, str], installation: Installation, extra: Sequence[str] = ()) -> None:
    """`needed`: model -> backend; `extra`: further options, which may name another folder of backends."""
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
    """Makes its folder, and the file where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise OptionError(
            f"log file {path} cannot be written ({error.strerror}): name another with --log-file"
        ) from None


def resolve(host: str) -> str:
    """`host`, a name or an address of this machine, as a number: of IPv4 where it has one. Raises `OptionError`."""
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
    """`asked`: service -> its numeric host and port. Raises `OptionError`, or `PortInUseError` with the process."""
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
    """Whether one port cannot serve both. gRPC listens on IPv6 too when it is told 0.0.0.0."""
    return host == other or host in ANY_ADDRESS or other in ANY_ADDRESS


def port_is_free(host: str, port: int) -> bool:
    """`host`: as `resolve` returns it."""
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
    """Name and pid of the process that listens on `port`; empty where the system does not tell."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def free_ports(hosts: Sequence[str]) -> list[int]:
    """For each of the numeric hosts a port that is free now; no two are the same.

    Below Linux's ephemeral ports: one of those could go to another process while the server loads, before it listens.
    """
    candidates = iter(random.SystemRandom().sample(range(10_000, 30_000), 5_000))  # whatever seed this process has set
    return [next(port for port in candidates if port_is_free(host, port)) for host in hosts]


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET

"""Checks before the start: what tritonserver would say late, in many lines or not at all, said early in one."""

import errno
import importlib.metadata
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from server.errors import InstallationError, PortInUseError

PORT_FLAGS = {"http": "--http-port", "grpc": "--grpc-port", "metrics": "--metrics-port"}


def check_numpy() -> None:
    """The embedded server's Python backend answers empty tensors under numpy 2, silently."""
    try:
        version = importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        raise InstallationError('numpy is missing: pip install "numpy<2"') from None
    if int(version.split(".")[0]) >= 2:
        raise InstallationError(
            f'numpy {version} makes the embedded tritonserver answer empty tensors: pip install "numpy<2"'
        )


def check_stub_libraries(stub: Path, environment: dict[str, str]) -> None:
    """Asks the dynamic loader, without running the stub, whether all its libraries are found."""
    listing = subprocess.run(
        [str(stub)], env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
    )
    missing = [line.split()[0] for line in listing.stdout.splitlines() if "not found" in line]
    if not missing:
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if any(name.startswith("libpython") for name in missing):
        raise InstallationError(
            f"{missing[0]} is missing, the Python backend needs it: apt-get install libpython{version} "
            "(or use a Python built with --enable-shared)"
        )
    raise InstallationError(f"libraries of the Python backend are missing: {', '.join(missing)}")


def check_python_on_path(folder: Path) -> None:
    """The stub finds its packages through the first python3 on PATH: the launcher puts `folder` there."""
    if not os.access(folder / "python3", os.X_OK):
        raise InstallationError(f"{folder} has no python3, the Python backend needs one: use a virtual environment")


def check_ports(host: str, ports: dict[str, int]) -> None:
    """`ports`: service name -> port. Raises `PortInUseError` with the port and, where it can be seen, the process."""
    seen: dict[int, str] = {}
    for service, port in ports.items():
        if port in seen:
            raise PortInUseError(f"port {port} is asked for {seen[port]} and {service}: give each its own")
        seen[port] = service
        if port_is_free(host, port):
            continue
        owner = port_owner(port)
        raise PortInUseError(
            f"port {port} is in use{f' by {owner}' if owner else ''}: stop it, or choose another with "
            f"{PORT_FLAGS[service]}"
        )


def port_is_free(host: str, port: int) -> bool:
    """Raises `InstallationError` when `host` is no address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except PermissionError:
            raise InstallationError(f"port {port} needs root: choose one above 1023") from None
        except socket.gaierror:
            raise InstallationError(f"host {host!r} is not an address: use 127.0.0.1 or 0.0.0.0") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InstallationError(
                    f"host {host} is no address of this machine: use 127.0.0.1 or 0.0.0.0"
                ) from None
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


def free_ports(host: str, count: int) -> list[int]:
    """Distinct ports that are free now."""
    sockets = [socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()

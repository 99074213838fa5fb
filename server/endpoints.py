"""Where a server listens."""

import itertools
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from server.errors import OptionError, PortInUseError

PORT_FLAGS = {"http": "--http-port", "grpc": "--grpc-port", "metrics": "--metrics-port"}
ANY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Endpoints:
    """The hosts and ports on which the services "http", "grpc" and "metrics" listen.

    The hosts are numeric: given a name, tritonserver's HTTP listens on 255.255.255.255 and reports no error.
    """

    hosts: Mapping[str, str]
    ports: Mapping[str, int]

    def address(self, service: str) -> str:
        """Return "host:port" at which this machine can reach the service."""
        host, port = self.hosts[service], self.ports[service]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def choose_endpoints(host: str, metrics_host: str, asked: Mapping[str, int], encrypted: bool) -> Endpoints:
    """Resolve the hosts, and choose a free port for each 0. Raises `ServerError`, such as for a port in use."""
    host, metrics_host = resolve(host), resolve(metrics_host)
    http_host = "127.0.0.1" if encrypted else host  # tritonserver's HTTP has no TLS
    hosts = {"http": http_host, "grpc": host, "metrics": metrics_host}
    chosen = {service: port for service, port in asked.items() if port}
    check_ports({service: (hosts[service], port) for service, port in chosen.items()})
    missing = [service for service in hosts if service not in chosen]
    chosen.update(zip(missing, free_ports([hosts[service] for service in missing]), strict=True))
    return Endpoints(hosts, chosen)


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

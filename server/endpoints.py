"""Where a server listens."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.preflight import check_ports, free_ports, resolve


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

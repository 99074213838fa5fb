"""Where a server listens."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.preflight import check_ports, free_ports, resolve


@dataclass(frozen=True)
class Endpoints:
    """Where the server's services "http", "grpc" and "metrics" listen. Not everyone who may ask may see metrics.

    The hosts are numeric: told a name, tritonserver's HTTP listens on 255.255.255.255 and says that all is well.
    """

    hosts: Mapping[str, str]
    ports: Mapping[str, int]

    def address(self, service: str) -> str:
        """ "host:port" to connect to from this machine."""
        host, port = self.hosts[service], self.ports[service]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def choose_endpoints(host: str, metrics_host: str, asked: Mapping[str, int], encrypted: bool) -> Endpoints:
    """Numeric hosts, and a free port for each service that asked for 0. Raises `ServerError`: a port is taken."""
    host, metrics_host = resolve(host), resolve(metrics_host)
    http_host = "127.0.0.1" if encrypted else host  # it has no TLS, and then stays on this machine
    hosts = {"http": http_host, "grpc": host, "metrics": metrics_host}
    chosen = {service: port for service, port in asked.items() if port}
    check_ports({service: (hosts[service], port) for service, port in chosen.items()})
    missing = [service for service in hosts if service not in chosen]
    chosen.update(zip(missing, free_ports([hosts[service] for service in missing]), strict=True))
    return Endpoints(hosts, chosen)

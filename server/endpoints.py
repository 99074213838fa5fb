"""Where a server listens: as a client connects to it, and as tritonserver's options have it."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.preflight import check_ports, free_ports, resolve


@dataclass(frozen=True)
class Endpoints:
    """Where the server listens. Metrics have a host of their own: not everyone who may ask may see them.

    The hosts are numeric: told a name, tritonserver's HTTP listens on 255.255.255.255 and says that all is well.
    """

    host: str
    metrics_host: str
    http: int
    grpc: int
    metrics: int
    http_host: str | None = None
    """Where it is not `host`: with TLS for gRPC, HTTP, which has none, stays on this machine."""

    def address(self, service: str) -> str:
        """ "host:port" to connect to from this machine."""
        host = self._host(service)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"[{host}]:{getattr(self, service)}" if ":" in host else f"{host}:{getattr(self, service)}"

    def listen_address(self, service: str) -> str:
        """The host as tritonserver's option wants it: HTTP and metrics (libevhtp) write IPv6 unlike gRPC."""
        host = self._host(service)
        if ":" not in host:
            return host
        return f"[{host}]" if service == "grpc" else f"ipv6:{host}"

    def _host(self, service: str) -> str:
        if service == "http" and self.http_host is not None:
            return self.http_host
        return self.metrics_host if service == "metrics" else self.host


def choose_endpoints(host: str, metrics_host: str, asked: Mapping[str, int], encrypted: bool) -> Endpoints:
    """Numeric hosts, and a free port for each service that asked for 0. Raises `ServerError`: a port is taken."""
    host, metrics_host = resolve(host), resolve(metrics_host)
    http_host = "127.0.0.1" if encrypted else host
    hosts = {"http": http_host, "grpc": host, "metrics": metrics_host}
    chosen = {service: port for service, port in asked.items() if port}
    check_ports({service: (hosts[service], port) for service, port in chosen.items()})
    missing = [service for service in hosts if service not in chosen]
    chosen.update(zip(missing, free_ports([hosts[service] for service in missing]), strict=True))
    return Endpoints(host, metrics_host, **chosen, http_host=http_host)

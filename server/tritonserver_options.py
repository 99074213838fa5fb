"""The options and the environment of tritonserver that `python -m server` and deploy/image/serve.py have in common.

The image has a copy of this file without the package, as of checksums.py.
"""

import resource
import secrets
from collections.abc import Mapping, Sequence

MANAGEMENT_HEADER = "widefield-management"
SHARED_MEMORY_HEADER = "widefield-shared-memory"
RESTRICTED = "model-config,model-repository,trace,logging"  # to the management token; shared memory has its own
# Read by glibc when a process starts; variables that the user has set are kept. Measurements: docs/serving.md.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "2147483647",  # keeps large activations mapped between requests
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",  # other arenas' heaps end at 64 MB and get few huge pages
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# 0.1 ms: an OpenMP worker that spins longer occupies a core that another step of the ensemble needs.
SPIN = {"GOMP_SPINCOUNT": "4000"}
# Milliseconds. By default tritonserver never closes the connection of a client that sends nothing after HTTP/2's
# settings. The pings close it; the maximum age closes one that answers pings, and spreads clients over new servers.
GRPC_PATIENCE = {
    "grpc-keepalive-time": 60_000,
    "grpc-keepalive-timeout": 20_000,
    "grpc-keepalive-permit-without-calls": 1,
    "grpc-http2-max-pings-without-data": 0,  # no limit
    "grpc-max-connection-age": 120_000,
    "grpc-max-connection-age-grace": 60_000,  # for requests in flight
}
SHM_BYTES = 8 * 1024 * 1024  # initially for each backend process: more than 16 images of 224 x 224, in and out
STACK = 64 << 20  # bytes: tritonserver's HTTP copies a form's body (curl's default type) onto the stack twice


def common_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to `given`, the process's environment; those that it has are kept."""
    return {name: value for name, value in (ENVIRONMENT | SPIN).items() if name not in given}


def before(paths: Sequence[str], given: str | None) -> str:
    """Put `paths` before `given`, the present value of LD_LIBRARY_PATH or LD_PRELOAD."""
    return ":".join(filter(None, [*paths, given]))


def common_options(
    repository: str,
    hosts: Mapping[str, str],
    ports: Mapping[str, int],
    drain_seconds: int,
    tokens: Sequence[str | None],
    tls: Mapping[str, str],
    gpu: bool,
) -> list[str]:
    """Return command-line options. `hosts`, `ports`: of "http", "grpc", "metrics"; `tls`: what `tls_options` returns.

    `tokens`: for management and for shared memory. The restricted interfaces answer only requests with the token in a
    header. If a token is None or empty, a random one closes the interface: who can load models can run code, and who
    can register shared memory can read and write the memory of other processes.
    """
    options: dict[str, object] = {
        "model-repository": repository,
        **{f"{service}-address": listen_address(service, host) for service, host in hosts.items()},
        **{f"{service}-port": port for service, port in ports.items()},
        "metrics-config": "summary_latencies=true",
        "log-format": "ISO8601",
        "exit-timeout-secs": drain_seconds,
        **GRPC_PATIENCE,
        **tls,
    }
    if not gpu:
        options |= {"allow-gpu-metrics": "false", "pinned-memory-pool-byte-size": 0}
    arguments = ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
    interfaces = (f"{RESTRICTED}:{MANAGEMENT_HEADER}", f"shared-memory:{SHARED_MEMORY_HEADER}")
    for interface, token in zip(interfaces, tokens, strict=True):
        key = f"{interface}={token or secrets.token_hex(16)}"
        arguments += [f"--http-restricted-api={key}", f"--grpc-restricted-protocol={key}"]
    # "python" configures the Python-based backends too
    return arguments + [f"--backend-config=python,shm-{kind}-byte-size={SHM_BYTES}" for kind in ("default", "growth")]


def listen_address(service: str, host: str) -> str:
    """Write a numeric host for tritonserver's option: HTTP and metrics (libevhtp) write IPv6 unlike gRPC."""
    if ":" not in host:
        return host
    return f"[{host}]" if service == "grpc" else f"ipv6:{host}"


def tls_options(certificate: str, key: str, client_ca: str | None) -> dict[str, str]:
    """Return the options of gRPC's TLS for these PEM files; `client_ca` makes it mutual TLS."""
    options = {"grpc-server-cert": certificate, "grpc-server-key": key}
    if client_ca:
        return {"grpc-use-ssl-mutual": "true", **options, "grpc-root-cert": client_ca}
    return {"grpc-use-ssl": "true", **options}


def stack_limits() -> tuple[int, int]:
    """Return the soft and hard RLIMIT_STACK for tritonserver: at least `STACK`, at most the hard limit; in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft < STACK:  # unlimited: glibc gives a thread 2 MiB
        soft = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    return soft, hard

"""The options and the environment of tritonserver that `python -m server` and deploy/image/serve.py have in common.

It stands alone in the image, as checksums.py does.
"""

import resource
import secrets
from collections.abc import Mapping, Sequence

MANAGEMENT_HEADER = "widefield-management"
SHARED_MEMORY_HEADER = "widefield-shared-memory"
RESTRICTED = "model-config,model-repository,trace,logging"  # to the management token; shared memory has its own
# Read by glibc when a process starts; what the user has set stays. docs/serving.md has the measurements.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "2147483647",  # large activations stay mapped between requests
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",  # the heaps of further arenas end at 64 MB and get few huge pages
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# 0.1 ms: an OpenMP worker that spins longer holds the core that another step of the ensemble needs.
SPIN = {"GOMP_SPINCOUNT": "4000"}
# Milliseconds. By default tritonserver keeps a client that falls silent after HTTP/2's settings for ever. The pings end
# that; the age ends one that answers them and sends a byte now and then, and spreads clients over new servers.
GRPC_PATIENCE = {
    "grpc-keepalive-time": 60_000,
    "grpc-keepalive-timeout": 20_000,
    "grpc-keepalive-permit-without-calls": 1,
    "grpc-http2-max-pings-without-data": 0,  # no limit
    "grpc-max-connection-age": 120_000,
    "grpc-max-connection-age-grace": 60_000,  # for requests in flight
}
SHM_BYTES = 8 * 1024 * 1024  # of each backend process at its start: 16 images of 224 x 224, in and out, with room
STACK = 64 << 20  # bytes: of a form (curl's usual type) tritonserver's HTTP puts the body there twice


def common_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables that `given`, the process's own environment, does not set."""
    return {name: value for name, value in (ENVIRONMENT | SPIN).items() if name not in given}


def before(paths: Sequence[str], given: str | None) -> str:
    """Joins `paths` and what the user has set, as LD_LIBRARY_PATH and LD_PRELOAD have it."""
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
    """Command-line options. `hosts`, `ports`: of "http", "grpc" and "metrics"; `tls`: what `tls_options` returns.

    `tokens`: for management and for shared memory. The restricted interfaces answer only to a header that holds theirs.
    One that is None or empty is random, and the interface closed: whoever can load models can run code, and whoever can
    show the server shared memory can read and write what other processes share with it.
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
    # "python" speaks for the Python-based backends too
    return arguments + [f"--backend-config=python,shm-{kind}-byte-size={SHM_BYTES}" for kind in ("default", "growth")]


def listen_address(service: str, host: str) -> str:
    """The numeric host as tritonserver's option wants it: HTTP and metrics (libevhtp) write IPv6 unlike gRPC."""
    if ":" not in host:
        return host
    return f"[{host}]" if service == "grpc" else f"ipv6:{host}"


def tls_options(certificate: str, key: str, client_ca: str | None) -> dict[str, str]:
    """PEM files; with `client_ca`, clients must show a certificate that it has signed (mutual TLS)."""
    options = {"grpc-server-cert": certificate, "grpc-server-key": key}
    if client_ca:
        return {"grpc-use-ssl-mutual": "true", **options, "grpc-root-cert": client_ca}
    return {"grpc-use-ssl": "true", **options}


def widen_stack(process: int = 0) -> None:
    """Larger stacks, up to the hard limit, for the threads of programs that `process` (0: this one) starts."""
    soft, hard = resource.prlimit(process, resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft < STACK:  # without a limit glibc gives a thread 2 MiB
        size = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
        resource.prlimit(process, resource.RLIMIT_STACK, (size, hard))

#!/usr/bin/env python3
"""Exec probe: `probe.py ready` and `probe.py alive`. Exit code 0 for yes, 1 for no with the reason on standard error.

Both send the canary image through the whole ensemble. A busy server may refuse it (HTTP 503) or answer too late. If the
server answers other requests meanwhile, it counts as alive and ready, so load alone neither removes nor kills a pod.
`ready` also asks tritonserver whether it is ready.
"""

import os
import sys
import time
from collections.abc import Mapping

from canary import CanaryBusyError, CanaryError, classify_canary, is_ready, success_count
from check_settings import PORTS, http_host

MODEL = "classifier"
INFERENCE_SECONDS = 8.0  # plus three times STATUS_SECONDS is less than the probes' timeoutSeconds
STATUS_SECONDS = 2.0


def http_address(environment: Mapping[str, str]) -> str:
    """Return "host:port" at which the HTTP of serve.py can be reached from inside the container."""
    host = http_host(environment)
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    variable, default = PORTS["http"]
    return f"{host}:{environment.get(variable) or default}"


def check(question: str, address: str) -> None:
    """Raise `CanaryError` with the reason if the server is not ready or not alive."""
    if question == "ready" and not is_ready(address, STATUS_SECONDS):
        raise CanaryError(f"{address} says that it is not ready")
    before = success_count(address, MODEL, STATUS_SECONDS)
    deadline = time.monotonic() + INFERENCE_SECONDS
    try:
        classify_canary(address, MODEL, INFERENCE_SECONDS)
    except CanaryError as error:
        if not isinstance(error, CanaryBusyError):
            raise
        while success_count(address, MODEL, STATUS_SECONDS) <= before:
            if time.monotonic() > deadline:
                raise CanaryError(f"{error}, and no other request was answered") from error
            time.sleep(0.2)


def main(arguments: list[str]) -> int:
    if arguments not in (["ready"], ["alive"]):
        print(f"probe: say ready or alive, not {' '.join(arguments)!r}", file=sys.stderr)
        return 2
    address = http_address(os.environ)
    try:
        check(arguments[0], address)
    except CanaryError as error:
        print(f"probe: {address}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

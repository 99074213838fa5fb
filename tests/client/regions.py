"""The shared-memory regions that a server reports as registered, and those in /dev/shm."""

import os
import time
from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

HEADER = "triton-grpc-protocol-widefield-shared-memory"
MIB = 1 << 20


class Regions:
    def __init__(self, stub: Any, token: str) -> None:
        self.stub, self.metadata = stub, [(HEADER, token)]

    def sizes(self) -> list[int]:
        """The sizes of the registered regions in MiB, ascending."""
        message = service_pb2.SystemSharedMemoryStatusRequest()
        status = self.stub.SystemSharedMemoryStatus(message, metadata=self.metadata, timeout=10)
        return sorted(region.byte_size // MIB for region in status.regions.values())

    def forget(self) -> None:
        """Unregister all, as a restart would; refused until a step that has answered releases its request."""
        message = service_pb2.SystemSharedMemoryUnregisterRequest()  # without a name: all
        until = time.monotonic() + 2
        while self.sizes():
            try:
                self.stub.SystemSharedMemoryUnregister(message, metadata=self.metadata, timeout=10)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.INTERNAL or time.monotonic() > until:
                    raise

    def await_sizes(self, expected: list[int], ask: Callable[[], object] = lambda: None, seconds: float = 2) -> None:
        """Wait for these sizes. A region that is still read is unregistered by a later request, which `ask` sends."""
        until = time.monotonic() + seconds
        while (found := self.sizes()) != expected and time.monotonic() < until:
            time.sleep(0.02)
            ask()
        assert found == expected


def names(pid: int | None = None) -> list[str]:
    """The regions of one process in /dev/shm: others may run."""
    return [
        name for name in os.listdir("/dev/shm") if name.startswith("widefield-") and f"-{pid or os.getpid()}-" in name
    ]

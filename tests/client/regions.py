"""What a server has been shown of this host's memory, by its own account, and what lies in /dev/shm."""

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
        """In MiB."""
        message = service_pb2.SystemSharedMemoryStatusRequest()
        status = self.stub.SystemSharedMemoryStatus(message, metadata=self.metadata, timeout=10)
        return sorted(region.byte_size // MIB for region in status.regions.values())

    def forget(self) -> None:
        """As after a restart. Refused while a step that has answered still lets its request go."""
        message = service_pb2.SystemSharedMemoryUnregisterRequest()  # without a name: all
        until = time.monotonic() + 2
        while self.sizes():
            try:
                self.stub.SystemSharedMemoryUnregister(message, metadata=self.metadata, timeout=10)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.INTERNAL or time.monotonic() > until:
                    raise

    def await_sizes(self, expected: list[int], ask: Callable[[], object] = lambda: None, seconds: float = 2) -> None:
        """What the server reads still, a later request takes back: `ask` sends one."""
        until = time.monotonic() + seconds
        while (found := self.sizes()) != expected and time.monotonic() < until:
            time.sleep(0.02)
            ask()
        assert found == expected


def names(pid: int | None = None) -> list[str]:
    """In /dev/shm, of one process: others may run."""
    return [
        name for name in os.listdir("/dev/shm") if name.startswith("widefield-") and f"-{pid or os.getpid()}-" in name
    ]

"""The invariants after every block: the same processes and answers, bounded memory, no file left."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.fuzz.images import good
from server import TritonServer

SHARED_MEMORY = re.compile(r"(/dev/shm/\S+)")


def ask(server: TritonServer, image: bytes, protocol: str) -> Any:
    """The image's probabilities [1,classes]."""
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

    module, url = (triton_grpc, server.grpc_url) if protocol == "grpc" else (triton_http, server.http_url)
    tensor = module.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
    with module.InferenceServerClient(url) as client:
        return client.infer("classifier", [tensor]).as_numpy("probabilities")


def server_processes(server: TritonServer) -> list[psutil.Process]:
    """tritonserver first, then its backend processes."""
    assert server._process is not None  # it was started
    return psutil.Process(server._process.guard.pid).children(recursive=True)


def resident_mib(server: TritonServer) -> list[float]:
    return [each.memory_info().rss / 2**20 for each in server_processes(server)]


def shared_memory_files(server: TritonServer) -> set[str]:
    maps = [Path(f"/proc/{each.pid}/maps").read_text() for each in server_processes(server)]
    return {match for text in maps for match in SHARED_MEMORY.findall(text)}


@dataclass
class Watch:
    """The state that must hold; `check` raises `AssertionError` if it does not."""

    server: TritonServer
    resident: list[list[float]] = field(default_factory=list)  # MiB of each process, at the start and after each block

    def __post_init__(self) -> None:
        self.answers = {name: ask(self.server, image, "grpc") for name, image in good().items()}
        self.processes = {each.pid for each in server_processes(self.server)}
        self.files = shared_memory_files(self.server)
        self.resident.append(resident_mib(self.server))

    def check_processes(self) -> None:
        if self.server.restarts or {each.pid for each in server_processes(self.server)} != self.processes:
            raise AssertionError(f"tritonserver was restarted ({self.server.restarts} times)")

    def check(self) -> None:
        self.check_processes()
        for name, image in good().items():
            for protocol in ("grpc", "http"):
                answer = ask(self.server, image, protocol)
                if not np.array_equal(answer, self.answers[name]):
                    raise AssertionError(f"{name} over {protocol} is answered otherwise than at the start")
        if new := shared_memory_files(self.server) - self.files:
            raise AssertionError(f"new shared-memory files: {new}")
        self.resident.append(resident_mib(self.server))

    def left_over(self) -> list[str]:
        """The server's files that are still there after its end."""
        time.sleep(0.5)
        return sorted(path for path in self.files if Path(path).exists())

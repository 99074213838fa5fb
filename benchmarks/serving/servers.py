"""The servers under test: how each is started, asked and stopped."""

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.photographs import turned
from benchmarks.served import difference
from benchmarks.serving.load import Request, send
from client._prediction import parse_predictions
from kernels import native_library
from server import TritonServer
from server.endpoints import free_ports
from server.tritonserver_options import SPIN

HERE = Path(__file__).parent
ENVIRONMENT = Path("build/peers")
START_SECONDS = 180
# For Ray, as docs.ray.io, "Enable High Throughput on Ray Serve": twice the images a second of its Python proxy.
FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
QUIET = {"BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
BOUNDARY = "widefield-benchmark"
Answer = list[dict[str, Any]]


@dataclass(frozen=True)
class Peer:
    """`worker_a_core`: a process with one thread for each core, or a single one. `network`: the file of the network
    beside the repository; empty: the repository's own TorchScript."""

    script: str
    path: str
    field: str | None  # of a multipart form; None: the image is the body
    worker_a_core: bool = False
    network: str = ""
    answer: Callable[[Any], Answer] = lambda answer: answer


ONE_WORKER = {
    "fastapi": Peer("fastapi_server.py", "/classify", "image"),
    "litserve": Peer("litserve_server.py", "/predict", None),
    "bentoml": Peer("bentoml_server.py", "/classify", "images", answer=lambda answer: answer[0]),
    "ray": Peer("ray_server.py", "/classify", None),
}
# Each in the two setups of its documentation: one worker with a thread for every core, and a worker for every core.
PEERS = ONE_WORKER | {f"{name}-workers": replace(peer, worker_a_core=True) for name, peer in ONE_WORKER.items()}
NETWORKS = {"plain": "plain.pt", "openvino": "network.onnx"}
for way, network in NETWORKS.items():
    PEERS |= {f"{name}-{way}": replace(peer, worker_a_core=True, network=network) for name, peer in ONE_WORKER.items()}
OURS = "widefield"


@dataclass(frozen=True)
class Running:
    """A server that has answered. `request` makes the request for an image, `answer` parses the body of the answer."""

    port: int
    pid: int
    cold_start_s: float
    request: Callable[[bytes], Request]
    answer: Callable[[bytes], Answer]

    def classify(self, image: bytes) -> Answer:
        status, body = send(self.port, self.request(image), timeout=60)
        if status != 200:
            raise RuntimeError(f"HTTP {status}: {body[:300].decode(errors='replace')}")
        return self.answer(body)

    def checked_request(self, image: bytes, probabilities: list[float], precision: str) -> Request:
        """`request` with a check of its answers: as `served.check`, and `False` for a body that cannot be parsed."""
        known = set()  # right bodies, which hardly vary: parsing each would take processor time from the server

        def is_right(body: bytes) -> bool:
            if body in known:
                return True
            try:
                wrong = difference(self.answer(body), probabilities, precision)
            except Exception:  # no answer at all
                return False
            if wrong is None:
                known.add(body)
            return wrong is None

        return replace(self.request(image), is_right=is_right)

    def checked_requests(self, right: list[list[float]], precision: str) -> list[Request]:
        """A `checked_request` for each picture of `turned`; `right`: their probabilities."""
        return [self.checked_request(*pair, precision) for pair in zip(turned(), right, strict=True)]

    def memory_mib(self) -> float:
        """Proportional set size of the whole tree: pages that processes share count once."""
        found = 0
        for process in tree(self.pid):
            with contextlib.suppress(psutil.Error):
                found += process.memory_full_info().pss
        return round(found / 2**20, 1)


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


@contextlib.contextmanager
def started(name: str, repository: Path, image: bytes, cores: int, log: Path) -> Iterator[Running]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with ours(repository, image) if name == OURS else peer(PEERS[name], repository, image, cores, log) as running:
        yield running


@contextlib.contextmanager
def ours(repository: Path, image: bytes) -> Iterator[Running]:
    begun = time.perf_counter()
    before = {child.pid for child in psutil.Process().children()}
    with TritonServer(repository) as server:
        (pid,) = {child.pid for child in psutil.Process().children()} - before
        port = int(server.http_url.rsplit(":", 1)[1])
        running = Running(port, pid, 0.0, kserve_request, kserve_answer)
        running.classify(image)
        yield replace(running, cold_start_s=time.perf_counter() - begun)


def kserve_request(image: bytes) -> Request:
    tensor = len(image).to_bytes(4, "little") + image
    described: dict[str, Any] = {
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
        ],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 5, "binary_data": False}}],
    }
    header = json.dumps(described).encode()
    return Request(
        "/v2/models/classifier/infer", header + tensor, {"Inference-Header-Content-Length": str(len(header))}
    )


def kserve_answer(body: bytes) -> Answer:
    return [asdict(prediction) for prediction in parse_predictions(json.loads(body)["outputs"][0]["data"])]


@contextlib.contextmanager
def peer(peer: Peer, repository: Path, image: bytes, cores: int, log: Path) -> Iterator[Running]:
    (model,) = [repository.parent / peer.network] if peer.network else (repository / "backbone").glob("*/model.pt")
    (port,) = free_ports(["127.0.0.1"])
    workers = cores if peer.worker_a_core else 1
    values = {"model": model.resolve(), "library": native_library(), "port": port}
    values |= {"threads": cores // workers, "workers": workers}
    python = ENVIRONMENT.absolute() / "bin" / "python"
    command = [str(python), str(HERE / peer.script)]
    command += [word for name, value in values.items() for word in (f"--{name}", str(value))]
    # its bin folder first, because BentoML and Ray start `python` by name
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    home = log.parent / "home"  # for BentoML's store and Ray's token
    home.mkdir(exist_ok=True)
    # SPIN as our server sets it for its processes; run_as_served has set the other variables
    environment = {**os.environ, **SPIN, **FAST, **QUIET, "PATH": path, "HOME": str(home.absolute())}
    begun = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=HERE, env=environment)
    running = Running(
        port, process.pid, 0.0, lambda data: peer_request(peer, data), lambda b: peer.answer(json.loads(b))
    )
    try:
        await_answer(process, running, image, log)
        yield replace(running, cold_start_s=time.perf_counter() - begun)
    finally:
        stop(process)


def peer_request(peer: Peer, image: bytes) -> Request:
    if peer.script == "litserve_server.py":
        body = json.dumps({"image": base64.b64encode(image).decode()}).encode()
        return Request(peer.path, body, {"Content-Type": "application/json"})
    if peer.field is None:
        return Request(peer.path, image, {"Content-Type": "image/jpeg"})
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{peer.field}"; filename="image.jpg"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    body = head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Request(peer.path, body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})


def await_answer(process: subprocess.Popen[bytes], running: Running, image: bytes, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    why = "nothing listens"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            running.classify(image)
            return
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error)
        time.sleep(0.05)
    raise RuntimeError(f"{log.stem} gives no answer ({why}); the end of {log}:\n{log.read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM; when the first process has ended, or after 20 s, kill what is left of its tree."""
    members = []
    with contextlib.suppress(psutil.Error):
        members = tree(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for member in psutil.wait_procs(members, timeout=1)[1]:
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()


def prepare_environment() -> None:
    """Create build/peers with the pinned versions, unless it has them."""
    wanted = (HERE / "requirements.txt").read_text()
    stamp = ENVIRONMENT / "requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"setting up {ENVIRONMENT} (about 3 GB with PyTorch)", flush=True)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)], check=True)
    python = str(ENVIRONMENT / "bin" / "python")
    install = [*uv, "pip", "install", "--quiet", "--python", python, "-r", str(HERE / "requirements.txt")]
    subprocess.run(install, check=True)
    stamp.write_text(wanted)

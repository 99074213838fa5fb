"""Blocks of cases. A case depends only on its kind and its number, so that any can be repeated."""

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc

from benchmarks.fuzz import grpc_cases, http_cases, http_message
from benchmarks.fuzz.images import seeds
from benchmarks.fuzz.mutations import mutate
from benchmarks.fuzz.wire import send_grpc, send_http
from benchmarks.served import STEP, load_transform
from server import TritonServer

SENDERS = 8


@dataclass
class Outcomes:
    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)  # what -> the first case that showed it
    slowest: tuple[float, str] = (0.0, "")  # seconds, case

    def add(self, case: str, outcome: str, seconds: float) -> None:
        if outcome.startswith("finding"):
            self.findings.setdefault(outcome, case)
        self.counts[outcome] += 1
        self.slowest = max(self.slowest, (seconds, case))

    def merge(self, other: "Outcomes") -> None:
        self.counts += other.counts
        self.findings = other.findings | self.findings
        self.slowest = max(self.slowest, other.slowest)


def small() -> list[bytes]:
    return [image for image in seeds() if len(image) < 10_000]


def image_case(rng: random.Random) -> bytes:
    return mutate(rng, rng.choice(seeds()), seeds())


def preprocess_block(cases: list[str]) -> Outcomes:
    """Call the preprocess step's function in this process, which a case may crash."""
    transform = load_transform(STEP)
    settings = transform.Settings(image_size=32, resize_size=32, interpolation="bicubic")
    outcomes = Outcomes()
    for case in cases:
        data = image_case(random.Random(case))
        begun = time.perf_counter()
        try:
            shape = transform.preprocess(data, settings).shape
            outcome = "answered" if shape == (32, 32, 3) else f"finding: pixels of shape {shape}"
        except transform.ImageError:
            outcome = "refused"
        except Exception as error:
            outcome = f"finding: {type(error).__name__}"
        outcomes.add(case, outcome, time.perf_counter() - begun)
    return outcomes


def served_block(server: TritonServer, cases: list[str]) -> Outcomes:
    """Send a block to the server, several cases at a time."""
    outcomes = Outcomes()
    with open_channel(server) as channel, ThreadPoolExecutor(SENDERS) as pool:

        def send(case: str) -> tuple[str, str, float]:
            method, data = served_case(case.split("/")[0], random.Random(case))
            begun = time.perf_counter()
            outcome = send_case(server, channel, method, data)
            return case, outcome, time.perf_counter() - begun

        for result in pool.map(send, cases):
            outcomes.add(*result)
    return outcomes


def open_channel(server: TritonServer) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    options.append(("grpc.enable_http_proxy", 0))
    return grpc.insecure_channel(server.grpc_url, options=options)


def served_case(kind: str, rng: random.Random) -> tuple[str | None, bytes]:
    """Return gRPC's method (None: HTTP) and the bytes to send."""
    if kind == "http":
        return None, http_cases.request(rng, small())
    if kind == "grpc":
        return grpc_cases.message(rng, small())
    image = image_case(rng)
    if rng.random() < 0.5:
        return None, http_message.binary(*http_message.inference(image))
    return grpc_cases.SERVICE + "ModelInfer", grpc_cases.in_order(rng, "classifier", image).SerializeToString()


def send_case(server: TritonServer, channel: grpc.Channel, method: str | None, data: bytes) -> str:
    """Send one case and return its outcome, which begins with "finding" if it is a fault."""
    try:
        return send_http(server.http_url, data) if method is None else send_grpc(channel, method, data)
    except Exception as error:
        return f"finding: {type(error).__name__}: {error}"

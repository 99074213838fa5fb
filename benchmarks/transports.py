"""Ways to send an image, by its size: in a message, through shared memory, and by tritonclient's own client.

    python -m benchmarks.transports [--rounds 30]

An ensemble of three steps that compute nothing takes random bytes, so that the time is that of the transport. Each way
has its own process, as in an application: in a shared one, the allocator's state after one way would change the copies
of another. All are timed in turn; one answer of each is checked before.
"""

import importlib
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.commands import add_rounds, command_parser
from benchmarks.harness import other_work_warning, publish, require_server, versions
from benchmarks.served import IMAGE_SIZE, TOKEN, empty_ensemble
from benchmarks.timing import Timing, host_ms
from client import Classifier
from client._prediction import parse_predictions

SIZES = (5_000, 20_000, 120_000, 1_000_000, 4_000_000, 16_000_000)
TOP, BURST = 5, 7
WAYS = ("", "shared memory", "tritonclient")  # "": in the message

call: Callable[[bytes], Any]  # of this process


def connect(way: str, protocol: str, url: str) -> None:
    global call
    if way == "tritonclient":
        call = tritonclient_call(importlib.import_module(f"tritonclient.{protocol}"), url)
        return
    classifier = Classifier(url, protocol, shared_memory_token=TOKEN if way else None)
    call = lambda data: classifier.classify(data, top=TOP)  # noqa: E731


def tritonclient_call(module: Any, url: str) -> Callable[[bytes], Any]:
    """Return a classification by tritonclient, as in its documentation."""
    client = module.InferenceServerClient(url)

    def classify(data: bytes) -> Any:
        image = module.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[data]], object))
        outputs = [module.InferRequestedOutput("probabilities", class_count=TOP)]
        return client.infer("classifier", [image], outputs=outputs).as_numpy("probabilities")

    return classify


def check(way: str) -> None:
    """Raise `RuntimeError` unless the answer is five classes of a thousand with equal probabilities."""
    answer = call(b"an image")
    found = answer if isinstance(answer, list) else parse_predictions([entry.decode() for entry in answer.ravel()])
    if [each.probability for each in found] != [0.001] * TOP:
        raise RuntimeError(f"{way} answers {found}, not {TOP} classes of 0.001: no speed reported")


def burst(size: int) -> list[float]:
    """Milliseconds of each call but the first, which suffers from the other processes' use of the caches."""
    data = Random(size).randbytes(size)
    return [host_ms(lambda: call(data)) for _ in range(BURST)][1:]


def measure(rounds: int) -> list[dict[str, Any]]:
    from export.build import BuildOptions, build
    from server import TritonServer

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repository = Path(folder) / "model_repository"
        build(BuildOptions(arch="replknet_nano", random_weights=True, image_size=IMAGE_SIZE, output=repository))
        empty = empty_ensemble(repository, Path(folder) / "empty")
        server = stack.enter_context(TritonServer(empty, shared_memory_token=TOKEN))
        processes = {
            name + (way and f", {way}"): stack.enter_context(
                ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), connect, (way, name.lower(), url))
            )
            for name, url in (("gRPC", server.grpc_url), ("HTTP", server.http_url))
            for way in WAYS
        }
        for name, process in processes.items():
            process.submit(check, name).result()
        rows = []
        for size in SIZES:
            samples: dict[str, list[float]] = {name: [] for name in processes}
            for number in range(rounds + 1):
                for name, process in processes.items():
                    taken = process.submit(burst, size).result()
                    samples[name] += taken if number else []  # the first round warms up
            timings = {name: Timing.of(taken) for name, taken in samples.items()}
            print(f"{size:>10,} bytes:", {name: round(each.median, 2) for name, each in timings.items()}, flush=True)
            rows.append({"bytes": size, "timings": timings, "ratios": ratios(timings)})
    return rows


def ratios(timings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each protocol: messages' time over tritonclient's, and shared memory's over messages'."""
    medians = {name: each.median for name, each in timings.items()}
    return {
        name: {
            "over_tritonclient": round(medians[name] / medians[f"{name}, tritonclient"], 3),
            "shared_over_messages": round(medians[f"{name}, shared memory"] / medians[name], 3),
        }
        for name in ("gRPC", "HTTP")
    }


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    add_rounds(parser, 30)
    options = parser.parse_args()
    require_server()
    warning = other_work_warning()
    rows = measure(options.rounds)
    found = versions("nvidia-pytriton", "tritonclient", "grpcio")
    publish("transports", versions=found, warning=warning, rows=rows)


if __name__ == "__main__":
    main()

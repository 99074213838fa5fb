"""What a server does with more work than it can do: goodput at twice the load that it can sustain, and at four times.

    python -m benchmarks.overload [--arch replknet_small] [--seconds 15] [--deadline 2]

A bare loop of the same steps in one process, then the server: closed loop (each caller waits for its answer) for the
most that it answers, then requests at a set rate, Poisson, whether or not earlier ones are answered. Goodput counts
the answers within the deadline, from when the request was due, over the time until the last of them.
"""

import argparse
import os
import random
import struct
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import load_average_warning, run_as_served
from benchmarks.serving_overhead import IMAGE_SIZE, bare_pipeline, photograph, write_served
from loadtest.shapes import Phase, arrivals

CALLERS = (1, 2, 4, 8, 16)
LOADS = (0.5, 0.8, 1.0, 2.0, 4.0)  # of the closed loop's best
PAUSE = 2.0  # seconds between loads: the queues run empty


def bare_rate(repository: Path, threads: int, jpeg: bytes, seconds: float) -> float:
    """Images a second of the same steps, one after the other in this process."""
    run = bare_pipeline(repository, threads)
    for _ in range(5):
        run(jpeg)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        run(jpeg)
        count += 1
    return count / (time.perf_counter() - started)


def closed_loop(url: str, jpeg: bytes, callers: int, seconds: float) -> dict[str, Any]:
    from client import Classifier

    end = time.perf_counter() + seconds

    def call(_: int) -> list[float]:
        taken = []
        with Classifier(url, timeout=60, retries=0) as classifier:
            while (begun := time.perf_counter()) < end:
                classifier.classify(jpeg, top=1)
                taken.append(time.perf_counter() - begun)
        return taken

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        taken = [value for values in pool.map(call, range(callers)) for value in values]
    rate = len(taken) / (time.perf_counter() - started)
    return {"callers": callers, "images_per_s": round(rate, 2), **percentiles("answered", taken)}


def percentiles(name: str, seconds: list[float]) -> dict[str, float | None]:
    """p50 and p99 in milliseconds; None where nothing was counted."""
    values = np.percentile(seconds, [50, 99]) * 1e3 if seconds else [None, None]
    return {
        f"{name}_p{part}_ms": None if value is None else round(float(value), 1)
        for part, value in zip((50, 99), values, strict=True)
    }


def open_loop(url: str, jpeg: bytes, rate: float, seconds: float, deadline: float) -> dict[str, Any]:
    """Every request is sent when it is due. Latencies count from then, not from when this process came to send it."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from client._transport import queue_timeout

    request = service_pb2.ModelInferRequest(model_name="classifier")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(jpeg)) + jpeg)
    request.parameters["timeout"].int64_param = queue_timeout(deadline)
    outcomes: list[tuple[str, float, float]] = []  # kind, seconds taken, when it ended
    all_done = threading.Semaphore(0)

    def note(call: Any, due: float) -> None:
        taken = time.perf_counter() - due
        status = call.code()
        rejected = status is grpc.StatusCode.UNAVAILABLE and "timeout expired" in call.details().lower()
        answered = "in time" if taken <= deadline else "late"
        kind = answered if status is grpc.StatusCode.OK else "rejected" if rejected else status.name
        outcomes.append((kind, taken, due + taken))
        all_done.release()

    lag, count = 0.0, 0
    with grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        started = time.perf_counter()
        for offset in arrivals([Phase("open loop", rate, 0.0, seconds)], 1.0, random.Random(0)):  # alike at every run
            due = started + offset
            time.sleep(max(0.0, due - time.perf_counter()))
            lag, count = max(lag, time.perf_counter() - due), count + 1
            call = stub.ModelInfer.future(request, timeout=deadline)
            call.add_done_callback(lambda done, due=due: note(done, due))
        for _ in range(count):
            all_done.acquire()
    # Answers that come after the last request are not of its seconds alone.
    lasted = max([seconds, *(end - started for kind, _, end in outcomes if kind == "in time")])
    kinds = {kind: [taken for name, taken, _ in outcomes if name == kind] for kind, _, _ in outcomes}
    return {
        "images_per_s": round(rate, 2),
        "sent": count,
        "goodput_per_s": round(len(kinds.get("in time", [])) / lasted, 2),
        "outcomes": {kind: len(values) for kind, values in sorted(kinds.items())},
        **percentiles("in_time", kinds.get("in time", [])),
        **percentiles("rejected", kinds.get("rejected", [])),
        "sender_late_ms": round(lag * 1e3, 1),
    }


def measure(arch: str, jpeg: bytes, seconds: float, deadline: float, threads: int) -> dict[str, Any]:
    from export.build import BuildOptions, build
    from server import TritonServer

    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        build(BuildOptions(arch=arch, random_weights=True, image_size=IMAGE_SIZE, output=repository, threads=threads))
        bare = bare_rate(repository, threads, jpeg, seconds)
        print(f"{arch}: {bare:.1f} images/s in a bare loop", flush=True)
        with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
            closed = []
            for callers in CALLERS:
                closed.append(closed_loop(server.grpc_url, jpeg, callers, seconds))
                print(f"  {callers:2} callers: {closed[-1]['images_per_s']:.1f} images/s", flush=True)
            peak = max(row["images_per_s"] for row in closed)
            opened = []
            for load in LOADS:
                time.sleep(PAUSE)
                row = open_loop(server.grpc_url, jpeg, load * peak, seconds, deadline)
                row = {"load": load, **row, "goodput_of_peak": round(row["goodput_per_s"] / peak, 3)}
                opened.append(row)
                print(f"  load {load}: goodput {row['goodput_of_peak']:.0%} of the best, {row['outcomes']}", flush=True)
    return {
        "arch": arch,
        "bare_images_per_s": round(bare, 2),
        "peak_images_per_s": peak,
        "peak_over_bare": round(peak / bare, 3),
        "closed_loop": closed,
        "open_loop": opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="replknet_small")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds that a caller waits for its answer")
    options = parser.parse_args()
    run_as_served("benchmarks.overload")
    warning = load_average_warning()
    threads = len(os.sched_getaffinity(0))
    jpeg = photograph()
    row = measure(options.arch, jpeg, options.seconds, options.deadline, threads)
    settings = {"threads": threads, "seconds": options.seconds, "deadline_s": options.deadline}
    write_served("overload", jpeg, warning, rows=[row], **settings)


if __name__ == "__main__":
    main()

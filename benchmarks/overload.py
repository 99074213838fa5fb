"""A server under overload: its goodput at twice and at four times the load that it can sustain.

    python -m benchmarks.overload [--arch replknet_small] [--seconds 10] [--repeats 3] [--deadline 2]

First it finds the number of callers at which a closed loop (each caller waits for its answer) gets the most answers.
Then it measures in turns, because a machine's speed varies: a bare loop of the same steps in one process, the closed
loop with that many callers, and open loops: Poisson arrivals at set rates, whether or not earlier ones are answered.
Each load is compared with the mean of the closed loops before and after it; the turn with the median is reported.
Goodput is the answers within the deadline, counted from when the request was due, over the time until the last of them.
An answer that differs from the bare loop's is "wrong".
"""

import itertools
import random
import statistics
import struct
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import add_seconds, check_archs, command_parser, positive, whole_number
from benchmarks.harness import cores, other_work_warning, require_server, run_as_served
from benchmarks.latency import percentiles
from benchmarks.photographs import photograph
from benchmarks.served import bare_pipeline, difference, is_right, random_checkpoint, steps_ms, write_served
from loadtest.shapes import Phase, arrivals

CALLERS = (1, 2, 4, 8, 16)
LOADS = (0.5, 0.8, 1.0, 2.0, 4.0)  # of the closed loop's best
PAUSE = 2.0  # seconds between loads, in which the queues empty


def bare_rate(repository: Path, threads: int, jpeg: bytes, seconds: float) -> float:
    """Images a second of the same steps in this process, one image at a time."""
    run = bare_pipeline(repository, threads)
    for _ in range(5):
        run(jpeg)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        run(jpeg)
        count += 1
    return count / (time.perf_counter() - started)


def closed_loop(url: str, jpeg: bytes, right: np.ndarray, callers: int, seconds: float) -> dict[str, Any]:
    """Images a second and latencies of `callers`. Raises `SystemExit` for an answer that differs from `right`."""
    from client import Classifier

    end = time.perf_counter() + seconds

    def call(_: int) -> list[float]:
        taken = []
        with Classifier(url, timeout=60, retries=0) as classifier:
            while (begun := time.perf_counter()) < end:
                best = classifier.classify(jpeg, top=1)
                taken.append(time.perf_counter() - begun)
                if wrong := difference([asdict(each) for each in best], right.tolist(), classes=1):
                    raise SystemExit(f"{callers} callers: {wrong}")
        return taken

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        taken = [value for values in pool.map(call, range(callers)) for value in values]
    rate = len(taken) / (time.perf_counter() - started)
    return {"callers": callers, "images_per_s": round(rate, 2), **percentiles(taken, "answered_")}


def open_loop(url: str, jpeg: bytes, right: np.ndarray, rate: float, seconds: float, deadline: float) -> dict[str, Any]:
    """Send each request when it is due. Latencies count from then, not from when this process managed to send it."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from client._request import microseconds, queue_timeout

    request = service_pb2.ModelInferRequest(model_name="classifier")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(jpeg)) + jpeg)
    request.parameters["timeout"].int64_param = microseconds(queue_timeout(deadline))
    outcomes: list[tuple[str, float, float]] = []  # kind, seconds taken, when it ended
    all_done = threading.Semaphore(0)

    def note(call: Any, due: float) -> None:
        taken = time.perf_counter() - due
        status = call.code()
        rejected = status is grpc.StatusCode.UNAVAILABLE and "timeout expired" in call.details().lower()
        kind = "rejected" if rejected else status.name
        if status is grpc.StatusCode.OK:
            answered = "in time" if taken <= deadline else "late"
            kind = answered if is_right(b"".join(call.result().raw_output_contents), right) else "wrong"
        outcomes.append((kind, taken, due + taken))
        all_done.release()

    lag, count = 0.0, 0
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(url, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        started = time.perf_counter()
        for offset in arrivals([Phase("open loop", rate, 0.0, seconds)], 1.0, random.Random(0)):  # as at every run
            due = started + offset
            time.sleep(max(0.0, due - time.perf_counter()))
            lag, count = max(lag, time.perf_counter() - due), count + 1
            call = stub.ModelInfer.future(request, timeout=deadline)
            call.add_done_callback(lambda done, due=due: note(done, due))
        for _ in range(count):
            all_done.acquire()
    # The time of answers that come after the last request counts too.
    lasted = max([seconds, *(end - started for kind, _, end in outcomes if kind == "in time")])
    kinds = {kind: [taken for name, taken, _ in outcomes if name == kind] for kind, _, _ in outcomes}
    return {
        "images_per_s": round(rate, 2),
        "sent": count,
        "goodput_per_s": round(len(kinds.get("in time", [])) / lasted, 2),
        "outcomes": {kind: len(values) for kind, values in sorted(kinds.items())},
        **percentiles(kinds.get("in time", []), "in_time_"),
        **percentiles(kinds.get("rejected", []), "rejected_"),
        "sender_late_ms": round(lag * 1e3, 1),
    }


def measure(arch: str, jpeg: bytes, seconds: float, repeats: int, deadline: float, threads: int) -> dict[str, Any]:
    from client import Classifier, step_times
    from export.build import BuildOptions, build
    from server import TritonServer

    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        weights = random_checkpoint(arch, Path(folder) / "checkpoint")
        build(BuildOptions(weights=weights, output=repository, threads=threads))
        right = bare_pipeline(repository, threads)(jpeg)[0].numpy()
        with TritonServer(repository) as server:
            closed = [closed_loop(server.grpc_url, jpeg, right, callers, seconds) for callers in CALLERS]
            for row in closed:
                print(f"  {row['callers']:2} callers: {row['images_per_s']:.1f} images/s", flush=True)
            callers = max(closed, key=lambda row: row["images_per_s"])["callers"]
            bare, peaks, turns = [], [], []
            for repeat in range(repeats + 1):
                bare.append(bare_rate(repository, threads, jpeg, seconds))
                with Classifier(server.grpc_url) as asking:
                    before = asking.status()
                    peaks.append(closed_loop(server.grpc_url, jpeg, right, callers, seconds)["images_per_s"])
                    steps = step_times(before, asking.status())  # of the last closed loop
                print(f"{arch}: {bare[-1]:.1f} images/s in a bare loop, {peaks[-1]:.1f} in a closed one", flush=True)
                if repeat < repeats:
                    turns.append(one_turn(server.grpc_url, jpeg, right, peaks[-1], seconds, deadline))
    opened = [
        of_peak([turn[i] for turn in turns], [statistics.mean(pair) for pair in itertools.pairwise(peaks)])
        for i in range(len(LOADS))
    ]
    return {
        "arch": arch,
        "bare_images_per_s": round(statistics.median(bare), 2),
        "peak_images_per_s": round(statistics.median(peaks), 2),
        "peak_callers": callers,
        "peak_over_bare": round(statistics.median(p / b for p, b in zip(peaks, bare, strict=True)), 3),
        "peaks": peaks,
        "steps_ms": steps_ms(steps),
        "closed_loop": closed,
        "open_loop": opened,
    }


def one_turn(
    url: str, jpeg: bytes, right: np.ndarray, peak: float, seconds: float, deadline: float
) -> list[dict[str, Any]]:
    """Measure each of the loads once."""
    rows = []
    for load in LOADS:
        time.sleep(PAUSE)
        rows.append({"load": load, **open_loop(url, jpeg, right, load * peak, seconds, deadline)})
        print(f"  load {load}: {rows[-1]['goodput_per_s']} images/s in time, {rows[-1]['outcomes']}", flush=True)
    return rows


def of_peak(rows: list[dict[str, Any]], peaks: list[float]) -> dict[str, Any]:
    """The turn whose share of the closed loops' rate around it is the median; with every turn's share and outcomes."""
    shares = [round(row["goodput_per_s"] / peak, 3) for row, peak in zip(rows, peaks, strict=True)]
    middle = statistics.median_low(shares)
    each = {"goodput_of_peak_each": shares, "outcomes_each": [row["outcomes"] for row in rows]}
    return {**rows[shares.index(middle)], "goodput_of_peak": middle, **each}


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("--arch", default="replknet_small", help="architecture to serve (default: replknet_small)")
    add_seconds(parser, 10.0)
    parser.add_argument(
        "--repeats", type=whole_number, default=3, help="turns, of which the median is reported (default: 3)"
    )
    parser.add_argument(
        "--deadline", type=positive, default=2.0, help="seconds that a caller waits for its answer (default: 2)"
    )
    options = parser.parse_args()
    run_as_served("benchmarks.overload", spin=True)
    check_archs(parser, options.arch)
    require_server()
    warning = other_work_warning()
    threads = cores()
    jpeg = photograph()
    row = measure(options.arch, jpeg, options.seconds, options.repeats, options.deadline, threads)
    asked = {"seconds": options.seconds, "repeats": options.repeats, "deadline_s": options.deadline}
    write_served("overload", jpeg, warning, rows=[row], threads=threads, **asked)


if __name__ == "__main__":
    main()

"""The time that serving adds: one image at a time through the ensemble, against the same work in one process.

    python -m benchmarks.serving_overhead [--archs replknet_nano replknet_31b] [--rounds 20]

The baseline decodes the same JPEG with the code of the served preprocess step and runs the same TorchScript file with
the same number of threads; if an answer differs, nothing is timed. All candidates are timed in turn in one run. The
difference is the server's: over gRPC and HTTP, with the image in the message and through shared memory.

Also measured: the seconds from launch to ready; a lower limit, the same request through an ensemble of three steps that
compute nothing (`empty`); the time of each step by the server's statistics; and the bare pipeline and the served
`classifier` of a network that is built with a class map, which no request asks for.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.commands import add_names, add_rounds, check_archs, command_parser
from benchmarks.harness import cores, name_here, other_work_warning, require_server, run_as_served
from benchmarks.photographs import photograph
from benchmarks.served import TOKEN, bare_pipeline, check, empty_ensemble, random_checkpoint, steps_ms, write_served
from benchmarks.timing import interleaved

WAYS = ("gRPC", "HTTP", "gRPC, shared memory", "HTTP, shared memory")


def measure(arch: str, jpeg: bytes, rounds: int, threads: int) -> dict[str, Any]:
    from client import Classifier, step_times
    from export.build import BuildOptions, build
    from server import TritonServer

    with tempfile.TemporaryDirectory() as folder:
        repository, mapped = Path(folder) / "model_repository", Path(folder) / "with_class_map"
        options = BuildOptions(weights=random_checkpoint(arch, Path(folder) / "checkpoint"), threads=threads)
        build(replace(options, output=repository))
        build(replace(options, output=mapped, class_map=True))
        bare, with_map = bare_pipeline(repository, threads), bare_pipeline(mapped, threads)
        started = time.perf_counter()
        with TritonServer(repository, shared_memory_token=TOKEN) as server:
            ready = time.perf_counter() - started
            with (
                TritonServer(empty_ensemble(repository, Path(folder) / "empty")) as limit,
                TritonServer(mapped) as explaining,
                Classifier(server.grpc_url) as grpc,
                Classifier(server.http_url, protocol="http") as http,
                Classifier(server.grpc_url, shared_memory_token=TOKEN) as shared_grpc,
                Classifier(server.http_url, protocol="http", shared_memory_token=TOKEN) as shared_http,
                Classifier(limit.grpc_url) as empty,
                Classifier(explaining.grpc_url) as plain,
            ):
                calls: dict[str, Callable[[], Any]] = {
                    "bare": lambda: bare(jpeg),
                    "class map": lambda: with_map(jpeg),
                    "gRPC": lambda: grpc.classify(jpeg, top=5),
                    "HTTP": lambda: http.classify(jpeg, top=5),
                    "gRPC, shared memory": lambda: shared_grpc.classify(jpeg, top=5),
                    "HTTP, shared memory": lambda: shared_http.classify(jpeg, top=5),
                    "empty": lambda: empty.classify(jpeg, top=5),
                    "class map, gRPC": lambda: plain.classify(jpeg, top=5),
                }
                for name, right in ({way: "bare" for way in WAYS} | {"class map, gRPC": "class map"}).items():
                    answer = [asdict(prediction) for prediction in calls[name]()]
                    check(f"{arch}, {name}", answer, calls[right]()[0].tolist())
                before = grpc.status()
                timings = interleaved(calls, rounds, burst=11)
                steps = step_times(before, grpc.status())
    added = {name: round(timings[name].median - timings["bare"].median, 3) for name in WAYS}
    ratio = round(timings["gRPC"].median / timings["bare"].median, 4)
    bare_ms = timings["bare"].median
    limit_ms = timings["empty"].median
    print(f"{arch}: bare {bare_ms:.2f} ms;", ", ".join(f"{name} {ms:+.2f} ms" for name, ms in added.items()))
    print(f"{arch}: an empty ensemble {limit_ms:.2f} ms over gRPC; ready in {ready:.1f} s", flush=True)
    return {
        "arch": arch,
        "timings": timings,
        "added_ms": added,
        "grpc_ratio": ratio,
        "class_map_ratio": round(timings["class map"].median / bare_ms, 4),
        "served_class_map_ratio": round(timings["class map, gRPC"].median / timings["gRPC"].median, 4),
        "steps_ms": steps_ms(steps),
        "seconds_to_ready": round(ready, 2),
    }


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    add_names(parser, "--archs", ("replknet_nano", "replknet_31b"), "architectures to measure")
    add_rounds(parser, 20)
    options = parser.parse_args()
    run_as_served("benchmarks.serving_overhead", spin=True)
    check_archs(parser, *options.archs)
    require_server()
    warning = other_work_warning()
    threads = cores()
    jpeg = photograph()
    rows = [measure(arch, jpeg, options.rounds, threads) for arch in options.archs]
    write_served(name_here("serving_overhead"), jpeg, warning, threads=threads, rows=rows)


if __name__ == "__main__":
    main()

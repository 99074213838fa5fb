"""Images in messages and through shared memory, by their size.

    python -m benchmarks.shared_memory [--rounds 30]

An ensemble of three steps that compute nothing takes random bytes, so the time is the way there and the answer's back.
All ways are timed in turn; each shared way beside the same protocol's messages.
"""

import argparse
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.harness import interleaved, load_average_warning, run_as_served, versions, write_results
from benchmarks.serving_overhead import IMAGE_SIZE, TOKEN, empty_ensemble

SIZES = (5_000, 20_000, 120_000, 1_000_000, 4_000_000, 16_000_000)


def measure(rounds: int) -> list[dict[str, Any]]:
    from client import Classifier
    from export.build import BuildOptions, build
    from server import TritonServer

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repository = Path(folder) / "model_repository"
        build(BuildOptions(arch="replknet_nano", random_weights=True, image_size=IMAGE_SIZE, output=repository))
        empty = empty_ensemble(repository, Path(folder) / "empty")
        server = stack.enter_context(TritonServer(empty, shared_memory_token=TOKEN))
        classifiers = {}
        for name, protocol, url in (("gRPC", "grpc", server.grpc_url), ("HTTP", "http", server.http_url)):
            for suffix, token in (("", None), (", shared memory", TOKEN)):
                classifier = stack.enter_context(Classifier(url, protocol, shared_memory_token=token))
                classifiers[f"{name}{suffix}"] = classifier
        rows = []
        for size in SIZES:
            data = Random(size).randbytes(size)
            ways = {name: partial(classifier.classify, data) for name, classifier in classifiers.items()}
            timings = interleaved(ways, rounds, burst=7)
            ratios = {
                name: round(timings[f"{name}, shared memory"].median / timings[name].median, 3)
                for name in ("gRPC", "HTTP")
            }
            print(f"{size:>10,} bytes:", {name: round(each.median, 2) for name, each in timings.items()}, flush=True)
            rows.append({"bytes": size, "timings": timings, "shared_over_messages": ratios})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    run_as_served("benchmarks.shared_memory")
    warning = load_average_warning()
    rows = measure(options.rounds)
    found = versions("nvidia-pytriton", "tritonclient", "grpcio")
    path = write_results("shared_memory", versions=found, warning=warning, rows=rows)
    print(f"wrote {path}" + (f"; {warning}" if warning else ""))


if __name__ == "__main__":
    main()

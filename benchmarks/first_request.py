"""Is the first request after the start as fast as the hundredth? Every step is warmed up before the server says ready.

    python -m benchmarks.first_request [--archs replknet_nano replknet_small] [--starts 5]

The server is started again each time. Its canary, one small picture, comes first, as in production, and the client
connects before the clock starts. Every request comes after a pause: in a loop without one the hundredth would find hot
caches, which has nothing to do with warm-up. "Hundredth" is the median of requests 91 to 110 of the same start. A
single request is often slower than a median, so the share of those twenty that took at least as long as the first is
counted too: it is a half if the first is like them. In the second row four pictures are in flight at once, so that the
first batch of four is measured. Wrong answers end the run.
"""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import add_names, check_archs, command_parser, whole_number
from benchmarks.harness import cores, other_work_warning, require_server, run_as_served
from benchmarks.photographs import photograph
from benchmarks.served import bare_pipeline, is_right, random_checkpoint, write_served

REQUESTS = 110
PAUSE = 0.1  # seconds before each


def one_start(repository: Path, jpeg: bytes, right: np.ndarray, at_once: int) -> tuple[float, list[float]]:
    """Return milliseconds of the first request (the slowest of those sent at once) and of each from 91 to 110.

    Raises `SystemExit` for an answer that differs from `right`, probabilities [classes].
    """
    import tritonclient.grpc as triton_grpc

    from server import TritonServer

    tensor = triton_grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[jpeg]], dtype=np.object_))

    with (
        TritonServer(repository) as server,
        triton_grpc.InferenceServerClient(server.grpc_url) as client,
        ThreadPoolExecutor(at_once) as pool,
    ):
        client.is_server_live()  # connects

        def ask(_: int) -> float:
            begun = time.perf_counter()
            result = client.infer("classifier", [tensor])
            taken = (time.perf_counter() - begun) * 1e3
            answer = result.as_numpy("probabilities")
            if not is_right(answer.tobytes(), right):
                raise SystemExit(f"the best class has {answer.max():.6f}, not {right.max():.6f}: no speed reported")
            return taken

        taken = []
        for _ in range(REQUESTS):
            time.sleep(PAUSE)
            taken.append(max(pool.map(ask, range(at_once))))
    return taken[0], taken[90:]


def measure(arch: str, jpeg: bytes, starts: int) -> list[dict[str, Any]]:
    from export.build import BuildOptions, build

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        build(BuildOptions(weights=random_checkpoint(arch, Path(folder) / "checkpoint"), output=repository))
        right = bare_pipeline(repository, cores())(jpeg)[0].numpy()
        for at_once in (1, 4):
            measured = [one_start(repository, jpeg, right, at_once) for _ in range(starts)]
            pairs = [(first, statistics.median(later)) for first, later in measured]
            as_slow = [taken >= first for first, later in measured for taken in later]
            rows.append(
                {
                    "arch": arch,
                    "at_once": at_once,
                    "starts": starts,
                    "first_ms": [round(first, 2) for first, _ in pairs],
                    "hundredth_ms": [round(hundredth, 2) for _, hundredth in pairs],
                    "first_over_hundredth": round(statistics.median(first / late for first, late in pairs), 2),
                    "later_as_slow": round(statistics.mean(as_slow), 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    add_names(parser, "--archs", ("replknet_nano", "replknet_small"), "architectures to measure")
    parser.add_argument("--starts", type=whole_number, default=5, help="starts of the server for each (default: 5)")
    options = parser.parse_args()
    run_as_served("benchmarks.first_request")
    check_archs(parser, *options.archs)
    require_server()
    warning = other_work_warning()
    jpeg = photograph()
    rows = [row for arch in options.archs for row in measure(arch, jpeg, options.starts)]
    write_served("first_request", jpeg, warning, rows=rows)


if __name__ == "__main__":
    main()

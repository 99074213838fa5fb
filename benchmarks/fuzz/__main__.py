"""At least 50,000 hostile inputs to the real tritonserver, and more to the preprocess step alone.

    python -m benchmarks.fuzz [--cases 84000] [--seed 0]
    python -m benchmarks.fuzz --replay http/0/17

After every block of 500 the server must run in the same processes, answer good images with the same probabilities on
both protocols and have no new shared-memory file; at its end none may be left. Inputs that this tritonserver is known
not to survive (lethal.py) are tried separately.
"""

import multiprocessing
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.commands import command_parser, whole_number
from benchmarks.fuzz.blocks import SENDERS, Outcomes, image_case, preprocess_block, served_block
from benchmarks.fuzz.lethal import INPUTS, try_input
from benchmarks.fuzz.watch import Watch
from benchmarks.harness import other_work_warning, publish, require_server, versions
from export.configs import PREPROCESS_INSTANCES, ServingSpec

SHARES = {"image in process": 0.4, "image served": 0.2, "http": 0.2, "grpc": 0.2}
BLOCK = 500
# MiB of growth that is allowed: in tritonserver twice each sender's largest file; where the preprocess step runs, one
# image of the most pixels with four channels for each instance.
ROOM_FOR_FILES = 2 * SENDERS * ServingSpec.max_file_bytes // 2**20
ROOM_FOR_IMAGES = PREPROCESS_INSTANCES * 4 * ServingSpec.max_pixels // 2**20


def blocks(cases: int, seed: int) -> list[tuple[str, list[str]]]:
    """Return the blocks of all kinds, interleaved."""
    made = []
    for kind, share in SHARES.items():
        names = [f"{kind}/{seed}/{index}" for index in range(round(cases * share))]
        parts = [names[at : at + BLOCK] for at in range(0, len(names), BLOCK)]
        made += [((number + 0.5) / len(parts), kind, part) for number, part in enumerate(parts)]
    return [(kind, part) for _, kind, part in sorted(made)]


def run(repository: Path, cases: int, seed: int) -> dict[str, Any]:
    from server import TritonServer

    not_held: list[str] = []
    found = {kind: Outcomes() for kind in SHARES}
    started = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn) as apart,
        TritonServer(repository, on_event=print) as server,
    ):
        watch = Watch(server)
        for number, (kind, names) in enumerate(blocks(cases, seed), 1):
            if kind == "image in process":
                outcomes = apart.submit(preprocess_block, names).result(timeout=600)
            else:
                outcomes = served_block(server, names)
            found[kind].merge(outcomes)
            for finding, case in outcomes.findings.items():
                print(f"{case}: {finding}", flush=True)
            try:
                watch.check()
            except Exception as error:
                not_held.append(f"{names[0]} to {names[-1]}: {type(error).__name__}: {error}")
                print(not_held[-1], flush=True)
                if server.restarts:
                    break
            if number % 10 == 0:
                print(
                    f"{number} blocks, {time.perf_counter() - started:.0f} s, {sum(watch.resident[-1]):.0f} MiB",
                    flush=True,
                )
    resident = watch.resident
    held, most = memory(resident)
    for process, values in held.items():
        if max(values) > most[process]:
            not_held.append(f"{process} took {max(values):.0f} MiB, from {values[0]:.0f} at the start")
            print(not_held[-1], flush=True)
    return {
        "cases": sum(sum(each.counts.values()) for each in found.values()),
        "seconds": round(time.perf_counter() - started),
        "kinds": {
            kind: {
                "cases": sum(each.counts.values()),
                "outcomes": dict(sorted(each.counts.items())),
                "findings": each.findings,
                "slowest_s": round(each.slowest[0], 2),
                "slowest_case": each.slowest[1],
            }
            for kind, each in found.items()
        },
        "not_held": not_held,
        "checks_of_good_images": 2 * 6 * (len(resident) - 1),
        "restarts": server.restarts,
        "shared_memory_left": watch.left_over(),
        "resident_mib": {process: thin(values) for process, values in held.items()},
        "resident_mib_most": {process: round(mib) for process, mib in most.items()},
    }


def memory(resident: list[list[float]]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """MiB of tritonserver and of the preprocess step's processes, if it has any: samples, and the allowed maximum."""
    held = {"tritonserver": [each[0] for each in resident]}
    if len(resident[0]) > 1:
        held["preprocess"] = [sum(each[1:]) for each in resident]
    most = {process: values[0] for process, values in held.items()}
    most["tritonserver"] += ROOM_FOR_FILES
    most[[*held][-1]] += ROOM_FOR_IMAGES  # who decodes
    return held, most


def thin(values: Iterable[float]) -> list[int]:
    """Keep the values at the start, after each tenth of the run and at the end."""
    rounded = [round(value) for value in values]
    return [rounded[part * (len(rounded) - 1) // 10] for part in range(11)]


def main() -> int:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("--cases", type=whole_number, default=84_000, help="number of hostile inputs (default: 84000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs (default: 0)")
    parser.add_argument("--replay", metavar="CASE", help="send only this case, KIND/SEED/NUMBER, and show its bytes")
    options = parser.parse_args()
    if options.replay and not re.fullmatch(rf"({'|'.join(SHARES)})/-?\d+/\d+", options.replay):
        parser.error(f"--replay {options.replay!r}: give KIND/SEED/NUMBER, a kind of {', '.join(SHARES)}")
    require_server()
    from export.build import BuildOptions, build

    warning = other_work_warning()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        build(BuildOptions(arch="replknet_nano", random_weights=True, image_size=32, output=repository, threads=1))
        if options.replay:
            return replay(repository, options.replay)
        result = run(repository, options.cases, options.seed)
        lethal = [try_input(repository, name) for name in INPUTS]
    publish(
        "fuzz",
        seed=options.seed,
        versions=versions("nvidia-pytriton", "tritonclient", "numpy", "pillow", "grpcio", "torch"),
        warning=warning,
        **result,
        known_limits=lethal,
    )
    findings = [finding for kind in result["kinds"].values() for finding in kind["findings"]]
    return 1 if findings or result["not_held"] or result["shared_memory_left"] else 0


def replay(repository: Path, case: str) -> int:
    from server import TritonServer

    if case.startswith("image"):
        print(image_case(random.Random(case))[:300])
    if case.startswith("image in process"):
        print(preprocess_block([case]))
        return 0
    with TritonServer(repository, on_event=print) as server:
        print(served_block(server, [case]))
        Watch(server).check()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Two backbone instances of half the threads, as the embedded server has them, against one of all.

    python -m benchmarks.instances [--models nano small mobilenetv3] [--repeats 8] [--seconds 2]

Both servers run at once and are measured in turn, because a machine's speed varies; the ratio is the median of the
turns' ratios. On either, a single request gets all threads (LONE_THREAD_COUNT, server/backends/pytorch/lone.h). An
answer that differs from a bare loop's ends the run.
"""

import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.commands import add_names, add_seconds, command_parser, whole_number
from benchmarks.harness import cores, other_work_warning, publish, require_server, run_as_served, versions
from benchmarks.photographs import turned
from benchmarks.served import expected
from benchmarks.serving.load import CALLERS, Request, closed_loop
from benchmarks.serving.networks import MODELS, build_repository
from benchmarks.serving.servers import Running, ours
from server.tuned_settings import read_settings, write_settings

WARM_SECONDS = 2.0


def one_of_all(repository: Path, threads: int, folder: Path) -> Path:
    """A copy of the repository whose backbone has a single instance."""
    shutil.copytree(repository, folder)
    write_settings(folder, replace(read_settings(folder), backbone_instances=1, backbone_threads=threads))
    return folder


def turn(
    servers: dict[str, Running], requests: list[Request], callers: int, seconds: float, reverse: bool
) -> dict[str, dict[str, Any]]:
    """Load each server once. Raises `SystemExit` for a wrong answer."""
    names = list(servers)[::-1] if reverse else list(servers)
    found = {name: closed_loop(servers[name].port, requests, callers, seconds) for name in names}
    if wrong := {name: load["errors"] for name, load in found.items() if load["errors"]}:
        raise SystemExit(f"{callers} callers: wrong answers {wrong}: no speed reported")
    return found


def measure(model: str, repeats: int, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Return a row for each number of callers: median images a second and milliseconds of both servers."""
    repository = build_repository(model, threads)
    with tempfile.TemporaryDirectory() as folder:
        single = one_of_all(repository, threads, Path(folder) / "models")
        with ours(repository, turned()[0]) as two, ours(single, turned()[0]) as one:
            servers = {"two": two, "one": one}
            requests = two.checked_requests(expected(repository, threads), MODELS[model][1])  # the same for both
            turn(servers, requests, CALLERS[-1], WARM_SECONDS, False)
            rows = []
            for callers in CALLERS:
                turns = [turn(servers, requests, callers, seconds, bool(repeat % 2)) for repeat in range(repeats)]
                row: dict[str, Any] = {"model": model, "callers": callers}
                for name in servers:
                    for figure in ("images_per_s", "p50_ms", "p99_ms"):
                        row[f"{name}_{figure}"] = round(statistics.median(each[name][figure] for each in turns), 2)
                ratios = [each["two"]["images_per_s"] / each["one"]["images_per_s"] for each in turns]
                row["ratio"] = round(statistics.median(ratios), 3)
                row["ratios"] = [round(ratio, 3) for ratio in sorted(ratios)]
                rows.append(row)
                print(f"{model}, {callers} callers: {row['ratio']:.2f} times, {row['ratios']}", flush=True)
    return rows


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    add_names(parser, "--models", MODELS, "networks to measure", MODELS)
    parser.add_argument("--repeats", type=whole_number, default=8, help="turns of each load (default: 8)")
    add_seconds(parser, 2.0)
    options = parser.parse_args()
    run_as_served("benchmarks.instances")
    require_server()
    warning = other_work_warning()
    threads = cores()
    if threads < 2:
        raise SystemExit("one core: there are no threads to divide")
    rows = [row for model in options.models for row in measure(model, options.repeats, options.seconds, threads)]
    publish(
        "instances",
        threads=threads,
        seconds=options.seconds,
        repeats=options.repeats,
        versions=versions("torch", "nvidia-pytriton"),
        warning=warning,
        rows=rows,
    )


if __name__ == "__main__":
    main()

"""Widefield's ensemble against FastAPI, LitServe, BentoML and Ray Serve: the same weights, JPEG in, labels out.

    python -m benchmarks.serving [--models nano small mobilenetv3] [--peers fastapi ray]
        [--ways both|one|workers|plain|openvino] [--repeats 5] [--seconds 10]

A quick answer, of all five servers and two models in about 25 minutes on two cores:

    python -m benchmarks.serving --models nano mobilenetv3 --ways workers --seconds 1.5

Every peer runs our TorchScript with our native library: what is compared is the server. `--ways plain` and `--ways
openvino` compare what users have without Widefield: the peers with the same weights in PyTorch's own convolutions
(serving_plain.json) or in OpenVINO, in float32 (serving_openvino.json):

    python -m benchmarks.serving --ways plain --seconds 2.5
    python -m benchmarks.serving --ways openvino --seconds 2.5 --models nano small

Each repeat starts every server in turn, alone on the machine. It measures the cold start until the first right answer
and compares the answers of four images with a bare loop of the same steps. Then it measures closed loops with 1, 8 and
32 callers and open loops (Poisson) at 50, 80 and 110 % of that server's best closed loop; there too, an answer that
differs is an error. Finished runs are kept in build/serving/runs.jsonl, so that an interrupted benchmark can resume. A
run of other sources or versions, on another machine, for other --ways, or while other processes used more than a tenth
of a core, is repeated; --fresh repeats all. The peers run in build/peers (requirements.txt), created at the first use.

Its time: a run (one server, one repeat) takes about 20 s to start, warm up and stop, and six loads of --seconds after a
warm-up of the same length, at most 3 s. There are models x repeats x (1 + peers) runs, with --ways both 1 + 2 x peers.
With --seconds 1.5 a load of a repeat has about a hundred answers: its p99 is nearly the slowest one, and the median of
the repeats counts; use 10 if the p99 matters. --ways workers omits each peer's setup of one process with a thread for
every core, and --models can omit the third network.
"""

import argparse
import importlib.metadata
import json
import os
from typing import Any

from benchmarks.commands import add_names, add_seconds, command_parser, exit_on_sigterm, whole_number
from benchmarks.harness import cores, fingerprint, publish, require_server, run_as_served, versions
from benchmarks.photographs import turned
from benchmarks.served import check, expected
from benchmarks.serving import table
from benchmarks.serving.load import CALLERS, Request, closed_loop, open_loop
from benchmarks.serving.networks import FOLDER, MODELS, build_repository
from benchmarks.serving.quiet import LIMIT, Others
from benchmarks.serving.servers import ENVIRONMENT, NETWORKS, ONE_WORKER, OURS, Running, prepare_environment, started

SHARES = (0.5, 0.8, 1.1)
WAYS = {"one": ("",), "workers": ("-workers",), "both": ("", "-workers")} | {way: (f"-{way}",) for way in NETWORKS}
START_SECONDS = 20  # on average, only for the estimate
SOURCES = (
    "benchmarks/serving",
    "benchmarks/latency.py",
    "benchmarks/photographs.py",
    "benchmarks/served.py",
    "export",
    "kernels",
    "models",
    "server",
)
STEP = "model_repository/preprocess/1"


def measure(running: Running, requests: list[Request], seconds: float, repeat: int) -> dict[str, Any]:
    closed_loop(running.port, requests, CALLERS[-1], min(seconds, 3))  # warm-up: every batch size occurs
    loads = {f"closed {n}": closed_loop(running.port, requests, n, seconds) for n in CALLERS}
    best = max(load["images_per_s"] for load in loads.values())
    for share in SHARES:
        loads[f"open {share:.0%}"] = open_loop(running.port, requests, max(share * best, 0.1), seconds, repeat)
    return loads


def one_run(model: str, server: str, repeat: int, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    repository, pictures = build_repository(model, threads, options.ways), turned()
    right, precision = expected(repository, threads), MODELS[model][1]
    with started(server, repository, pictures[0], threads, FOLDER / f"{server}.log") as running:
        for picture, probabilities in zip(pictures, right, strict=True):
            check(f"{server} with {model}", running.classify(picture), probabilities, precision)
        others = Others(running.pid)
        loads = measure(running, running.checked_requests(right, precision), options.seconds, repeat)
        cores = others.cores()
        memory = running.memory_mib()
        cold = round(running.cold_start_s, 2)
    known = {"model": model, "server": server, "repeat": repeat, "seconds": options.seconds}
    return {**known, "cold_start_s": cold, "memory_mib": memory, "others_cores": cores, "loads": loads}


def remembered(fresh: bool) -> list[dict[str, Any]]:
    """The finished runs of earlier calls. A last line that a kill or a full disk cut off is removed from the file."""
    path = FOLDER / "runs.jsonl"
    if fresh:
        path.unlink(missing_ok=True)
    if not path.exists():
        return []
    *whole, rest = path.read_bytes().split(b"\n")
    os.truncate(path, path.stat().st_size - len(rest))
    return list(map(json.loads, whole))


def disturbance(cores: list[float]) -> str | None:
    """A warning if other processes used part of the machine while a server was measured."""
    found = [one for one in cores if one > LIMIT]
    if not found:
        return None
    return (
        f"in {len(found)} of {len(cores)} runs other processes took {min(found):g} to {max(found):g} cores: "
        "the figures compare nothing; measure again on a machine that does nothing else"
    )


def peer_versions() -> dict[str, str]:
    (packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
    wanted = ("fastapi", "uvicorn", "litserve", "bentoml", "ray", "openvino")
    found = {d.name: d.version for d in importlib.metadata.distributions(path=[str(packages)])}
    return {name: found[name] for name in wanted}


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    add_names(
        parser, "--models", ("nano", "small", "mobilenetv3"), f"networks to serve, of {', '.join(MODELS)}", MODELS
    )
    add_names(parser, "--peers", ONE_WORKER, "servers to compare with", ONE_WORKER)
    parser.add_argument(
        "--ways",
        choices=WAYS,
        default="both",
        help="set-up of the peers. one: one process; workers: one on each core; the others: as above (default: both)",
    )
    parser.add_argument(
        "--repeats",
        type=whole_number,
        default=5,
        help="repeats, in each of which every server has its turn (default: 5)",
    )
    add_seconds(parser, 10.0)
    parser.add_argument(
        "--fresh", action="store_true", help="measure everything again, without the finished runs of an earlier call"
    )
    options = parser.parse_args()
    if options.ways == "openvino" and (other := [name for name in options.models if MODELS[name][1] != "fp32"]):
        parser.error(f"--models {other[0]}: OpenVINO reads ONNX, which is exported in float32 only; leave it out")
    run_as_served("benchmarks.serving")
    exit_on_sigterm()
    servers = [OURS, *(peer + way for peer in options.peers for way in WAYS[options.ways])]
    threads = cores()
    require_server()
    prepare_environment()
    plan = [
        (m, s, r)
        for m in options.models
        for r in range(options.repeats)
        for s in (*servers[r % 2 :], *servers[: r % 2])
    ]
    found = {**versions("torch", "nvidia-pytriton"), **peer_versions()}
    made_by = fingerprint(*SOURCES, STEP, versions={**found, **versions("numpy", "pillow")}, ways=options.ways)
    runs = {
        key: run
        for run in remembered(options.fresh)
        if (key := (run["model"], run["server"], run["repeat"])) in plan
        and run["seconds"] == options.seconds
        and run.get("made_by") == made_by
    }
    left = [one for one in plan if one not in runs or runs[one]["others_cores"] > LIMIT]
    minutes = len(left) * (START_SECONDS + min(options.seconds, 3) + 6 * options.seconds) / 60
    print(f"{len(left)} runs of {len(plan)} to do, about {minutes:.0f} minutes", flush=True)
    for model, server, repeat in left:
        run = one_run(model, server, repeat, options, threads) | {"made_by": made_by}
        with (FOLDER / "runs.jsonl").open("a") as file:
            file.write(json.dumps(run) + "\n")
        runs[model, server, repeat] = run
        loads = ", ".join(f"{name} {load['images_per_s']:g}/s" for name, load in run["loads"].items())
        print(
            f"{model} {server} {repeat + 1}/{options.repeats}: {loads}; {run['memory_mib']:.0f} MiB; "
            f"others took {run['others_cores']:g} cores",
            flush=True,
        )
    rows = table.rows(list(runs.values()))
    others = [run["others_cores"] for run in runs.values()]
    warning = disturbance(others)
    publish(
        f"serving_{options.ways}" if options.ways in NETWORKS else "serving",
        image=f"JPEG 960x640, {len(turned()[0])} bytes, and three like it",
        threads=threads,
        seconds=options.seconds,
        repeats=options.repeats,
        others_cores_at_most=max(others),
        versions=found,
        warning=warning,
        rows=rows,
        verdicts=table.verdicts(rows, options.ways if options.ways in NETWORKS else ""),
    )


if __name__ == "__main__":
    main()

"""Everything that needs a GPU, in one call: each part is a process with its own time limit.

    python -m benchmarks.gpu_check [--seconds 480] [--only tests native]

A part that fails or runs out of time does not stop the others; without a GPU only the first is run. After every part
benchmarks/results/gpu_check.json is written anew, so that an interrupted call keeps its results; the whole output of a
part is in build/gpu_check/<part>.log. The exit status is 0 only if nothing failed; a part for which the machine lacks
something is skipped, with the reason.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.commands import command_parser, exit_on_sigterm, positive
from benchmarks.gpu_check import SKIPPED
from benchmarks.harness import ROOT, write_results

LOGS = ROOT / "build" / "gpu_check"  # <part>.log, all that it printed
TOTAL_SECONDS = 480.0
LEAST_SECONDS = 5.0  # no part is started with less time left
KILL_SECONDS = 10.0  # a process that a driver holds ends when that lets it go, or never
NAME = "gpu_check"
SECONDS = "SECONDS"  # in a part's command: its time, less what a layer that was begun at the end may take
LAST_LAYER_SECONDS = 35.0


@dataclass(frozen=True)
class Part:
    """A part of the check: the interpreter's arguments `command`, and its share of the time, `seconds`.

    It may also use the time that earlier parts left over. After that it and all that it started are killed.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needed: bool = False  # if it fails, the others are not tried
    environment: Mapping[str, str] = field(default_factory=dict)  # added to this process's


@dataclass
class Outcome:
    """`status`: passed, failed, skipped, running, pending. `why`: the reason if not passed. `tail`: the last lines."""

    name: str
    budget: float
    status: str = "pending"
    why: str = ""
    seconds: float = 0.0
    tail: list[str] = field(default_factory=list)


def parts() -> list[Part]:
    here = "benchmarks.gpu_check"
    # Most of the time is Triton's compiler. Neighbours share kernels, and a process begins with a run of them.
    processes = ("-n", str(min(16, os.cpu_count() or 1)), "--dist", "worksteal")
    workers = processes if importlib.util.find_spec("xdist") else ()
    # -v: where it is cut off, the log has the names of what failed. A file that cannot be imported stops no other.
    how = ("-v", "--durations=15", "--continue-on-collection-errors")
    without = ("-p", "no:cacheprovider", "-p", "no:benchmark")  # the latter warns in every process
    benchmark = ("-m", "benchmarks.kernels", "--device", "cuda")
    tests = ("-m", "pytest", "-m", "gpu", *how, *without, *workers, "tests/kernels")
    return [
        Part("device", ("-m", f"{here}.device"), 40, needed=True),  # a cold start reads gigabytes
        Part("build", ("kernels/native/build.py",), 45),
        Part("native", ("-m", f"{here}.native"), 20),
        Part("tests", tests, 100, environment={"OMP_NUM_THREADS": "1"}),  # as many processes as cores
        Part("served", ("-m", f"{here}.served"), 15),
        Part("benchmark", (*benchmark, "--tune", "30", "--no-compile", "--seconds", SECONDS), 115),
        Part("end_to_end", ("-m", f"{here}.end_to_end"), 70),
        Part("native_speed", ("-m", f"{here}.native_speed"), 30),
        Part("served_layout", ("-m", f"{here}.served_layout"), 25),
        Part("kernel_times", ("-m", f"{here}.kernel_times"), 20),
    ]


def run_part(part: Part, seconds: float, log: IO[bytes]) -> Outcome:
    """Run it for at most `seconds`, its output in `log`."""
    outcome = Outcome(part.name, seconds)
    started = time.monotonic()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": paths, **part.environment}
    own = str(max(1.0, round(seconds - LAST_LAYER_SECONDS)))
    command = [sys.executable, *(own if argument == SECONDS else argument for argument in part.command)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        stuck = _kill_group(process)  # also what a finished part left running
    outcome.seconds = round(time.monotonic() - started, 1)
    log.seek(0)
    outcome.tail = log.read().decode(errors="replace").splitlines()[-25:]
    last = next((line for line in reversed(outcome.tail) if line.strip()), "")
    if status == 0:
        outcome.status = "passed"
    elif status == SKIPPED:
        outcome.status, outcome.why = "skipped", last
    elif status is None:
        outcome.status, outcome.why = "failed", f"not finished after {seconds:.0f} s{stuck}; it was at: {last}"
    else:
        outcome.status, outcome.why = "failed", f"exit status {status}: {last}"
    return outcome


def _kill_group(process: "subprocess.Popen[bytes]") -> str:
    """Kill the process and all that it started; return a few words if it has not ended `KILL_SECONDS` later."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return f", and process {process.pid} outlives SIGKILL (a driver holds it: see dmesg, restart the machine)"
    return ""


def check(chosen: Sequence[Part], seconds: float) -> list[Outcome]:
    """Run the parts in order within `seconds` in all; results/gpu_check.json follows every step."""
    deadline = time.monotonic() + seconds
    outcomes = [Outcome(part.name, part.seconds) for part in chosen]
    blocked = ""
    for index, part in enumerate(chosen):
        left = deadline - time.monotonic()
        allowed = min(left, max(part.seconds, left - sum(later.seconds for later in chosen[index + 1 :])))
        if blocked:
            outcomes[index].status, outcomes[index].why = "skipped", blocked
        elif left < LEAST_SECONDS:
            outcomes[index].status, outcomes[index].why = "failed", f"not begun: the {seconds:.0f} s were over"
        else:
            outcomes[index].status = "running"
            save(outcomes, seconds)
            print(f"--- {part.name} (at most {allowed:.0f} s)", flush=True)
            LOGS.mkdir(parents=True, exist_ok=True)
            with open(LOGS / f"{part.name}.log", "w+b") as log:
                outcomes[index] = run_part(part, allowed, log)
            print("\n".join(outcomes[index].tail), flush=True)
            if part.needed and outcomes[index].status != "passed":
                blocked = f"{part.name} is needed: {outcomes[index].why}"
        save(outcomes, seconds)
    return outcomes


def save(outcomes: list[Outcome], seconds: float) -> Path:
    status = "failed" if failed(outcomes) else "running" if _unfinished(outcomes) else "passed"
    return write_results(NAME, seconds=seconds, status=status, parts=[asdict(outcome) for outcome in outcomes])


def failed(outcomes: list[Outcome]) -> list[str]:
    return [outcome.name for outcome in outcomes if outcome.status == "failed"]


def _unfinished(outcomes: list[Outcome]) -> bool:
    return any(outcome.status in ("pending", "running") for outcome in outcomes)


def summary(outcomes: list[Outcome]) -> list[str]:
    return [f"{o.name:12} {o.status:8} {o.seconds:6.1f} s  {o.why}".rstrip() for o in outcomes]


def main(arguments: Sequence[str] | None = None, known: Sequence[Part] | None = None) -> int:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument(
        "--seconds",
        type=positive,
        default=TOTAL_SECONDS,
        help="time limit for all parts together, in seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="parts to run; device always comes first (default: all)"
    )
    options = parser.parse_args(arguments)
    exit_on_sigterm()
    everything: dict[str, Any] = {part.name: part for part in (parts() if known is None else known)}
    names = options.only or list(everything)
    if unknown := [name for name in names if name not in everything]:
        parser.error(f"--only {' '.join(unknown)}: the parts are {', '.join(everything)}")
    first = [name for name, part in everything.items() if part.needed]
    names = first + [name for name in names if name not in first]
    outcomes = check([everything[name] for name in names], options.seconds)
    print("\n".join(["", *summary(outcomes)]))
    print(f"wrote {save(outcomes, options.seconds)}")
    return 1 if failed(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Independent runs in parallel, each in its own process; finished runs are not repeated."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.evidence.execute import execute, finished
from benchmarks.evidence.run import Run


def run_all(
    runs: list[Run], root: Path, jobs: int, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return results by run name, and the errors of runs that failed or depend on one that did.

    A run begins as soon as the one it starts from is done, in the order of `runs` otherwise.
    """
    done = {run.name: result for run in runs if (result := finished(run, root))}
    waiting = [run for run in runs if run.name not in done]
    if done:
        say(f"{len(done)} of {len(runs)} runs are in {root} already")
    failed: dict[str, str] = {}
    running: dict[Future[dict[str, Any]], Run] = {}
    started, before = time.perf_counter(), len(done)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            for run in list(waiting):
                if run.start is not None and run.start.name in failed:
                    failed[run.name] = f"it starts from {run.start.name}, which failed"
                    waiting.remove(run)
                elif len(running) < jobs and (run.start is None or run.start.name in done):
                    running[pool.submit(execute, run, root)] = run
                    waiting.remove(run)
            if not running:  # the last waiting ones have just failed
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                error = future.exception()
                if error is None:
                    done[run.name] = future.result()
                else:
                    failed[run.name] = f"{type(error).__name__}: {error}"
                shown = failed.get(run.name) or _shown(done[run.name])
                ended, minutes = len(done) + len(failed), (time.perf_counter() - started) / 60
                left = minutes * (len(runs) - ended) / (ended - before)
                say(f"[{ended}/{len(runs)}] {run.name}: {shown}; {minutes:.0f} min passed, about {left:.0f} left")
    return done, failed


def _shown(result: dict[str, Any]) -> str:
    numbers = {name: value for name, value in result["metrics"].items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()) + f" in {result['seconds']:.0f} s"

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
    left, clock = sum(run.seconds for run in waiting), _Clock()
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
                left -= run.seconds
                clock.spent += run.seconds
                error = future.exception()
                if error is None:
                    done[run.name] = future.result()
                else:
                    failed[run.name] = f"{type(error).__name__}: {error}"
                shown = failed.get(run.name) or _shown(done[run.name])
                say(f"[{len(done) + len(failed)}/{len(runs)}] {run.name}: {shown}; {clock.eta(left)}")
    return done, failed


class _Clock:
    """An estimate of the time left, from the runs' estimates and what the finished ones took."""

    def __init__(self) -> None:
        self.started, self.spent = time.perf_counter(), 0.0

    def eta(self, left: float) -> str:
        passed = time.perf_counter() - self.started
        return f"{passed / 60:.0f} min passed, {passed * left / max(self.spent, 1e-9) / 60:.0f} left"


def _shown(result: dict[str, Any]) -> str:
    numbers = {name: value for name, value in result["metrics"].items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()) + f" in {result['seconds']:.0f} s"

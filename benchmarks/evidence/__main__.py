"""Do the runs that docs/results.md reports and write benchmarks/results/evidence_*.json.

python -m benchmarks.evidence                       # about an hour on two cores; keeps the runs of the same code
python -m benchmarks.evidence --only long_tail --seeds 3
python -m benchmarks.evidence.report                # docs/results.md from the results
"""

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.commands import command_parser, whole_number
from benchmarks.evidence.data import prepare
from benchmarks.evidence.execute import PACKAGES
from benchmarks.evidence.plan import EXPERIMENTS
from benchmarks.evidence.pool import run_all
from benchmarks.evidence.run import Arm, Run, runs_of
from benchmarks.harness import versions, write_results

TIMES = ("seconds", "processor_seconds")
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when a run's process starts


def rows_of(arms: list[Arm], results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm: its settings and, for each seed, the metrics, its seconds and those of the runs before it."""
    rows = []
    for arm in arms:
        seeds = [
            {
                "seed": run.seed,
                "runs": [each.name for each in run.chain()],
                **results[run.name]["metrics"],
                **{unit: results[run.name][unit] for unit in TIMES},
                **{f"{unit}_before": total(results, run.chain()[:-1], unit) for unit in TIMES},
            }
            for run in arm.runs
        ]
        first = arm.runs[0]
        steps = [{"kind": run.kind, "data": run.data.kind, "settings": run.settings} for run in first.chain()]
        rows.append({"group": arm.group, "arm": arm.name, "steps": steps, "seeds": seeds})
    return rows


def total(results: dict[str, dict[str, Any]], runs: list[Run], unit: str) -> float:
    return round(sum(results[run.name][unit] for run in runs), 2)


def main(arguments: list[str] | None = None) -> int:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(EXPERIMENTS),
        default=list(EXPERIMENTS),
        metavar="NAME",
        help=f"experiments to run, of {', '.join(EXPERIMENTS)} (default: all)",
    )
    parser.add_argument(
        "--seeds", type=whole_number, default=5, metavar="N", help="seeds of each run, 0 to N - 1 (default: 5)"
    )
    parser.add_argument(
        "--jobs", type=whole_number, default=2, metavar="N", help="runs at a time, with one thread each (default: 2)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/evidence"),
        metavar="FOLDER",
        help="folder of the runs and their data (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    arms = {name: EXPERIMENTS[name](range(options.seeds)) for name in options.only}
    return carry_out(arms, options.cache, options.jobs)


def carry_out(arms: dict[str, list[Arm]], cache: Path, jobs: int) -> int:
    """Do the missing runs of `arms` (by experiment), and write the results of every experiment that is complete."""
    runs = runs_of([arm for group in arms.values() for arm in group])
    runs.sort(key=lambda run: run.seed)  # all of the first seed before the second: a fault of any method shows early
    for data in {run.data for run in runs}:
        prepare(data, cache)
    results, failed = run_all(runs, cache, jobs, lambda line: print(line, flush=True))
    for name, group in arms.items():
        if any(run.name in failed for run in runs_of(group)):
            print(f"{name}: runs failed, its results are not written", file=sys.stderr)
            continue
        path = write_results(
            f"evidence_{name}",
            versions=versions(*PACKAGES),
            jobs=jobs,
            arch="replknet_nano",
            rows=rows_of(group, results),
        )
        print(f"wrote {path}")
    for name, error in failed.items():
        print(f"{name}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    sys.exit(main())

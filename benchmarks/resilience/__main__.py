"""Faults under load, restarts and a soak of real servers on this machine, with the demo's digits network.

    python -m benchmarks.resilience [--only faults restarts soak] [--restarts 200] [--requests 400000]

Each part is written into results/faults.json when it is done, with its own date, machine and versions; parts that are
not run stay as they were.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.commands import command_parser, exit_on_sigterm, whole_number
from benchmarks.harness import RESULTS, circumstances, other_work_warning, require_server, versions, write_results

PARTS = ("faults", "restarts", "soak")
MOST_GROWTH = 2.0  # percent of resident memory, over the soak


def write(part: str, content: Any, warning: str | None) -> Path:
    """Write the results file with this part replaced."""
    path = RESULTS / "faults.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    packages = versions("torch", "nvidia-pytriton", "tritonclient", "numpy", "pillow", "psutil")
    now = {**circumstances(), "versions": packages, "warning": warning, **content}
    return write_results("faults", **{name: before[name] for name in PARTS if name in before} | {part: now})


def not_held(part: str, content: dict[str, Any]) -> list[str]:
    """Return what a part shows that it should not, in words."""
    if part == "faults":
        return [
            f"{row['fault']}, through the {row['path']}: failed {row['failed']}, left {row['left_over']}, "
            f"back {row['back_s']}"
            for row in content["rows"]
            if row["failed"] or any(row["left_over"].values()) or row["back_s"] is None
        ]
    if part == "restarts":
        left = content["growth"], content["left_after_stop"]
        return [str(what) for what in left if any(what.values())]
    right = ("answered", "broken and refused")
    wrong = {kind: count for kind, count in content["outcomes"].items() if kind not in right}
    found = [f"the soak's outcomes: {wrong}"] if wrong else []
    found += [f"{content['restarts']} restarts in the soak"] if content["restarts"] else []
    grown = content["rss_growth_percent"]
    return found + ([f"memory grew by {grown} %"] if grown >= MOST_GROWTH else [])


def main() -> int:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run (default: all)")
    parser.add_argument(
        "--restarts",
        type=partial(whole_number, least=3),
        default=200,
        help="restarts of the server, at least 3 (default: 200)",
    )
    parser.add_argument(
        "--requests",
        type=whole_number,
        default=400_000,
        help="requests of the soak; memory levels off after 40,000 (default: 400000)",
    )
    options = parser.parse_args()
    require_server()
    exit_on_sigterm()

    from benchmarks.resilience.digits import build_digits
    from benchmarks.resilience.faults import endure
    from benchmarks.resilience.restarts import restart
    from benchmarks.resilience.soak import soak

    wrong = []
    with tempfile.TemporaryDirectory(prefix="resilience-") as folder:
        repository = build_digits(Path(folder))
        for part in options.only or PARTS:
            warning = other_work_warning()
            if part == "restarts":
                content = restart(repository, options.restarts)
            elif part == "faults":
                content = endure(repository, Path(folder))
            else:
                content = soak(repository, options.requests)
            print(f"wrote {write(part, content, warning)}", flush=True)
            wrong += not_held(part, content)
    for line in wrong:
        print(f"not held: {line}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

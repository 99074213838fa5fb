"""Faults under load, restarts and a soak of real servers on this machine, with the demo's digits network.

    python -m benchmarks.resilience [--only faults|restarts|soak] [--restarts 200] [--requests 100000]

Each part is written into results/faults.json when it is done; parts that are not run stay as they were.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, load_average_warning, versions, write_results

PARTS = ("faults", "restarts", "soak")
HEADER = ("benchmark", "date", "machine")


def write(part: str, content: Any, warning: str | None) -> Path:
    """The results file with this part anew."""
    path = RESULTS / "faults.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    parts = {name: before[name] for name in PARTS if name in before} | {part: {"warning": warning, **content}}
    packages = versions("torch", "nvidia-pytriton", "tritonclient", "numpy", "pillow", "psutil")
    return write_results("faults", versions=packages, **parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (may be given again)")
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100_000, help="of the soak")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are stopped on the way out

    from benchmarks.resilience.digits import build_digits
    from benchmarks.resilience.faults import endure
    from benchmarks.resilience.restarts import restart
    from benchmarks.resilience.soak import soak

    with tempfile.TemporaryDirectory(prefix="resilience-") as folder:
        repository = build_digits(Path(folder))
        for part in options.only or PARTS:
            warning = load_average_warning()
            if part == "restarts":
                content = restart(repository, options.restarts)
            elif part == "faults":
                content = endure(repository, Path(folder))
            else:
                content = soak(repository, options.requests)
            print(f"wrote {write(part, content, warning)}", flush=True)


if __name__ == "__main__":
    main()

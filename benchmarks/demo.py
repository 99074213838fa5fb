"""The time that `make demo` takes after the set-up (training, the whole first run, a second run), and its answers.

    python -m benchmarks.demo

It runs the demo's commands in a copy of the checkout without data and checkpoints.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.commands import no_options
from benchmarks.harness import ROOT, other_work_warning, publish, require_server, versions
from kernels.native.build import OUTPUT
from server.backends import build as backends

LIBRARIES = [path.parent.relative_to(ROOT) for path in (OUTPUT, *(each.output for each in backends.LIBRARIES.values()))]
ANSWER = re.compile(r"^(grpc|http): (\d+) of (\d+) held-out images right.*?; ([\d.]+) ms an image", re.MULTILINE)


def copy_checkout(target: Path) -> None:
    """Copy the tracked files of the working tree, and the built libraries. Raises `SystemExit` without those."""
    if missing := [str(folder) for folder in LIBRARIES if not (ROOT / folder).is_dir()]:
        raise SystemExit(f"not built: {', '.join(missing)}: make native")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for folder in LIBRARIES:
        shutil.copytree(ROOT / folder, target / folder)


def timed(folder: Path, *arguments: str) -> tuple[float, str]:
    """Run a Python command in `folder`; returns its seconds and its output."""
    begun = time.perf_counter()
    environment = {**os.environ, "COLUMNS": "200"}  # no line of a table is broken
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return round(seconds, 1), done.stdout


def measure(folder: Path) -> dict[str, Any]:
    training, _ = timed(folder, "-m", "training.finetune", "--preset", "digits", "--output", "runs/digits-nano")
    rest, _ = timed(folder, "demo.py")
    again, text = timed(folder, "demo.py")
    answers = {
        protocol: {"right": int(right), "images": int(images), "ms_an_image": float(ms)}
        for protocol, right, images, ms in ANSWER.findall(text)
    }
    if answers.keys() != {"grpc", "http"}:
        raise SystemExit(f"the demo did not say what was right over gRPC and HTTP: {text[-2000:]}")
    return {"training_s": training, "first_run_s": round(training + rest, 1), "second_run_s": again, "answers": answers}


def main() -> None:
    require_server()
    warning = other_work_warning()
    with tempfile.TemporaryDirectory() as folder:
        copy_checkout(Path(folder))
        found = measure(Path(folder))
    packages = versions("torch", "nvidia-pytriton", "tritonclient", "numpy", "pillow")
    print(found)
    publish("demo", versions=packages, warning=warning, **found)


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    main()

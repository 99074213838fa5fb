"""Do one run through the training code, and keep its result so that it is not done again."""

import functools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.evidence.kernel_check import compare
from benchmarks.evidence.run import Run
from benchmarks.harness import fingerprint, versions
from models.files import replace_file
from training import attack, evaluate, finetune, pretrain
from training.logs import LOG_FILE
from training.long_tail import SHOTS

ALONE = {"workers": 0, "threads": 1, "device": "cpu"}  # a run is one process with one thread
RESULT = "result.json"
PACKAGES = ("torch", "torchvision", "timm", "scikit-learn", "scikit-image")
SOURCES = (
    "training",
    "models",
    "kernels",
    *(f"benchmarks/evidence/{name}.py" for name in ("data", "execute", "kernel_check")),
)


def folder_of(run: Run, root: Path) -> Path:
    return root / "runs" / run.name


def finished(run: Run, root: Path) -> dict[str, Any] | None:
    """The result of a run that was done with these settings, by this code: {"metrics": {...}, "seconds": ...}."""
    path = folder_of(run, root) / RESULT
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return kept["result"] if kept["run"] == as_kept(run) else None


def execute(run: Run, root: Path) -> dict[str, Any]:
    """Do `run`; its data and the run that it starts from are there.

    What a folder holds of a run that was cut off, has other settings or is by other code is removed: the times are
    those of a whole run. Raises what the training code raises.
    """
    if result := finished(run, root):
        return result
    torch.set_num_threads(1)
    folder = folder_of(run, root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wall, processor = time.perf_counter(), time.process_time()
    result = {
        "metrics": DO[run.kind](run, root, folder),
        "seconds": round(time.perf_counter() - wall, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
    }
    text = json.dumps({"run": as_kept(run), "result": result}, indent=2) + "\n"
    replace_file(folder / RESULT, lambda path: path.write_text(text))
    return result


def as_kept(run: Run) -> dict[str, Any]:
    """Its settings, and what it is made by: another is another run."""
    return {**json.loads(json.dumps(run.as_json())), "made_by": made_by()}


@functools.cache
def made_by() -> str:
    return fingerprint(*SOURCES, versions=versions(*PACKAGES))


def last_epoch(folder: Path) -> dict[str, float]:
    """The log's last line, and the number of its lines."""
    records = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    kept = ("loss", "val_loss", "top1", "balanced", "many", "medium", "few", "robust")
    metrics = {name: records[-1][name] for name in kept if name in records[-1]}
    return {**metrics, "epochs": len(records)}


def start_of(run: Run, root: Path) -> Path | None:
    return folder_of(run.start, root) if run.start else None


def do_finetune(run: Run, root: Path, folder: Path) -> dict[str, float]:
    config = replace(
        finetune.PRESETS["digits"], data=root / run.data.name, output=folder, seed=run.seed, weights=start_of(run, root)
    )
    finetune.train(replace(config, **{**ALONE, **run.settings}), Console(quiet=True))
    return last_epoch(folder)


def do_pretrain(run: Run, root: Path, folder: Path) -> dict[str, float]:
    config = replace(pretrain.PRESETS["digits"], data=root / run.data.name, output=folder, seed=run.seed)
    pretrain.train(replace(config, **{**ALONE, **run.settings}), Console(quiet=True))
    return last_epoch(folder)


def do_evaluate(run: Run, root: Path, folder: Path) -> dict[str, float]:
    data = root / run.data.name / "val"
    values: dict[str, Any] = {"checkpoint": start_of(run, root), "data": data, "device": "cpu"}
    *_, metrics = evaluate.evaluate(evaluate.Config(**values, **run.settings))
    return {name: metrics[name] for name in ("top1", *SHOTS) if name in metrics}


def do_attack(run: Run, root: Path, folder: Path) -> dict[str, float]:
    values: dict[str, Any] = {"checkpoint": start_of(run, root), "data": root / run.data.name / "val"}
    results = attack.attack_checkpoint(attack.Config(**values, seed=run.seed, device="cpu", **run.settings))
    return {result.attack: result.accuracy for result in results}


def do_kernels(run: Run, root: Path, folder: Path) -> dict[str, Any]:
    return compare(root / run.data.name, folder, run.seed, **run.settings)


DO: dict[str, Callable[[Run, Path, Path], dict[str, Any]]] = {
    "pretrain": do_pretrain,
    "finetune": do_finetune,
    "evaluate": do_evaluate,
    "attack": do_attack,
    "kernels": do_kernels,
}

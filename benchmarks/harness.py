"""Where benchmarks leave their results, and the environment that they run in; the timing is training.measurement's."""

import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from training.measurement import (
    Timing,
    gpu,
    interleaved,
    load_average_warning,
    machine,
    name_on,
    versions,
    write_document,
)

__all__ = [
    "RESULTS",
    "Timing",
    "fingerprint",
    "gpu",
    "interleaved",
    "load_average_warning",
    "machine",
    "name_on",
    "openvino_core",
    "run_as_served",
    "versions",
    "write_results",
]

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
SOURCES = (".py", ".cpp", ".h", ".json", ".txt")


def write_results(name: str, **content: Any) -> Path:
    """benchmarks/results/<name>.json, with the date and the machine."""
    return write_document(RESULTS / f"{name}.json", **content)


def fingerprint(*paths: str, **known: Any) -> str:
    """Changes when a source in `paths` (files or folders, from the root), the machine or anything of `known` does.

    A run that is kept stands for one of now only where it is the same.
    """
    digest = hashlib.sha256(json.dumps([machine(), known], sort_keys=True).encode())
    for top in (ROOT / path for path in paths):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(ROOT)
            if path.suffix in SOURCES and "lib" not in name.parts:  # built of the others
                digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()


def run_as_served(module: str) -> None:
    """Start this benchmark again with what the server sets for its processes: read when a process starts."""
    from server.runtime import ENVIRONMENT  # not where a GPU is measured: it asks for more than is installed there

    if any(os.environ.get(key) != value for key, value in ENVIRONMENT.items()):
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's Core, one for the process and never let go.

    Each Core's CPU plugin brings a signal stack of its own and takes it away again: where a second Core came between,
    the thread keeps one that is unmapped, and the next signal ends the process.
    """
    import openvino

    return openvino.Core()

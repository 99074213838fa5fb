"""Stand-ins for a GPU: the interpreter, in its own process, and a torch.cuda.device that selects nothing."""

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
DTYPES = ("float32", "float16", "bfloat16")
BY_TIME = (("float16",), pytest.param(("float32", "bfloat16"), marks=pytest.mark.slow))  # a minute of interpreting each


def interpreted(script: str, dtypes: tuple[str, ...] = DTYPES) -> dict[str, list[str]]:
    """Return the lines that a script prints under TRITON_INTERPRET (read when Triton is imported), by data type."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{FOLDER.parents[1]}:{FOLDER}"

    def run(dtype: str) -> list[str]:
        command = [sys.executable, str(FOLDER / script), dtype]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    with ThreadPoolExecutor() as pool:
        return dict(zip(dtypes, pool.map(run, dtypes), strict=True))


def no_device(_: object) -> contextlib.AbstractContextManager[None]:
    """Replace torch.cuda.device."""
    return contextlib.nullcontext()

"""The demo's benchmark runs in a copy of the checkout that needs no compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.demo import copy_checkout
from server.backends.build import LIBRARIES


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    copy_checkout(folder)
    return folder


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("server/backends/build.py", [library.output.name for library in LIBRARIES.values()]),
        ("kernels/native/build.py", ["libwidefield.so"]),
    ],
)
def test_all_libraries_are_there_and_current(copy: Path, script: str, names: list[str]) -> None:
    command, environment = [sys.executable, script], {**os.environ, "CXX": "/no/compiler"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} is up to date" for name in names]

"""The demo's benchmark runs in a copy of the checkout that needs no compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import demo
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


def test_what_is_not_built_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LIBRARIES", [Path("kernels"), Path("kernels/none")])
    with pytest.raises(SystemExit, match="not built: kernels/none: make native"):
        copy_checkout(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_says_nothing_of_its_answers_has_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "grpc: 355 of 359 held-out images right, 98.89%; 3.1 ms an image, one at a time\n"
    monkeypatch.setattr(demo, "timed", lambda folder, *arguments: (1.0, said))
    with pytest.raises(SystemExit, match="did not say what was right over gRPC and HTTP: grpc: 355"):
        demo.measure(tmp_path)
    said += said.replace("grpc", "http").replace("355", "356")
    found = demo.measure(tmp_path)["answers"]
    assert found["grpc"] == {"right": 355, "images": 359, "ms_an_image": 3.1}
    assert found["http"]["right"] == 356

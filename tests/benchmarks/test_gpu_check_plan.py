"""The parts of `make gpu-check` as they are: they fit into its time, and start on a machine that has little."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import __main__ as runner


def test_the_real_parts_fit_into_eight_minutes(monkeypatch):
    parts = runner.parts()
    assert parts[0].name == "device"
    assert parts[0].needed
    assert sum(part.seconds for part in parts) <= runner.TOTAL_SECONDS == 480
    files = [part.command[-1].replace(".", "/") + ".py" for part in parts if "benchmarks.gpu_check" in part.command[-1]]
    assert len(files) == 7
    assert all((runner.ROOT / file).is_file() for file in files)
    assert any("-n" in part.command for part in parts) == (runner.importlib.util.find_spec("xdist") is not None)
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: name == "xdist" or None)
    (tests,) = (part for part in runner.parts() if part.name == "tests")
    assert "-n" in tests.command
    assert tests.environment == {"OMP_NUM_THREADS": "1"}


def test_the_gpu_s_tests_are_spread_over_all_processes(tmp_path):
    """By files, two of three workers would do nothing here: the GPU's tests are in seven files, for sixteen workers."""
    (tmp_path / "conftest.py").write_text((runner.ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_one_file.py").write_text(
        "import os, time, pytest\n"
        "@pytest.mark.parametrize('number', range(6))\n"
        "def test_it(number, worker_id):\n"
        "    time.sleep(0.1)\n"
        f"    open({str(tmp_path / 'workers')!r}, 'a').write(worker_id + '\\n')\n"
    )
    (tests,) = (part for part in runner.parts() if part.name == "tests")
    distribution = tests.command[tests.command.index("--dist") :][:2]
    command = [
        "-m",
        "pytest",
        "-q",
        "-n",
        "3",
        *distribution,
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    done = subprocess.run([sys.executable, *map(str, command)], cwd=runner.ROOT, capture_output=True, text=True)
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert len(set((tmp_path / "workers").read_text().split())) == 3


def test_a_file_of_tests_that_cannot_be_imported_stops_no_other(tmp_path, monkeypatch):
    """As all are read before any runs: in one process, where there is no xdist, none would run."""
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    (tests,) = (part for part in runner.parts() if part.name == "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (tmp_path / "test_bad.py").write_text("import not_on_this_machine\n")
    (tmp_path / "test_good.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it(): pass\n")
    command = [sys.executable, *tests.command[:-1], str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1


def test_nothing_is_imported_that_a_bare_gpu_machine_lacks():
    """All that gpu-check needs to start, with the packages hidden that only this project's own environment has."""
    hidden = (
        "rich",
        "tyro",
        "openvino",
        "onnx",
        "onnxruntime",
        "tritonclient",
        "psutil",
        "sklearn",
        "matplotlib",
        "timm",
    )
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({hidden}))  # an import of these now raises
for name in ("device", "native", "native_speed", "end_to_end", "served", "served_layout", "kernel_times", "__main__"):
    importlib.import_module("benchmarks.gpu_check." + name)
importlib.import_module("benchmarks.kernels.__main__")
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=runner.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


@pytest.mark.parametrize("makefile", [Path(__file__).parents[2] / "Makefile"])
def test_make_calls_it(makefile):
    text = makefile.read_text()
    assert "\t$(GPU_PYTHON) -m benchmarks.gpu_check\n" in text
    assert "\t$(GPU_PYTHON) -m benchmarks.kernels --device cuda\n" in text

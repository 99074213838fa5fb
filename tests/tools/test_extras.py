"""Where an extra of pyproject.toml is not installed, or the native library does not load, one line names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.build import BuildOptions
from export.source import check_options

ROOT = Path(__file__).parents[2]
SCRIPTS = ("attack", "check", "evaluate", "explain", "finetune", "pretrain")


@pytest.mark.parametrize(
    ("command", "extra"),
    [(["build_models.py", "--help"], "build"), *((["-m", f"training.{name}"], "train") for name in SCRIPTS)],
)
def test_what_is_missing_is_named_with_the_extra(command: list[str], extra: str) -> None:
    """-S: a Python without any package."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert " needs torch, " in done.stderr
    assert f": pip install '.[{extra}]' brings all of it" in done.stderr


@pytest.mark.parametrize(
    "command", [["build_models.py", "--help"], ["-m", "training.finetune", "--help"]], ids=" ".join
)
def test_a_library_that_is_not_there_is_named(command: list[str]) -> None:
    environment = {**os.environ, "WIDEFIELD_LIBRARY": "/nope", "WIDEFIELD_NATIVE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "WIDEFIELD_LIBRARY=/nope is not a file: name a libwidefield.so, or unset it" in done.stderr


def test_onnx_is_asked_for_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    options = BuildOptions(arch="replknet_nano", random_weights=True, formats=("torchscript", "onnx"))
    check_options(options)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(RuntimeError, match=r"--format onnx needs onnxscript: pip install '\.\[build\]'"):
        check_options(options)

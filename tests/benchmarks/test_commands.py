"""What is asked of a script that it cannot do is said in a line; one that has no options says what it does."""

import importlib
import runpy
import sys

import pytest
import torch

PARTS = ("device", "native", "native_speed", "end_to_end", "served")
MODULES = ["benchmarks.report", "benchmarks.demo", "benchmarks.evidence.report", "kernels.native.build"]
MODULES += [f"benchmarks.gpu_check.{part}" for part in PARTS]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--nonsense", 2)])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_nothing_is_done(
    name: str, option: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WIDEFIELD_NATIVE", "0")  # the library's build sets both
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [name, option])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == status
    said = capsys.readouterr()
    if status:
        assert f"unrecognized arguments: {option}" in said.err
    else:
        assert (importlib.import_module(name).__doc__ or "").splitlines()[0] in said.out


@pytest.mark.parametrize("name", ["benchmarks.report", "benchmarks.overload", "benchmarks.kernels"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_usage_is_what_is_typed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module(name, run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: python -m {name} ")


@pytest.mark.parametrize("name", ["benchmarks.kernels", "benchmarks.masked_patch_loss"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_gpu_that_is_not_there_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [name, "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("--device cuda: PyTorch sees no GPU here\n")

"""The native part of `make gpu-check` on a faked GPU: what it holds right, and that it finds what is wrong."""

import subprocess
import sys

import pytest
import torch

from benchmarks.gpu_check import native
from benchmarks.harness import ROOT
from benchmarks.kernels.accuracy import EPS


@pytest.fixture
def small_case(monkeypatch, tmp_path):
    torch.manual_seed(0)
    monkeypatch.setattr(native, "CASES", ((16, 9, 13),))
    native.write_case(tmp_path, 0)
    return tmp_path


class Replayed:
    """A module whose last call a graph's replay repeats, as a CUDA graph would."""

    def __init__(self, module, monkeypatch, stale=False):
        self.module, self.stale = module, stale
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph: self)

    def __call__(self, input):
        self.input, self.output = input, self.module(input)
        return self.output

    def __enter__(self):
        self.capturing = True

    def __exit__(self, *_):
        self.captured = self.output, self.input, self.input.clone()

    def replay(self):
        output, input, before = self.captured
        output.copy_(self.module(before if self.stale else input))


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("dtype", list(EPS), ids=str)
def test_native_checks_pass_on_what_is_right(small_case, monkeypatch, dtype):
    module, case = native.load(small_case, 0, dtype, "cpu")
    native.check_answer(module, case, torch.randn(2, 16, 9, 9).to(dtype))
    with torch.no_grad():
        native.check_graph(Replayed(module, monkeypatch), torch.randn(2, 16, 9, 9).to(dtype))


@pytest.mark.usefixtures("fake_gpu")
def test_native_counts_every_case_type_and_layout(small_case, monkeypatch):
    class Stream:
        def synchronize(self):
            pass

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(native, "check_graph", lambda module, input: module(input))
    assert native.check_all(small_case, "cpu") == 12
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(native, "check_all", lambda *_: 12)
    with pytest.raises(RuntimeError, match="`kernels` was imported"):
        native.alone("libwidefield.so", str(small_case))


@pytest.mark.usefixtures("fake_gpu")
def test_native_checks_find_what_is_wrong(small_case, monkeypatch):
    module, case = native.load(small_case, 0, torch.float32, "cpu")
    input = torch.randn(2, 16, 9, 9)
    with pytest.raises(RuntimeError, match="times its bound"):
        native.check_answer(lambda x: module(x) + 1e-2, case, input)
    with pytest.raises(RuntimeError, match="inf times its bound"):
        native.check_answer(lambda x: module(x) * float("nan"), case, input)
    with torch.no_grad(), pytest.raises(RuntimeError, match="a replayed graph differs"):
        native.check_graph(Replayed(module, monkeypatch, stale=True), input)


@pytest.mark.usefixtures("fake_gpu")
def test_native_threads_that_disturb_each_other_are_found(monkeypatch):
    class Stream:
        def synchronize(self):
            pass

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    calls = iter(range(1000))
    with pytest.raises(RuntimeError, match="another answer than alone"):
        native.check_threads(lambda x: x + (next(calls) > 20), [torch.zeros(2), torch.zeros(3)])

    def raising(x):
        if next(calls) > 100:
            raise ValueError("launch failed")
        return x

    with pytest.raises(RuntimeError, match="launch failed"):
        native.check_threads(raising, [torch.zeros(2), torch.zeros(3)], calls=500)


@pytest.mark.parametrize(("errors", "status", "expected"), [("", 0, 0), (native.FELL_BACK, 0, 1), ("boom", 1, 1)])
def test_native_reads_what_the_second_process_says(monkeypatch, small_case, errors, status, expected):
    class Done:
        stdout, stderr, returncode = "12 answers right", errors, status

    monkeypatch.setattr(subprocess, "run", lambda command, **_: Done)
    assert native.main() == expected


def test_native_needs_the_library(monkeypatch):
    import kernels

    monkeypatch.setattr(kernels, "native_library", lambda: None)
    assert native.main() == 1


def test_the_second_process_imports_no_kernels():
    """In a real process: importing the module must not import `kernels`."""
    code = "import sys, benchmarks.gpu_check.native; assert 'kernels' not in sys.modules; print('alone')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "alone", done.stderr

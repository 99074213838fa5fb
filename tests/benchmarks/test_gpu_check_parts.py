"""The parts of `make gpu-check` on a faked GPU: what they hold right, and that each finds what it is there to find."""

import importlib.util
import json
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks import harness
from benchmarks.gpu_check import end_to_end, native, served
from benchmarks.gpu_check.__main__ import SKIPPED
from benchmarks.harness import Timing
from kernels import depthwise_conv2d


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
@pytest.mark.parametrize("dtype", list(native.EPS), ids=str)
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

    monkeypatch.setattr(native.subprocess, "run", lambda command, **_: Done)
    assert native.main() == expected


def test_native_needs_the_library(monkeypatch):
    import kernels

    monkeypatch.setattr(kernels, "native_library", lambda: None)
    assert native.main() == 1


def test_the_second_process_imports_no_kernels():
    """In truth: the module's import alone must not bring `kernels`."""
    code = "import sys, benchmarks.gpu_check.native; assert 'kernels' not in sys.modules; print('alone')"
    done = native.subprocess.run([sys.executable, "-c", code], cwd=native.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "alone", done.stderr


@pytest.fixture
def tiny(fake_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    torch.manual_seed(0)
    return tmp_path


def test_end_to_end_on_a_small_model(tiny, monkeypatch, capsys):
    monkeypatch.setattr(end_to_end.measure, "__defaults__", ((2,),))
    assert end_to_end.main("replknet_nano", 64, "cpu", 2) == 0
    document = json.loads((tiny / "end_to_end_fake_h200.json").read_text())
    step, inference = document["training step"], document["inference"]
    assert (step["batch"], step["depthwise_calls"]) == (2, 10)  # five blocks, two branches
    assert inference["depthwise_calls"] == 5  # one operator each
    assert step["speedup_over_eager"] == inference["speedup_over_eager"] == 1
    assert "wanted 3.0x: NOT MET" in capsys.readouterr().out


def test_end_to_end_refuses_a_wrong_answer(tiny, monkeypatch):
    def turned(input, weight, *rest):  # a factor would be lost in the batch norm that follows
        return depthwise_conv2d(input, weight.flip(2, 3), *rest)

    monkeypatch.setattr(end_to_end, "depthwise_conv2d", turned)
    with pytest.raises(ValueError, match="of the norm with the operator"):
        dict(end_to_end.measure("replknet_nano", 64, "cpu", 2, (2,)))


def test_the_optimiser_s_state_follows_the_weights(tiny, monkeypatch):
    """What CUDA's fused AdamW refuses, a CPU's step accepts: tensors of one parameter that lie otherwise than it."""
    steps = []

    class Strict(torch.optim.AdamW):
        def step(self):
            parameters = self.param_groups[0]["params"]
            for parameter in parameters:
                moments = [value for value in self.state[parameter].values() if value.dim()]
                for tensor in (parameter.grad, *moments):
                    sides = zip(parameter.shape, parameter.stride(), tensor.stride(), strict=True)
                    assert all(ours == its for size, ours, its in sides if size > 1)
            steps.append(parameters[0].stride())
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Strict)
    training = dict(end_to_end.measure("replknet_nano", 64, "cpu", 2, (2,)))["training step"]
    rounds = len(steps) // 3
    assert steps == steps[:3] * rounds
    assert (steps[0] == steps[1], steps[0] == steps[2]) == (True, False)
    assert {timing.calls for timing in training["ms"].values()} == {rounds - 2}  # the check, and the warm-up


def test_a_slow_variant_does_not_stretch_the_comparison(tiny, monkeypatch):
    monkeypatch.setattr(end_to_end, "SECONDS", -1.0)
    model, images = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4), torch.randn(1, 4, 6, 6)
    row = end_to_end.compare(model, images, end_to_end.infer, 50)
    assert {timing.calls for timing in row["ms"].values()} == {end_to_end.LEAST_ROUNDS}


def test_end_to_end_refuses_variants_that_differ_in_work(monkeypatch):
    layer, images = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4), torch.randn(1, 4, 6, 6)
    errors, calls = end_to_end.check(layer, images, end_to_end.infer)
    assert calls == 1
    assert max(max(each) for each in errors.values()) < 1e-5
    with pytest.raises(ValueError, match="must be as many"):
        end_to_end.check(torch.nn.Conv2d(4, 4, 3, padding=1, groups=4), images, end_to_end.infer)  # 3 x 3: none


def test_end_to_end_refuses_a_wrong_gradient(monkeypatch):
    layer, images = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4), torch.randn(1, 4, 6, 6)
    answers = iter([2.0, 2.01, 2.001, 2.001])  # eager in float32, ours, eager twice

    def work(model, images, precise=False):
        return [model(images).detach(), torch.full((3,), next(answers))]

    with pytest.raises(
        ValueError, match=r"the gradient: off float32 by 0\.005 of the norm with the operator, 0\.0005 eager"
    ):
        end_to_end.check(layer, images, work)


def test_the_model_is_as_it_was_afterwards():
    from models import create_model

    model = create_model("replknet_nano").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        with end_to_end.depthwise_by(model, end_to_end.eager) as calls:
            torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-4)
        assert calls == [10]
        assert torch.equal(model(images), before)
    assert calls == [10]


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_the_eager_stand_in_is_the_operator(activation):
    arguments = torch.randn(2, 4, 9, 7), torch.randn(4, 1, 5, 7), torch.randn(4), activation
    torch.testing.assert_close(end_to_end.eager(*arguments), depthwise_conv2d(*arguments), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end_to_end.eager(*arguments[:2]), F.conv2d(*arguments[:2], padding=(2, 3), groups=4))


@pytest.mark.usefixtures("fake_gpu")
def test_a_batch_that_fits_is_found():
    tried = []

    def run(batch):
        tried.append(batch)
        if batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory\nmore")
        return {"ms": Timing(1, 1, 1, 1)}

    assert end_to_end.what_fits((64, 32, 16, 8), run)["batch"] == 16
    assert tried == [64, 32, 16]
    with pytest.raises(ValueError, match="no batch of"):
        end_to_end.what_fits((64, 32), run)


def test_no_server_is_a_skip_with_the_reason(monkeypatch, capsys):
    monkeypatch.setenv("TRITONSERVER", "/nowhere/tritonserver")
    assert served.main() == SKIPPED
    assert "/nowhere/tritonserver" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert served.main() == SKIPPED
    assert "psutil is not installed" in capsys.readouterr().out


def test_a_server_that_answers_otherwise_fails(monkeypatch):
    monkeypatch.setattr(served, "missing", lambda: None)
    monkeypatch.setattr(served, "serve", lambda folder: (0.5, 5))
    assert served.main() == 1
    monkeypatch.setattr(served, "serve", lambda folder: (0.001, 5))
    assert served.main() == 0


@pytest.mark.slow
@pytest.mark.server
def test_a_real_server_is_held_to_the_same_file_in_one_process(tmp_path):
    difference, classes = served.serve(tmp_path)
    assert difference <= served.TOLERANCE
    assert classes == 5

"""A fake GPU: torch.cuda's and triton.testing's functions, faked, so that the GPU's code runs on the CPU."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors here are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def brief_look_at_other_work(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.SAMPLE_S", 0.02)


@dataclass
class FakeGpu:
    """`elapsed`: milliseconds between any two events; `capture_error`: raised instead of capturing."""

    elapsed: float = 0.5
    capture_error: str = ""
    calls: list[str] = field(default_factory=list)


@pytest.fixture
def fake_gpu(monkeypatch):
    gpu = FakeGpu()

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing

        def record(self):
            pass

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return gpu.elapsed

    class Graph:
        def replay(self):
            gpu.calls.append("replay")

    def capture(graph, stream=None):
        gpu.calls.append("capture")
        if gpu.capture_error:
            raise RuntimeError(gpu.capture_error)
        return nullcontext()

    def do_bench(run, warmup, rep, quantiles):
        gpu.calls.append("do_bench")
        run()
        return [gpu.elapsed * factor for factor in (1.0, 0.9, 1.1)]

    properties = SimpleNamespace(
        L2_cache_size=1000,  # bytes: a set of inputs or two
        name="Fake H200",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=2**30,
    )
    import triton.testing

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    for name, value in {
        "Event": Event,
        "CUDAGraph": Graph,
        "Stream": lambda *_: "stream",
        "stream": lambda _: nullcontext(),
        "current_stream": lambda *_: "stream",
        "graph": capture,
        "synchronize": lambda *_: None,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "empty_cache": lambda: None,
        "get_device_name": lambda *_: "Fake H200",
        "get_device_properties": lambda _: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):  # by version
        monkeypatch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield gpu
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value

"""The CPU's benchmark on small layers: every peer gives the layer's answer, a wrong one gets no speed."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import harness, timing
from benchmarks.kernels import __main__ as main
from benchmarks.kernels import cpu
from benchmarks.kernels.layers import Layer
from benchmarks.timing import Timing, interleaved

LAYER = Layer(2, 16, 9, 13, "float32")
BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_every_peer_computes_the_layer(dtype, tolerance):
    if dtype == "bfloat16" and not BFLOAT16:
        pytest.skip("oneDNN has no bfloat16 on this processor")
    torch.manual_seed(0)
    calls = cpu.candidates(replace(LAYER, dtype=dtype), 1)
    expected = calls["oneDNN nchw"]().clone()
    assert expected.min() == 0  # ReLU
    assert ("ONNX Runtime" in calls) == (dtype == "float32")
    torch._dynamo.utils.counters.clear()
    for call in calls.values():
        torch.testing.assert_close(call(), expected, rtol=tolerance, atol=tolerance)  # and of the same dtype
        torch.testing.assert_close(call(), expected, rtol=tolerance, atol=tolerance)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "torch.compile's"


SIGNALLED = """
import faulthandler, os, signal
import torch
from benchmarks.kernels import cpu
from tests.benchmarks.test_kernels_cpu import LAYER

faulthandler.enable()  # Python's handlers run on its signal stack
signal.signal(signal.SIGUSR1, lambda *_: print("survived"))
first, second = cpu.candidates(LAYER, 1), cpu.candidates(LAYER, 1)
first = None
second = None
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_openvino_was_used_twice():
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(main, "run_as_served", lambda module: None)
    monkeypatch.setattr(main, "name_here", str)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # seconds a layer
    monkeypatch.setattr(cpu, "layers", lambda batches: [Layer(batch, 16, 9, 13, "float32") for batch in batches])
    return lambda: json.loads((tmp_path / "kernels_cpu.json").read_text())


def test_the_whole_run(quick, capsys):
    assert main.run_cpu([1, 2], 2) == 0
    first, second = quick()["rows"]
    assert (first["batch"], second["batch"]) == (1, 2)
    peers = {name: timing["median"] for name, timing in first["ms"].items() if name != cpu.OURS}
    assert first["best_peer"] == min(peers, key=peers.get)
    ratio = first["ms"][cpu.OURS]["median"] / min(peers.values())
    assert first["ratio_to_best_peer"] == pytest.approx(ratio, abs=1e-3)
    assert "of 2 layers" in capsys.readouterr().out


def test_a_wrong_answer_gets_no_speed(quick, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "depthwise_conv2d", lambda input, *_: torch.zeros_like(input))
    assert main.run_cpu([1], 1) == 1
    (row,) = quick()["rows"]
    assert "widefield differs from oneDNN" in row["wrong"]
    assert "ms" not in row
    assert "WRONG" in capsys.readouterr().out


def test_layers_are_both_kernels_of_each_stage_and_batch():
    layers = cpu.layers([1, 8])
    assert len(layers) == len(set(layers)) == (32 if BFLOAT16 else 16)
    assert {layer.kernel for layer in layers} == {31, 29, 27, 13, 5}
    assert {layer.dtype for layer in layers} == {"float32"} | ({"bfloat16"} if BFLOAT16 else set())


def test_a_slow_candidate_gets_fewer_rounds(monkeypatch):
    clock = [0.0]

    def slow():
        clock[0] += 10

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    timings = interleaved({"slow": slow, "fast": lambda: None}, rounds=5, seconds=25)
    assert (timings["slow"].calls, timings["fast"].calls) == (4, 10)


def test_calls_are_not_counted_until_other_threads_have_settled(monkeypatch):
    clock = [0.0]
    made = []

    def call():
        made.append(clock[0])
        clock[0] += 0.01

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    timings = interleaved({"a": call}, rounds=2, settle=0.035)
    assert timings["a"].calls == 4
    assert len(made) == 3 + 2 * (4 + 2)  # warm-up; four calls take 0.04 s, two are counted


def test_the_readmes_table_names_every_peer():
    from benchmarks.report import depthwise_table

    ms = {name: {"median": value} for name, value in (("widefield", 1.0), ("oneDNN nchw", 40.0), ("OpenVINO", 0.8))}
    shape = {"channels": 16, "size": 9, "kernel": 13, "batch": 1, "dtype": "float32"}
    row = shape | {"ms": ms, "ratio_to_best_peer": 1.25}
    short = row | {"dtype": "bfloat16", "ms": {name: ms[name] for name in ("widefield", "OpenVINO")}}
    machine = {"cpu": "a CPU", "cores": 2, "instructions": ["avx2"]}
    lines = depthwise_table({"rows": [row, short], "machine": machine, "versions": {}, "date": "today"})
    assert lines[2] == "| C, H, K | dtype | batch | Widefield | oneDNN nchw | OpenVINO | x the best of them |"
    assert lines[3].count("|") == lines[2].count("|")
    assert lines[4] == "| 16, 9, 13 | float32 | 1 | 1.00 | 40.00 | 0.80 | 1.25 |"
    assert lines[5] == "| 16, 9, 13 | bfloat16 | 1 | 1.00 | none | 0.80 | 1.25 |"


@pytest.mark.parametrize(("arguments", "message"), [(["--device", "cuda"], "sees no GPU")])
def test_no_gpu_is_said(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["kernels", *arguments])
    with pytest.raises(SystemExit):
        main.main()
    assert message in capsys.readouterr().err


def test_the_command_line_leads_to_each_run(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(main, "run_cpu", lambda batches, rounds: seen.append(("cpu", batches, rounds)) or 0)
    monkeypatch.setattr(main, "run_cuda", lambda seconds, **how: seen.append(("cuda", seconds, how)) or 1)
    monkeypatch.setattr(main, "draw", lambda document, name: seen.append((document, name)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    saved = tmp_path / "kernels_x.json"
    saved.write_text('{"rows": []}')
    for arguments, status in (
        (["--device", "cpu", "--batches", "1", "3", "--rounds", "2"], 0),
        (["--seconds", "7", "--tune", "40", "--no-compile"], 1),
        (["--draw", str(saved)], 0),
    ):
        monkeypatch.setattr("sys.argv", ["kernels", *arguments])
        assert main.main() == status
    assert seen == [("cpu", [1, 3], 2), ("cuda", 7.0, {"tuning": 40.0, "compiled": False}), ({"rows": []}, "kernels_x")]


def test_timings_have_a_place_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    path = harness.write_results("x", row=Timing(1.0, 0.5, 2.0, 3))
    assert json.loads(path.read_text())["row"] == {"median": 1.0, "p20": 0.5, "p80": 2.0, "calls": 3}

"""The CPU gradients' benchmark on small layers: right answers are timed, a wrong one is named and has no speed."""

import json

import pytest
import torch

from benchmarks import harness, report
from benchmarks.kernels import cpu_gradients
from benchmarks.kernels.layers import Layer

LAYERS = [Layer(2, 16, 9, 13, "float32"), Layer(2, 16, 9, 5, "float32")]


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)

    def measured(layers=LAYERS):
        status = cpu_gradients.measure(layers, "replknet_nano", 2, 32, 1)
        return status, json.loads(next(tmp_path.glob("gradients_cpu*.json")).read_text())

    threads = torch.get_num_threads()
    yield measured
    torch.set_num_threads(threads)


def test_the_whole_run(run, capsys):
    status, result = run()
    assert status == 0
    assert [(row["kernel"], row["gradient"]) for row in result["rows"]] == [
        (13, "grad_input"),
        (13, "grad_weight"),
        (5, "grad_input"),
        (5, "grad_weight"),
    ]
    for row in [*result["rows"], *result["training"]]:
        peers = {name: timing["median"] for name, timing in row["ms"].items() if name != cpu_gradients.OURS}
        assert row["best_peer"] == min(peers, key=peers.get)
        ratio = row["ms"][cpu_gradients.OURS]["median"] / min(peers.values())
        assert row["ratio_to_best_peer"] == pytest.approx(ratio, abs=1e-3)
    assert "replknet_nano training step" in capsys.readouterr().out
    lines = report.gradients_table(result)
    assert sum(line.startswith("| 16, 9, ") for line in lines) == 4
    ours = result["training"][0]["ms"]["widefield"]["median"]
    assert f"A training step of replknet_nano, float32, batch 2, 32 px: {ours:.0f} ms" in "\n".join(lines)


@pytest.mark.parametrize("who", [cpu_gradients.OURS, "oneDNN nchw"])
@pytest.mark.parametrize(("gradient", "place"), [("grad_input", 0), ("grad_weight", 1)])
def test_a_wrong_answer_gets_no_speed(run, monkeypatch, capsys, gradient, place, who):
    right = cpu_gradients.candidates

    def wrong(layer):
        found = right(layer)
        call = found[gradient][who]
        found[gradient][who] = lambda: call() * 1.01
        return found

    monkeypatch.setattr(cpu_gradients, "candidates", wrong)
    monkeypatch.setattr(cpu_gradients, "measure_training", lambda *_: [])
    status, result = run(LAYERS[:1])
    assert status == 1
    assert f"{who} differs from oneDNN by 0.01" in result["rows"][place]["wrong"]
    assert "ms" not in result["rows"][place]
    assert "ms" in result["rows"][1 - place]
    assert "WRONG" in capsys.readouterr().out


def test_a_wrong_training_step_gets_no_speed(run, monkeypatch, capsys):
    right = cpu_gradients.depthwise_conv2d
    monkeypatch.setattr(cpu_gradients, "depthwise_conv2d", lambda x, weight, *rest: right(x, weight.flip(2, 3), *rest))
    status, result = run([])
    assert status == 1
    assert result["training"][0]["dtype"] == "float32"
    assert "logits and gradient off float32 by [1." in result["training"][0]["wrong"]
    assert "ms" not in result["training"][0]
    assert "training step  WRONG" in capsys.readouterr().out

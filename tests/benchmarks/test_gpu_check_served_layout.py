"""The served_layout part of `make gpu-check` on a faked GPU: both files are traced, compared and timed."""

import json
import sys

import pytest
import torch

from benchmarks import harness
from benchmarks.gpu_check import served_layout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    served_layout.write_files("replknet_nano", folder)
    return folder


@pytest.fixture
def results(fake_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(served_layout, "BATCHES", (2, 1))
    monkeypatch.setattr(served_layout, "ROUNDS", 2)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    return lambda: json.loads((tmp_path / "served_layout_fake_h200.json").read_text())


def test_both_layouts_are_timed(files, results, capsys):
    served_layout.measure(files, 96, "cpu")  # other images than those that were traced
    document = results()
    assert document["gpu"]["tf32"] == {"matmul": False, "cudnn": False}
    assert [row["batch"] for row in document["rows"]] == [2, 1]
    assert document["rows"][0]["ms"].keys() == {"channels_last", "contiguous"}
    assert "batch 2: channels_last 0.50 ms, contiguous 0.50 ms" in capsys.readouterr().out


def test_the_weights_are_in_the_layout_that_is_named(files):
    for layout, memory_format in served_layout.LAYOUTS.items():
        graph = torch.jit.load(files / f"{layout}.pt").inlined_graph
        calls = [node for node in graph.nodes() if node.kind() == "widefield::depthwise_conv2d"]
        assert calls
        filters = [weight for node in graph.nodes() if node.kind() == "prim::Constant" for weight in tensors(node)]
        plain = [weight for weight in filters if weight.dim() == 4 and weight.shape[2] == 3 and weight.shape[1] > 1]
        assert plain
        assert all(weight.is_contiguous(memory_format=memory_format) for weight in plain)


def tensors(node):
    return [node.t("value")] if node.hasAttribute("value") and node.kindOf("value") == "t" else []


@pytest.mark.usefixtures("results")
def test_other_answers_and_python_s_operator_are_refused(files, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(served_layout, "TOLERANCE", -1.0)
        with pytest.raises(RuntimeError, match=r"batch 2: the logits differ by"):
            served_layout.measure(files, 64, "cpu")
    monkeypatch.setitem(sys.modules, "kernels", object())
    with pytest.raises(RuntimeError, match="`kernels` was imported"):
        served_layout.measure(files, 64, "cpu")


def test_without_the_library_it_fails(monkeypatch, capsys):
    monkeypatch.setattr("kernels.native_library", lambda: None)
    assert served_layout.main() == 1
    assert "python kernels/native/build.py" in capsys.readouterr().out

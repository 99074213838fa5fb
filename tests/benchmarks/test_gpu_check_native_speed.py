"""The native_speed part of `make gpu-check` on a faked GPU: whose kernels it times; wrong ones have no time."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import harness
from benchmarks.gpu_check import native_speed
from benchmarks.kernels.layers import Layer


@pytest.fixture
def small_layer(fake_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(native_speed, "BATCHES", (2,))
    monkeypatch.setattr(native_speed, "replknet_31b", lambda batch: [Layer(batch, 4, 6, 5)])
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    import kernels  # noqa: F401 - the operator, that no test below brings it

    return fake_gpu


def test_the_library_is_captured_before_python_takes_its_place(small_layer, monkeypatch):
    with pytest.raises(RuntimeError, match="`kernels` was imported"):
        list(native_speed.measure(lambda: None, "cpu"))
    monkeypatch.delitem(sys.modules, "kernels")
    (row,) = native_speed.measure(lambda: small_layer.calls.append("import"), "cpu")
    assert [call for call in small_layer.calls if call != "replay"] == ["capture", "import", "capture"]
    assert (row["batch"], row["channels"], row["size"], row["kernel"]) == (2, 4, 6, 5)
    assert row["native_over_python"] == 1
    sets = len(native_speed.make_problem(Layer(2, 4, 6, 5), "cpu").inputs)
    assert row["ms"]["native"].median == pytest.approx(0.5 / sets, abs=1e-5)
    assert row["ms"]["python"].calls == native_speed.ROUNDS
    assert small_layer.calls.count("replay") == 2 * (3 + 2 * native_speed.ROUNDS)


@pytest.mark.usefixtures("small_layer")
def test_a_library_of_other_sources_has_no_time(monkeypatch, tmp_path):
    (tmp_path / "libwidefield.so").touch()
    (tmp_path / "libwidefield.stamp").write_text("older")
    monkeypatch.setattr(native_speed, "LIBRARY", tmp_path / "libwidefield.so")
    monkeypatch.delitem(sys.modules, "kernels")
    with pytest.raises(RuntimeError, match="is not built from these sources: python kernels/native/build"):
        list(native_speed.measure(lambda: None, "cpu"))
    assert "kernels" not in sys.modules


@pytest.mark.usefixtures("small_layer")
def test_a_wrong_answer_has_no_time(monkeypatch):
    monkeypatch.delitem(sys.modules, "kernels")
    right = native_speed.Problem.run
    monkeypatch.setattr(native_speed.Problem, "run", lambda self, input: right(self, input) * 1.1)
    with pytest.raises(RuntimeError, match="times its bound"):
        list(native_speed.measure(lambda: None, "cpu"))


@pytest.mark.usefixtures("small_layer")
def test_results_are_left(monkeypatch, tmp_path):
    monkeypatch.setattr(native_speed, "measure", lambda import_kernels: [{"batch": 2}])
    (tmp_path / "tiles.json").write_text('{"a shape": "taps"}')
    monkeypatch.setenv("WIDEFIELD_TILES", str(tmp_path / "tiles.json"))
    assert native_speed.main() == 0
    document = json.loads((tmp_path / "native_fake_h200.json").read_text())
    assert document["rows"] == [{"batch": 2}]
    assert document["tuned"] == {"a shape": "taps"}
    assert document["gpu"]["tf32"] == {"matmul": False, "cudnn": False}


@pytest.mark.usefixtures("small_layer")
def test_a_layer_that_fails_does_not_lose_those_before(monkeypatch, tmp_path):
    def measure(import_kernels):
        yield {"batch": 2}
        raise RuntimeError("times its bound")

    monkeypatch.setattr(native_speed, "measure", measure)
    with pytest.raises(RuntimeError, match="times its bound"):
        native_speed.main()
    assert json.loads((tmp_path / "native_fake_h200.json").read_text())["rows"] == [{"batch": 2}]


def test_its_import_alone_brings_no_kernels():
    code = "import sys, benchmarks.gpu_check.native_speed; assert 'kernels' not in sys.modules; print('alone')"
    done = subprocess.run([sys.executable, "-c", code], cwd=native_speed.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "alone", done.stderr

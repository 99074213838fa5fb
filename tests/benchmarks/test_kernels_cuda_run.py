"""The GPU's benchmark from end to end on a faked GPU: what is in its file, what the exit status says."""

import json

import pytest

from benchmarks import harness
from benchmarks.kernels import __main__ as main
from benchmarks.kernels import candidates as c
from benchmarks.kernels import cuda, goals, roofline, variants
from benchmarks.kernels.layers import Layer
from kernels import depthwise_conv2d
from kernels.depthwise_conv2d import tile_files

STRIP = {c.OURS: depthwise_conv2d, c.NATIVE: c.convolution}


def broken(input, weight):
    return c.convolution(input, weight) + 1.0


@pytest.fixture
def run(fake_gpu, monkeypatch, tmp_path):
    """run_cuda on small layers, results and pictures in tmp_path; returns (exit status, document)."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setenv("WIDEFIELD_TILES", str(tmp_path / "own" / "tiles.json"))
    monkeypatch.setattr(roofline.draw, "__defaults__", ("bfloat16", tmp_path))
    monkeypatch.setattr(cuda.measure_bandwidths, "__defaults__", ({"copy": 1000, "add": 2000},))
    monkeypatch.setattr(cuda.measure_ceilings, "__defaults__", (dict.fromkeys(("bfloat16", "float32"), 8),))
    monkeypatch.setattr(main, "replknet_31b", lambda batch: [Layer(2, 4, 7, 9)])
    monkeypatch.setattr(main, "sweep", lambda: [Layer(1, 4, 5, 3, "float32")])
    loss = {"norm": "none", "batch": 128, "speedup_over_eager": 6.0}
    monkeypatch.setattr(main, "measure_loss", lambda *asked: [loss | {"of_copy": 0.8, "asked": asked}])

    strip = variants.Variant("strip", Layer(2, 4, 7, 9), (9, 5), STRIP)
    form = variants.Variant("tile", Layer(2, 4, 7, 9), (9, 9), {c.OURS: depthwise_conv2d})
    monkeypatch.setattr(variants, "forms", lambda: [form])
    monkeypatch.setattr(variants, "variants", lambda: [strip])
    monkeypatch.setattr(main, "tuned_layers", lambda: [Layer(2, 4, 7, 9)])

    def go(seconds=60.0, tuning=0.0, compiled=True):
        status = main.run_cuda(seconds, "cpu", tuning, compiled)
        return status, json.loads((tmp_path / "kernels_fake_h200.json").read_text())

    return go


def test_the_whole_run(run, capsys, tmp_path):
    status, document = run()
    assert status == 0
    assert document["complete"] is True
    assert document["gpu"]["name"] == "Fake H200"
    assert document["gpu"]["tf32"] == {"matmul": False, "cudnn": False}
    ceilings = document["ceilings"]
    assert (
        ceilings["bandwidth"]
        == ceilings["bandwidths"][ceilings["bandwidth_of"]]
        == max(ceilings["bandwidths"].values())
    )
    assert document["losses"][0]["asked"] == [[128], 192, 15, "cpu", ceilings["bandwidth"], ["eager", "widefield"]]
    assert len(document["rows"]) == 6
    assert document["rows"][0]["candidates"].keys() > {c.OURS, c.NATIVE, "cudnn channels_last benchmark"}
    assert document["rows"][3]["candidates"].keys() == {c.OURS, c.NATIVE, "cudnn channels_last benchmark"}
    assert document["left_out"] == []
    assert len(document["goals"]) == len(goals.GOALS)
    assert (tmp_path / "kernels_fake_h200_roofline.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "of limit" in shown
    assert "not measured" in shown
    assert "8 rows, 0 wrong; 0 layers left out" in shown
    assert "strip" in shown
    assert [row["variant"] for row in document["variants"]] == ["tile", "strip"]
    assert document["variants"][0]["ways"].keys() == {c.OURS}
    assert document["variants"][1]["ways"].keys() == {c.OURS, c.NATIVE, f"{c.NATIVE} channels_last"}


def test_without_torch_compile_the_other_peers_are_left(run):
    found = [run(compiled=compiled)[1]["rows"][0]["candidates"].keys() for compiled in (True, False)]
    assert found[0] - found[1] == {"torch.compile nchw", "torch.compile channels_last"}
    assert f"{c.OURS} channels_last" in found[1]


def test_the_tuner_comes_first_and_its_algorithms_are_in_the_file(run, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(main, "tune", lambda *arguments: seen.append(arguments) or ({"a shape": "pytorch"}, []))
    status, document = run(tuning=7.0)
    assert (status, document["tuned"], document["tuner_failures"]) == (0, {"a shape": "pytorch"}, [])
    assert [arguments[1:] for arguments in seen] == [("cpu", 7.0, tmp_path / "kernels_fake_h200_tiles.json")]


def test_a_failure_of_the_tuner_makes_the_status_1(run, monkeypatch, capsys):
    monkeypatch.setattr(main, "tune", lambda *_: ({}, ["a layer: ValueError: no"]))
    status, document = run(tuning=7.0)
    assert (status, document["complete"], document["tuner_failures"]) == (1, True, ["a layer: ValueError: no"])
    assert len(document["rows"]) == 6
    assert capsys.readouterr().out.splitlines()[-1] == "tuner: a layer: ValueError: no"


def test_a_wrong_variant_makes_the_status_1(run, monkeypatch):
    monkeypatch.setitem(STRIP, c.OURS, broken)
    status, document = run()
    assert (status, "wrong" in document["variants"][1]) == (1, True)


def test_a_wrong_layer_makes_the_status_1(run, monkeypatch):
    monkeypatch.setattr(c, "depthwise_conv2d", broken)
    status, document = run()
    assert status == 1
    assert all("wrong" in row for row in document["rows"] if row["pass"] == "forward")


def test_algorithms_that_were_tuned_before_are_in_the_file(run, capsys, tmp_path):
    """The operator takes them whether or not this run tunes."""
    assert run()[1]["tuned"] == {}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tiles.json").write_text('{"a shape": "taps"}')
    tile_files.read.cache_clear()
    assert run()[1]["tuned"] == {"a shape": "taps"}
    assert "tuned: 1 shapes" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [SystemExit, RuntimeError, AssertionError])
def test_a_wrong_loss_makes_the_status_1(run, monkeypatch, capsys, kind):
    def wrong(*_):
        raise kind("eager differs")

    monkeypatch.setattr(main, "measure_loss", wrong)
    status, document = run()
    assert (status, document["loss_failure"]) == (1, "eager differs")
    assert len(document["variants"]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "masked-patch loss: eager differs"  # gpu_check tells that line


def test_no_time_for_the_layers_themselves_makes_the_status_1(run, capsys):
    status, document = run(seconds=-1.0)
    assert status == 1
    assert len(document["left_out"]) == 4
    assert capsys.readouterr().out.splitlines()[-1].startswith("-1 s did not suffice for RepLKNet-31B's own layers")


def test_what_is_measured_is_on_disk_when_the_run_breaks_off(run, monkeypatch, tmp_path):
    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "measure_loss", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run()
    document = json.loads((tmp_path / "kernels_fake_h200.json").read_text())
    assert document["complete"] is False
    assert len(document["rows"]) == 3
    assert [row["variant"] for row in document["variants"]] == ["tile"]


def test_no_matplotlib_no_picture(run, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run()[0] == 0
    assert "no picture" in capsys.readouterr().out

"""The loss's benchmark: a wrong loss or gradient gets no speed; what the speeds are compared with."""

import json

import pytest
import torch

from benchmarks import harness, report
from benchmarks import masked_patch_loss as bench
from benchmarks.kernels.tables import loss_table
from benchmarks.timing import Timing

WRONG = {
    "loss": lambda *given: 1.002 * bench.eager(*given),
    "gradient": lambda *given: 2 * bench.eager(*given) - bench.eager(*given).detach(),
    "no number": lambda *given: bench.eager(*given) + (given[0] - given[0].detach()).abs().sqrt().sum(),
}


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return bench.inputs(1, 64, torch.float32, torch.contiguous_format, "cpu")


@pytest.mark.parametrize("norm", bench.NORMS)
def test_what_is_right_goes_on(tensors, norm):
    for name in ("eager", "widefield"):
        bench.check(name, bench.IMPLEMENTATIONS[name], tensors, norm)


def test_the_compiled_peer_is_compiled_and_right(tensors):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    bench.check("torch.compile", bench.IMPLEMENTATIONS["torch.compile"], tensors, "none")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.fixture
def no_compiler(monkeypatch):
    """Leave torch.compile out: it takes ten seconds for each norm and layout."""
    monkeypatch.setitem(bench.IMPLEMENTATIONS, "torch.compile", bench.eager)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_ends_the_run(tensors, wrong):
    with pytest.raises(SystemExit, match="widefield, norm none"):
        bench.check("widefield", WRONG[wrong], tensors, "none")


@pytest.mark.usefixtures("no_compiler")
def test_speeds_are_of_eagers_time_and_of_the_copys_bandwidth(monkeypatch):
    """In float32 at 64 px prediction, image and gradient are 48 KiB each, and 60 % of the patches are masked."""
    times = {"eager": 8.0, "torch.compile": 5.0, "widefield": 2.0, "copy": 1.0}
    monkeypatch.setattr(bench, "timed", lambda *_: {name: Timing(ms, ms, ms, 1) for name, ms in times.items()})
    rows = bench.measure([1], 64, 5, "cpu")
    assert len(rows) == 2 * len(bench.NORMS)
    for row in rows:
        assert (row["speedup_over_eager"], row["speedup_over_compiled"]) == (4.0, 2.5)
        assert row["least_mb"] == round((0.6 * 2 + 1) * 49152 / 1e6, 2)
        assert row["of_copy"] == round((0.6 * 2 + 1) * 49152 / 2.0 / (2 * 2 * 49152 / 1.0), 3)


@pytest.mark.usefixtures("no_compiler")
def test_a_copy_allocates_nothing(monkeypatch):
    """On a CPU `clone` also had the pages of its result to map."""
    copies = []

    def timed(candidates, *_):
        copies.append(candidates["copy"])
        return dict.fromkeys(candidates, Timing(2.0, 2.0, 2.0, 1))

    monkeypatch.setattr(bench, "timed", timed)
    bench.measure([1], 64, 5, "cpu")
    first, second = copies[0](), copies[0]()
    assert [each.data_ptr() for each in first] == [each.data_ptr() for each in second]


@pytest.mark.usefixtures("no_compiler")
def test_a_gpu_has_one_ceiling_for_all_that_is_measured(monkeypatch):
    """A copy in a CUDA graph goes by a copy engine: of it the shares were 7 % more than of the layers' bandwidth."""
    asked = []

    def timed(candidates, *_):
        asked.append(list(candidates))
        return dict.fromkeys(candidates, Timing(2.0, 2.0, 2.0, 1))

    monkeypatch.setattr(bench, "timed", timed)
    row = bench.measure([1], 64, 5, "cpu", 1e9)[0]
    assert asked[0] == ["eager", "torch.compile", "widefield"]
    assert row["of_copy"] == round((0.6 * 2 + 1) * 49152 / 2e-3 / 1e9, 3)


@pytest.mark.usefixtures("fake_gpu")
def test_on_a_gpu_eager_is_timed_in_float32_and_beside_that_ceiling(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "measure_bandwidths", lambda device: {"copy": 2.0, "add": 3.0})
    monkeypatch.setattr(bench, "measure", lambda *asked: [{"asked": asked, "tf32": harness.gpu()["tf32"]}])
    monkeypatch.setattr("sys.argv", ["masked_patch_loss", "--device", "cuda"])
    bench.main()
    document = json.loads((tmp_path / "masked_patch_loss_cuda.json").read_text())
    (row,) = document["rows"]
    assert row["asked"] == [[32, 128], 192, 15, "cuda", 3.0]
    assert row["tf32"] == document["gpu"]["tf32"] == {"matmul": False, "cudnn": False}


def test_the_table_has_the_compiled_peer_where_it_was_measured():
    row = {
        "norm": "none",
        "layout": "nchw",
        "least_mb": 1.0,
        "speedup_over_eager": 4.0,
        "ms": {"widefield": {"median": 2}},
    }
    result = report.load("kernels_nvidia_h200") | {"ceilings": {"bandwidth": 1e9}, "losses": [row]}
    assert loss_table(result)[-2:] == ["|---|---|---|---|---|", "| none | nchw | 2000.0 | 4.0 | 50% |"]
    table = loss_table(result | {"losses": [row | {"speedup_over_compiled": 2.5}]})
    assert [line for line in table if "x torch.compile" in line or "2.5" in line] == [
        "| target_norm | prediction | us | x eager | x torch.compile | of the copy's bandwidth, on the least bytes |",
        "| none | nchw | 2000.0 | 4.0 | 2.5 | 50% |",
    ]

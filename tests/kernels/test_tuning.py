"""What the tuner measures and keeps, and the dispatch then uses: a tile, or PyTorch's convolution if it is faster."""

import itertools
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels import float32_precision
from kernels.depthwise_conv2d import dispatch, grad_weight, gradients, op, pytorch, tile_files, toeplitz, tuning
from kernels.depthwise_conv2d.whole_image import WholeImageTile

SHIPPED = "toeplitz sm_90 bfloat16 64x128x56x56 31x31"
KINDS = {"toeplitz": toeplitz.Tile, "grad_weight": grad_weight.GradWeightTile}


def test_a_shipped_tile_is_taken(taken):
    """A shipped tile is used with an activation and for channels_last too."""
    x, w = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((64, 128, 56, 56), (128, 1, 31, 31)))
    op._cuda(x, w)
    op._cuda(x.to(memory_format=torch.channels_last), w, None, "relu")
    tile = toeplitz.Tile(**tile_files.read(tile_files.TABLE)["toeplitz sm_90 bfloat16 64x128x56x56 31x31"])
    assert [launch[3] for launch in taken] == [tile] * 2


def test_float32s_precision_leaves_the_others_their_tiles(taken):
    x, w = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((64, 128, 56, 56), (128, 1, 31, 31)))
    with float32_precision("tf32"):
        op._cuda(x, w)
        gradients._grad_weight_cuda(x, x, [31, 31])
    tiles = [tile_files.read(tile_files.TABLE)[f"{operation} {SHIPPED.partition(' ')[2]}"] for operation in KINDS]
    assert taken == [
        ("toeplitz", True, "ieee", toeplitz.Tile(**tiles[0])),
        ("grad_weight", (128, 1, 31, 31), "ieee", grad_weight.GradWeightTile(**tiles[1])),
    ]


@pytest.fixture
def clock(taken, monkeypatch):
    """Autotuning with a stand-in for the timers: `seconds(algorithm)` says what is fastest; `called` and `timed` list
    the algorithms that had a single call and those that were timed."""
    import triton

    stand_in = SimpleNamespace(timed=[], called=[], seconds=lambda algorithm: 1.0)
    real = {name: getattr(pytorch, name) for name in ("run_forward", "run_grad_weight")}

    def by(name):
        def record(algorithm, *arguments):
            taken.append(algorithm)
            return real[name](algorithm, *arguments)

        return record

    def timer(algorithms):
        def measure(run, **_):
            run()
            launch = taken.pop()
            algorithm = (
                launch
                if isinstance(launch, str)
                else launch[3]
                if launch[0] in ("toeplitz", "grad_weight", "")
                else launch[0]
            )
            algorithms.append(algorithm)
            return stand_in.seconds(algorithm)

        return measure

    for name in real:
        monkeypatch.setattr(pytorch, name, by(name))
    monkeypatch.setattr(triton.testing, "do_bench", timer(stand_in.timed))
    monkeypatch.setattr(tuning, "one_call_ms", timer(stand_in.called))
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "1")
    return stand_in


def test_autotune_measures_once_and_remembers(taken, clock, monkeypatch):
    """The fastest candidate is used, one that does not fit skipped; the second time it comes from the file."""
    import triton

    steps = {toeplitz.Tile: 32, grad_weight.GradWeightTile: 16}

    def seconds(algorithm):
        if isinstance(algorithm, str):
            return 9.0
        if algorithm is not None and algorithm.stages == 4:
            raise triton.runtime.errors.OutOfResources(300, 227, "shared memory")
        return 5.0 if algorithm is None else abs(algorithm.stages - 2) + abs(algorithm.block_k - steps[type(algorithm)])

    clock.seconds = seconds
    x, w = torch.zeros(4, 2, 16, 16), torch.zeros(2, 1, 9, 9)
    for _ in range(2):
        op._cuda(x, w)
        gradients._grad_weight_cuda(x, x, [9, 9])
    tiles = [launch[3] for launch in taken]
    assert tiles[:2] == tiles[2:]
    assert [(type(tile), tile.stages, tile.block_k) for tile in tiles[:2]] == [
        (kind, 2, k) for kind, k in steps.items()
    ]
    assert {algorithm for algorithm in clock.called if isinstance(algorithm, str)} == set(pytorch.MEMORY_FORMATS)
    assert len(clock.called) == len(set(clock.called)) + 2  # PyTorch's two algorithms for each of the operations
    tile_files.read.cache_clear()  # as a new process, which does not tune
    monkeypatch.delenv("WIDEFIELD_AUTOTUNE")
    op._cuda(x, w)
    assert taken[-1][3] == tiles[0]


@pytest.mark.parametrize("algorithm", sorted(pytorch.MEMORY_FORMATS))
@pytest.mark.parametrize("size", [3, 9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_pytorch_is_taken_where_it_is_measured_faster(taken, clock, monkeypatch, algorithm, size, layout):
    """Forward and the filter's gradient, with right answers in the input's layout; in a later process too."""
    clock.seconds = lambda timed: 1.0 if timed == algorithm else 2.0
    x, w, b = torch.randn(3, 4, 8, 6).contiguous(memory_format=layout), torch.randn(4, 1, size, size), torch.randn(4)
    for _ in range(2):
        output = op._cuda(x, w, b, "relu")
        grad = gradients._grad_weight_cuda(output, x, [size, size])
        assert taken == [algorithm, algorithm]
        taken.clear()
        tile_files.read.cache_clear()
        monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "0")
    assert output.stride() == x.stride()
    exact = torch.nn.functional.conv2d(x, w, b, padding=size // 2, groups=4).relu()
    torch.testing.assert_close(output, exact)
    torch.testing.assert_close(grad, gradients._grad_weight_cpu(output, x, [size, size]))
    op._cuda(x[:2], w, b, "relu")  # another batch has not been measured
    assert taken[-1][0] == ("taps" if size == 3 else "toeplitz")


@pytest.mark.parametrize("operation", ["forward", "relu", "grad_weight"])
def test_a_measured_tile_serves_what_differs_a_little_and_a_word_does_not(taken, clock, monkeypatch, operation):
    """A tile fits the same products; PyTorch's time for one layout says nothing of another."""

    def compute(x, activation="none"):
        if operation == "grad_weight":
            gradients._grad_weight_cuda(x, x, [9, 9])
        else:
            op._cuda(x, torch.zeros(2, 1, 9, 9), None, activation)
        return taken.pop()

    tiles = KINDS["grad_weight" if operation == "grad_weight" else "toeplitz"]
    for batch, fastest in ((4, tiles), (3, str)):
        x = torch.zeros(batch, 2, 16, 16)
        other = (x, "relu") if operation == "relu" else (x.contiguous(memory_format=torch.channels_last),)
        monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "0")
        by_rule = compute(*other)
        clock.seconds = lambda algorithm, kind=fastest, rule=by_rule: float(
            not isinstance(algorithm, kind) or algorithm in rule
        )
        monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "1")
        measured = compute(x)
        monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "0")
        assert compute(x) == measured != by_rule
        assert compute(*other) == (by_rule if fastest is str else measured)


def test_a_filter_without_a_tile_is_measured_by_pytorch_s_algorithms(taken, clock):
    x = torch.randn(1, 4, 33, 33)
    gradients._grad_weight_cuda(x, x, [65, 65])
    assert clock.timed == list(pytorch.MEMORY_FORMATS)
    assert taken == ["pytorch"]


def test_few_taps_go_to_the_tensor_cores_where_they_are_measured_faster(taken, clock):
    clock.seconds = lambda algorithm: 1.0 if algorithm is None else 2.0
    op._cuda(torch.zeros(3, 4, 8, 6), torch.zeros(4, 1, 3, 3))
    assert clock.timed == ["taps", *pytorch.MEMORY_FORMATS, None]
    assert taken == [("toeplitz", True, "ieee", None)]


def test_forms_for_small_images_are_not_tried_before_they_have_run_on_a_gpu(taken, clock):
    op._cuda(torch.zeros(3, 4, 14, 14).half(), torch.zeros(4, 1, 27, 27).half())
    assert clock.called[:3] == ["whole image", *pytorch.MEMORY_FORMATS]
    assert not any(isinstance(algorithm, WholeImageTile) for algorithm in clock.called)


@pytest.mark.parametrize("packed", [False, True])
def test_forms_for_small_images_by_tile(taken, packed):
    """benchmarks/kernels asks for them; also with the filter turned, as in training."""
    x, w = torch.zeros(3, 4, 14, 14).half(), torch.zeros(4, 1, 27, 27).half()
    tile, name = WholeImageTile(packed, 16, 4), "packed image" if packed else "whole image"
    for source, flip in ((x.contiguous(memory_format=torch.channels_last), False), (x, True)):
        assert bool((dispatch.run_forward(tile, source, w, None, "none", "ieee", flip) == 3).all())
    assert taken == [(name, True, "ieee", tile), (name, True, "ieee", "turned", tile)]


def test_no_algorithm_is_tried_after_the_time_for_a_shape(taken, clock, monkeypatch):
    """The rule's algorithm and PyTorch's come first; the fastest of what was measured by then is kept."""
    now = [0.0]
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE_SECONDS", "5.5")
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now[0])

    def seconds(algorithm):
        now[0] += 1.0
        return 5.0 if isinstance(algorithm, str) else 1.0

    clock.seconds = seconds
    op._cuda(torch.zeros(64, 2, 16, 16), torch.zeros(2, 1, 9, 9))
    assert clock.called[:3] == [None, *pytorch.MEMORY_FORMATS]
    assert [(algorithm.rows, algorithm.block_m) for algorithm in clock.called[3:]] == [(16, 64)]
    assert clock.timed == [None, clock.called[3]]
    assert taken[-1][3] is None


def test_a_switch_of_another_spelling_is_named(taken, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "true")
    with pytest.raises(ValueError, match="WIDEFIELD_AUTOTUNE=true: 1 measures every new shape, 0 none"):
        op._cuda(torch.zeros(64, 2, 16, 16), torch.zeros(2, 1, 9, 9))


def test_seconds_that_are_no_number_are_named(taken, clock, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE_SECONDS", "60s")
    with pytest.raises(ValueError, match="WIDEFIELD_AUTOTUNE_SECONDS=60s: a number of seconds is expected"):
        op._cuda(torch.zeros(64, 2, 16, 16), torch.zeros(2, 1, 9, 9))
    assert clock.called == []


@pytest.mark.parametrize("operation", ["toeplitz", "grad_weight"])
def test_the_shipped_tile_comes_first_and_the_first_algorithms_have_a_call_however_long(
    taken, clock, monkeypatch, operation
):
    """A slow algorithm has one call: PyTorch's took 75 ms each, and the time was over before the table's tile."""
    now = [0.0]
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE_SECONDS", "0.5")
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now[0])
    kind = KINDS[operation]
    name = SHIPPED.replace("toeplitz", operation)
    table = kind(**tile_files.read(tile_files.TABLE)[name])
    shipped = replace(table, stages=2)  # not the rule's
    monkeypatch.setattr(tile_files, "TABLE", tile_files.cache_file().with_name("table.json"))
    tile_files.TABLE.write_text(json.dumps({name: asdict(shipped)}))

    def seconds(algorithm):
        now[0] += 1.0
        return 1.0 if algorithm == shipped else 75.0 if isinstance(algorithm, str) else 1.4

    clock.seconds = seconds
    x = torch.zeros(64, 128, 56, 56, dtype=torch.bfloat16, device="meta")
    if operation == "toeplitz":
        tuning.forward_algorithm(
            x, (31, 31), "none", "ieee", "toeplitz", lambda algorithm: taken.append(("", "", "", algorithm))
        )
        rule = "toeplitz"
    else:
        tuning.grad_weight_algorithm(x, (31, 31), "ieee", lambda algorithm: taken.append(("", "", "", algorithm)))
        rule = grad_weight.choose_tile(56, 56, 31, 31, 2)
    cached = [replace(shipped, cached=True)] if operation == "toeplitz" else []
    assert clock.called == [shipped, *cached, rule, *pytorch.MEMORY_FORMATS]
    assert clock.timed == [shipped, *cached] if isinstance(rule, str) else [shipped, rule]
    assert tile_files.read(tile_files.cache_file()) == {name: asdict(shipped)}


def test_a_call_is_timed_after_the_one_that_compiles(monkeypatch):
    events = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            events.append("record")

        def synchronize(self):
            events.append("synchronize")

        def elapsed_time(self, end):
            return 3.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert tuning.one_call_ms(lambda: events.append("call")) == 3.5
    assert events == ["call", "record", "call", "record", "synchronize"]


@pytest.mark.parametrize("capability", [(9, 0), (8, 0), (8, 6), (12, 0)])
def test_tiles_fit_batch_registers_and_shared_memory(taken, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    limit = 1024 * tuning.SHARED_KIB.get(capability, 99)
    for dtype, batch in itertools.product((torch.bfloat16, torch.float32), (1, 8, 64)):
        tiles = list(tuning.toeplitz_tiles(torch.zeros(batch, 1, 56, 56, dtype=dtype), 31))
        assert len(set(tiles)) == len(tiles) > 2
        most = tuning.most_sums(capability, dtype.itemsize)
        sums = [tile.block_m * tile.rows * tile.columns for tile in tiles]
        assert max(sums) == min(most, 64 * 64 * batch)
        for tile in tiles:
            pixels = tile.rows * tile.columns
            assert (tile.stages - 1) * tile.block_k * (tile.block_m + pixels) * dtype.itemsize <= limit
            assert tile.block_m * pixels <= 32 * tile.warps * 128
            assert pixels <= 256


def test_nothing_is_measured_while_a_graph_is_captured(taken, clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    op._cuda(torch.zeros(3, 4, 8, 6), torch.zeros(4, 1, 7, 7))
    assert clock.timed == []
    assert taken == [("toeplitz", True, "ieee", None)]


def test_a_shape_that_no_algorithm_computes_says_why(taken, clock):
    def fail(algorithm):
        raise RuntimeError("no kernel image")

    clock.seconds = fail
    with pytest.raises(RuntimeError, match=r"could be measured; .*no kernel image"):
        op._cuda(torch.zeros(3, 4, 8, 6), torch.zeros(4, 1, 7, 7))


@pytest.mark.parametrize("users", ["ieee", "tf32", None], ids=["ieee by the new setting", "tf32", "allow_tf32"])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_pytorch_computes_as_ours_does(monkeypatch, cudnn_conv, precision, users):
    """The same bits every time, TF32 only where it was asked for; the settings are put back, after a failure too."""
    cudnn = torch.backends.cudnn
    if users is None:
        monkeypatch.setattr(cudnn, "allow_tf32", False)
    else:  # allow_tf32 cannot be read from here on
        cudnn_conv.fp32_precision = users
    before = (cudnn.deterministic, cudnn.conv.fp32_precision)
    seen = []

    def fail():
        with pytorch.as_ours(torch.float32, precision):
            seen.append((cudnn.deterministic, cudnn.conv.fp32_precision))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(True, "tf32" if precision == "tf32" else "ieee")]
    assert (cudnn.deterministic, cudnn.conv.fp32_precision) == before


def test_a_setting_that_is_inherited_goes_on_to_be():
    """Run in its own process: a setting that was once written is never inherited again."""
    code = """
import torch
from kernels.depthwise_conv2d import pytorch
torch.backends.fp32_precision = "ieee"
with pytorch.as_ours(torch.float32, "ieee"):
    pass
torch.backends.fp32_precision = "tf32"
print(torch.backends.cudnn.conv.fp32_precision)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.strip() == "tf32", done.stderr

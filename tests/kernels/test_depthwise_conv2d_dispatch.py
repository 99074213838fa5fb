"""Which way a call on the GPU takes, with what; launches are recorded, as there is no device."""

import pytest
import torch
from device_stand_ins import no_device

from kernels import float32_precision, set_float32_precision
from kernels.depthwise_conv2d import dispatch, grad_weight, gradients, kernel, op, precision, toeplitz, tuning


@pytest.fixture
def taken(monkeypatch, tmp_path):
    """The launches that were made, on a device of capability 9.0; outputs are filled with 3."""
    seen = []

    def taps(source, weight, bias, output, activation):
        assert source.stride() == output.stride()
        seen.append(("taps", output.is_contiguous()))
        output.fill_(3)

    def tensor_cores(source, weight, bias, output, activation, precision, tile=None):
        assert source.stride() == output.stride()
        seen.append(("toeplitz", output.is_contiguous(), precision, tile))
        output.fill_(3)

    def of_the_weight(grad, source, output, precision, tile=None):
        assert grad.is_contiguous()
        assert source.is_contiguous()
        seen.append(("grad_weight", tuple(output.shape), precision, tile))
        output.fill_(3)

    monkeypatch.setattr(torch.cuda, "device", no_device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(kernel, "launch", taps)
    monkeypatch.setattr(toeplitz, "launch", tensor_cores)
    monkeypatch.setattr(grad_weight, "launch", of_the_weight)
    monkeypatch.setenv("WIDEFIELD_TILES", str(tmp_path / "tiles.json"))
    tuning.read.cache_clear()
    yield seen
    tuning.read.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "kernel_size", "capability", "expected"),
    [
        (torch.bfloat16, (31, 31), (9, 0), "toeplitz"),
        (torch.float32, (7, 7), (8, 0), "toeplitz"),
        (torch.float16, (51, 5), (12, 0), "toeplitz"),
        (torch.float32, (5, 5), (9, 0), "taps"),
        (torch.float64, (31, 31), (9, 0), "pytorch"),
        (torch.float16, (31, 31), (7, 5), "pytorch"),
    ],
)
def test_the_choice(dtype, kernel_size, capability, expected):
    assert dispatch.choose_kernel(dtype, kernel_size, capability) == expected


def test_each_kernel_is_taken(taken):
    """Few taps: one kernel for both layouts; many: the tensor cores, on contiguous memory; float64: PyTorch's."""
    for layout in (torch.contiguous_format, torch.channels_last):
        source = torch.zeros(2, 4, 8, 8).contiguous(memory_format=layout)
        for size in (5, 7):
            output = op._cuda(source, torch.zeros(4, 1, size, size))
            assert output.stride() == source.stride()
            assert bool((output == 3).all())
    tensor_cores = ("toeplitz", True, "ieee", None)
    assert taken == [("taps", True), tensor_cores, ("taps", False), tensor_cores]
    assert bool((op._cuda(source.double(), torch.zeros(4, 1, 7, 7).double()) == 0).all())
    assert len(taken) == 4


def test_more_channels_than_a_grid_has(taken):
    source = torch.zeros(1, 65536, 1, 1)
    assert op._cuda(source, torch.zeros(65536, 1, 7, 7)).shape == source.shape
    assert not taken


def test_an_old_device_is_warned_of(taken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.warns(UserWarning, match=r"capability \(7, 5\): PyTorch's convolution computes"):
        op._cuda(torch.zeros(1, 4, 8, 8), torch.zeros(4, 1, 7, 7))
    assert not taken


def test_what_is_neither_contiguous_nor_channels_last_is_copied(taken):
    for source in (torch.zeros(2, 4, 16, 8)[:, :, ::2], torch.zeros(4, 2, 8, 8).transpose(0, 1)):
        for size in (5, 7):
            output = op._cuda(source, torch.zeros(size, size, 1, 4).permute(3, 2, 0, 1))
            assert output.is_contiguous()
            assert bool((output == 3).all())
    assert [launch[:2] for launch in taken] == [("taps", True), ("toeplitz", True)] * 2


def test_the_gradients_take_them_too(taken):
    for size in ((3, 3), (31, 5)):
        grad, source = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
        assert bool((gradients._grad_weight_cuda(grad, source, list(size)) == 3).all())
        assert taken.pop() == ("grad_weight", (4, 1, *size), "ieee", None)
    double = gradients._grad_weight_cuda(grad.double(), source.double() + 1, [31, 5])
    assert double.shape == (4, 1, 31, 5)
    assert not taken
    assert gradients._grad_weight_cuda(grad[:0], source[:0], [5, 5]).abs().sum() == 0
    assert not taken


def test_the_gradient_of_the_input_is_the_forward_pass_with_the_filter_turned(monkeypatch):
    seen = []

    def forward(grad, weight):
        seen.append(weight)
        return grad

    monkeypatch.setattr(torch.ops.widefield, "depthwise_conv2d", forward)
    weight = torch.randn(4, 1, 5, 3)
    gradients._grad_input_cuda(torch.zeros(1, 4, 6, 6), weight)
    assert torch.equal(seen[0], weight.flip(2).flip(3))


def test_float32_precision_reaches_every_kernel(taken):
    x, w = torch.zeros(1, 2, 9, 9), torch.zeros(2, 1, 7, 7)
    with float32_precision("tf32x3"):
        with float32_precision("tf32"):
            op._cuda(x, w)
        gradients._grad_weight_cuda(x, x, [7, 7])
    op._cuda(x, w)
    assert [launch[2] for launch in taken] == ["tf32", "tf32x3", "ieee"]
    try:
        set_float32_precision("tf32")
        assert precision.get_float32_precision() == "tf32"
    finally:
        set_float32_precision("ieee")
    with pytest.raises(ValueError, match="bf16"):
        set_float32_precision("bf16")


def test_a_shipped_tile_is_taken(taken):
    x = torch.zeros(64, 1, 56, 56, dtype=torch.bfloat16).expand(64, 128, 56, 56)
    tile = tuning.toeplitz_tile(x, torch.zeros(128, 1, 31, 31), None, x, "none", "ieee")
    assert tile == toeplitz.Tile(**tuning.read(tuning.TABLE)["toeplitz sm_90 bfloat16 64x128x56x56 31x31"])


def test_autotune_measures_once_and_remembers(taken, monkeypatch):
    """The fastest of the candidates, one that does not fit passed over; from the file the second time."""
    import triton

    monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "1")
    measured = []

    def do_bench(run, return_mode):
        run()
        tile = taken.pop()[3]
        measured.append(tile)
        if tile.stages == 4:
            raise triton.runtime.errors.OutOfResources(300, 227, "shared memory")
        return abs(tile.stages - 2) + abs(tile.block_k - 32)

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    x, w = torch.zeros(4, 2, 16, 16), torch.zeros(2, 1, 9, 9)
    for _ in range(2):
        op._cuda(x, w)
        gradients._grad_weight_cuda(x, x, [9, 9])
    tiles = [launch[3] for launch in taken]
    assert tiles[:2] == tiles[2:]
    assert all(tile.stages == 2 and tile.block_k == 32 for tile in tiles)
    assert len(measured) == len(set(measured))
    tuning.read.cache_clear()  # as a new process, which does not tune
    monkeypatch.delenv("WIDEFIELD_AUTOTUNE")
    op._cuda(x, w)
    assert taken[-1][3] == tiles[0]

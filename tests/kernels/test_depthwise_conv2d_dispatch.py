"""The algorithm that a call on the GPU uses, and its arguments; launches are only recorded (conftest.py)."""

import pytest
import torch
import torch.nn.functional as F

from kernels import float32_precision, set_float32_precision
from kernels.depthwise_conv2d import dispatch, grad_weight, gradients, op, precision, pytorch


@pytest.mark.parametrize(
    ("dtype", "kernel_size", "expected"),
    [
        (torch.bfloat16, (31, 31), "toeplitz"),
        (torch.float32, (7, 7), "toeplitz"),
        (torch.float16, (51, 5), "toeplitz"),
        (torch.float32, (5, 5), "toeplitz"),
        (torch.float32, (3, 7), "taps"),
        (torch.bfloat16, (5, 255), "toeplitz"),
        (torch.bfloat16, (257, 5), "taps"),
        (torch.float64, (31, 31), "pytorch"),
    ],
)
def test_the_choice(dtype, kernel_size, expected):
    assert dispatch.choose_kernel(dtype, kernel_size) == expected


def test_each_kernel_is_taken(taken):
    """Few taps: one kernel for both layouts; many: the tensor cores, on contiguous memory; float64: PyTorch's. Images
    that every output sees whole have a kernel of their own in 16-bit types."""
    for layout in (torch.contiguous_format, torch.channels_last):
        source = torch.zeros(2, 4, 8, 8).contiguous(memory_format=layout)
        for size in (3, 7):
            output = op._cuda(source, torch.zeros(4, 1, size, size))
            assert output.stride() == source.stride()
            assert bool((output == 3).all())
    tensor_cores = ("toeplitz", True, "ieee", None)
    assert taken == [("taps", True), tensor_cores, ("taps", False), tensor_cores]
    assert bool((op._cuda(source.double(), torch.zeros(4, 1, 7, 7).double()) == 0).all())
    assert len(taken) == 4
    whole = source.half(), torch.zeros(4, 1, 15, 15).half()
    op._cuda(*whole)
    gradients._grad_input_cuda(*whole)
    op._cuda(whole[0], whole[1][..., :13].contiguous())
    assert taken[4:] == [("whole image", True, "ieee"), ("whole image", True, "ieee", "turned"), tensor_cores]
    for side, algorithm in ((16, "whole image"), (17, "toeplitz")):  # 256 outputs are the most that a program holds
        op._cuda(torch.zeros(2, 4, side, side).half(), torch.zeros(4, 1, 33, 33).half())
        assert taken[-1][0] == algorithm


def test_no_images_are_no_launch(taken):
    """CUDA refuses an empty grid."""
    for size in (3, 7):
        assert op._cuda(torch.zeros(0, 4, 8, 8), torch.zeros(4, 1, size, size)).shape == (0, 4, 8, 8)
    assert not taken


def test_more_channels_than_a_grid_has(taken):
    source = torch.zeros(1, 65536, 1, 1)
    assert op._cuda(source, torch.zeros(65536, 1, 7, 7)).shape == source.shape
    assert not taken


@pytest.mark.parametrize(("height", "algorithm"), [(46340, "taps"), (46341, "pytorch")])
def test_more_pixels_than_int32_counts(taken, height, algorithm):
    assert dispatch.kernel_for(torch.empty(1, 1, height, 46341, dtype=torch.half, device="meta"), (3, 3)) == algorithm


@pytest.mark.parametrize(("batch", "algorithm"), [(2**31 - 128, "toeplitz"), (2**31 - 127, "pytorch")])
def test_more_images_than_int32_counts(taken, batch, algorithm):
    assert dispatch.kernel_for(torch.empty(batch, 1, 1, 1, dtype=torch.half, device="meta"), (5, 5)) == algorithm


@pytest.mark.parametrize(("channels", "algorithm"), [(2**15 - 512, "taps"), (2**15, "pytorch")])
def test_a_filter_of_more_elements_than_int32_counts(taken, channels, algorithm):
    assert dispatch.kernel_for(torch.empty(1, channels, 8, 8, device="meta"), (257, 255)) == "taps"
    assert dispatch.kernel_for(torch.empty(1, channels, 8, 8, device="meta"), (257, 257)) == algorithm


def test_a_batch_of_more_pixels_than_int32_counts_is_halved_for_the_filter_s_gradient(taken, monkeypatch):
    monkeypatch.setattr(dispatch, "COUNTABLE", 200)
    grad, source = torch.zeros(7, 2, 8, 8), torch.zeros(7, 2, 8, 8)
    assert bool((gradients._grad_weight_cuda(grad, source, [3, 3]) == 3 + 3 + 3).all())
    assert [launch[0] for launch in taken] == ["grad_weight"] * 3  # of 3, 2 and 2 images


@pytest.mark.parametrize("lacking", ["ROCm", r"compute capability \(7, 5\)"])
def test_a_gpu_that_runs_no_kernel_is_warned_of_and_pytorch_computes(taken, monkeypatch, lacking):
    if lacking == "ROCm":
        monkeypatch.setattr(torch.version, "hip", "7.2")  # whose capability, the architecture's, says nothing
    else:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    input, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 7, 7)
    said = f"no kernel for {lacking}, PyTorch's own operations are used: .*NVIDIA"
    with pytest.warns(UserWarning, match=said):
        output = op._cuda(input, weight)
    with pytest.warns(UserWarning, match=said):
        grad = gradients._grad_weight_cuda(input, input, [7, 7])
    torch.testing.assert_close(output, F.conv2d(input, weight, padding=3, groups=4))
    assert grad.shape == weight.shape
    assert not taken


def test_what_is_neither_contiguous_nor_channels_last_is_copied(taken):
    for source in (torch.zeros(2, 4, 16, 8)[:, :, ::2], torch.zeros(4, 2, 8, 8).transpose(0, 1)):
        for size in (3, 7):
            output = op._cuda(source, torch.zeros(size, size, 1, 4).permute(3, 2, 0, 1), torch.zeros(8)[::2])
            assert output.is_contiguous()
            assert bool((output == 3).all())
    assert [launch[:2] for launch in taken] == [("taps", True), ("toeplitz", True)] * 2


def test_the_gradients_take_them_too(taken):
    for size in ((3, 3), (31, 5)):
        grad, source = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
        assert bool((gradients._grad_weight_cuda(grad, source, list(size)) == 3).all())
        tile = grad_weight.choose_tile(8, 8, *size, 4)
        assert taken.pop() == ("grad_weight", (4, 1, *size), "ieee", tile)
    double = gradients._grad_weight_cuda(grad.double(), source.double() + 1, [31, 5])
    assert double.shape == (4, 1, 31, 5)
    assert not taken
    assert gradients._grad_weight_cuda(grad[:0], source[:0], [5, 5]).abs().sum() == 0
    assert not taken


@pytest.mark.parametrize(("pixels", "launches"), [(2**31 - 128, 1), (2**31 - 64, 2)])
def test_the_last_block_of_pixels_is_counted_in_int32_too(taken, pixels, launches):
    """The filter's gradient rounds a channel's pixels up to whole blocks."""
    grad, source = (torch.empty(pixels // 64, 1, 8, 8, dtype=torch.half, device="meta") for _ in range(2))
    gradients._grad_weight_cuda(grad, source, [3, 3])
    assert len(taken) == launches


@pytest.mark.parametrize(
    ("dtype", "kernel_size", "least"),  # whose images see all of the filter, and the nearest that has a tile
    [
        (torch.float32, (65, 65), (63, 65)),
        (torch.bfloat16, (129, 129), (127, 127)),
        (torch.bfloat16, (257, 5), (255, 5)),
    ],
)
def test_a_filter_without_a_tile_has_pytorch_s_gradient(taken, dtype, kernel_size, least):
    size = [side // 2 + 1 for side in kernel_size]
    grad, source = (torch.randn(2, 4, *size, dtype=dtype) for _ in range(2))
    answer = gradients._grad_weight_cuda(grad, source, list(kernel_size))
    assert not taken
    assert torch.equal(answer, pytorch.grad_weight(grad, source, kernel_size))
    gradients._grad_weight_cuda(grad, source, list(least))
    assert [launch[:2] for launch in taken] == [("grad_weight", (4, 1, *least))]


def test_the_gradient_of_the_input_is_the_forward_pass_with_the_filter_turned(taken):
    """The tensor-core kernels turn it themselves; for others it is turned before."""
    grad, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 5, 7)
    for layout in (torch.contiguous_format, torch.channels_last):
        source = grad.contiguous(memory_format=layout)
        assert gradients._grad_input_cuda(source, weight).stride() == source.stride()
    assert taken == [("toeplitz", True, "ieee", None, "turned")] * 2
    exact = gradients._grad_input_cpu(grad, weight)
    torch.testing.assert_close(dispatch.run_forward("pytorch", grad, weight, None, "none", "ieee", flip=True), exact)
    torch.testing.assert_close(gradients._grad_input_cuda(grad.double(), weight.double()).float(), exact)


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
        assert precision.precision_of(torch.float32) == "tf32"
    finally:
        set_float32_precision("ieee")
    with pytest.raises(ValueError, match="bf16"):
        set_float32_precision("bf16")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pytorchs_own_computes_as_ours_do(taken, monkeypatch, cudnn_conv, layout):
    """Also if no kernel applies: the same bits every time, and IEEE products unless tf32 was asked for."""
    seen = []

    def conv2d(*args, **kwargs):
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.conv.fp32_precision))
        return real(*args, **kwargs)

    def convolution_backward(*args, **kwargs):
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.conv.fp32_precision))
        return real_backward(*args, **kwargs)

    real, real_backward = pytorch.convolution, pytorch.convolution_backward
    monkeypatch.setattr(pytorch, "convolution", conv2d)
    monkeypatch.setattr(pytorch, "convolution_backward", convolution_backward)
    cudnn_conv.fp32_precision = "tf32"
    source = torch.randn(2, 65536, 2, 2).contiguous(memory_format=layout)
    weight = torch.randn(65536, 1, 3, 3)
    expected = F.conv2d(source, weight, padding=1, groups=65536)
    output = op._cuda(source, weight)
    torch.testing.assert_close(output, expected)
    assert output.stride() == source.stride()
    turned = F.conv2d(source, weight.flip(2, 3), padding=1, groups=65536)
    torch.testing.assert_close(gradients._grad_input_cuda(source, weight), turned)
    gradients._grad_weight_cuda(source, source, [3, 3])
    assert seen == [(True, "ieee")] * 3
    assert not taken

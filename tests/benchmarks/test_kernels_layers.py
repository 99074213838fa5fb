"""The arithmetic behind every share and every TFLOP/s, by counting one by one."""

import itertools

import pytest
import torch

from benchmarks.kernels.layers import BLOCKS, Ceilings, Layer, replknet_31b, small_kernels, sweep


def count_by_hand(layer):
    side, half = range(layer.size), layer.kernel // 2
    taps = range(-half, half + 1)
    inside = sum(
        0 <= y + i < layer.size and 0 <= x + j < layer.size for y, x, i, j in itertools.product(side, side, taps, taps)
    )
    return layer.batch * layer.channels * inside


@pytest.mark.parametrize(
    "layer", [Layer(2, 3, 7, 13), Layer(1, 2, 8, 3), Layer(3, 1, 5, 5), Layer(1, 1, 1, 51)], ids=str
)
def test_valid_taps_are_counted(layer):
    assert layer.macs == count_by_hand(layer)
    assert layer.flops == 2 * count_by_hand(layer)


def test_the_share_of_valid_taps_in_replknet():
    """The figures of kernels/depthwise_conv2d/README.md."""
    layers = replknet_31b(64)
    nominal = [layer.batch * layer.channels * layer.size**2 * layer.kernel**2 for layer in layers]
    shares = [round(100 * layer.macs / n) for layer, n in zip(layers, nominal, strict=True)]
    assert shares == [74, 55, 27, 29]


def test_bytes_and_the_limit():
    layer = Layer(2, 3, 4, 5, "float32")
    assert layer.input_bytes == 2 * 3 * 16 * 4 == torch.empty(2, 3, 4, 4).nbytes
    assert layer.bytes == 2 * layer.input_bytes + 3 * 25 * 4
    slow_memory, slow_units = Ceilings(1e3, {"float32": 1e15}), Ceilings(1e15, {"float32": 1e3})
    assert layer.limit_ms(slow_memory) == pytest.approx(layer.bytes)
    assert layer.limit_ms(slow_units) == pytest.approx(layer.flops)


def test_the_layers_are_replknets():
    from models import create_model

    model = create_model("replknet_31b")
    layers = [stage.blocks[0].large_kernel.lkb_origin.conv for stage in model.stages]
    assert [(conv.in_channels, conv.kernel_size[0]) for conv in layers] == [
        (layer.channels, layer.kernel) for layer in replknet_31b(64)
    ]
    assert [len(stage.blocks) // 2 for stage in model.stages] == list(BLOCKS)
    assert {layer.kernel for layer in small_kernels(1, "float32")} == {5}


def test_the_sweep_covers_every_axis_once():
    layers = sweep()
    assert len(set(layers)) == len(layers)
    assert {layer.kernel for layer in layers} >= {3, 5, 7, 31, 51}
    assert {layer.batch for layer in layers} >= {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert {layer.dtype for layer in layers} == {"bfloat16", "float16", "float32"}
    assert {layer.size for layer in layers} >= {7, 14, 28, 56, 57, 112}
    assert {layer.channels for layer in layers} >= {16, 48, 100, 1024}

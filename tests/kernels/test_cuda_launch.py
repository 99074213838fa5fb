"""Which cubin the library launches, and with what."""

from dataclasses import replace

import pytest
from launch_stand_in import DTYPES, STAGES, Call

from kernels.depthwise_conv2d.dispatch import TOEPLITZ_TAPS
from kernels.depthwise_conv2d.packing import PACK_GROUP
from kernels.depthwise_conv2d.toeplitz import Tile, log_images
from kernels.native import variants

FALLBACK = "widefield: no kernel is compiled for this GPU; PyTorch's convolution is used instead\n"
TILES = {  # of batch 1 and of 64
    "stage1": ((2, 32, 64, 16), (4, 32, 64, 16)),
    "stage2": ((2, 32, 32, 0), (4, 32, 32, 0)),
    "stage3": ((4, 16, 16, 0), (8, 16, 16, 0)),
    "stage4": ((4, 8, 8, 0), (8, 8, 8, 0)),
}


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("batch", [1, 64])
def test_tile_and_grid_of_each_stage(run_launches, architecture, stage, batch):
    """The grid is Python's of the same tile."""
    call = replace(STAGES[stage], batch=batch)
    result = run_launches([call], architecture)
    assert result.answers == ["toeplitz"]
    (pack, _, _), (product, (grid_x, grid_y, grid_z, threads, *_), values) = result.launches()
    assert pack.architecture == product.architecture == (80 if architecture < 90 else architecture)
    assert product.tile == TILES[stage][batch == 64]
    assert product.block_m == (64 if batch == 64 else 16)
    assert product.alignment == min(8, max(a for a in (1, 2, 4, 8) if call.size[1] % a == 0))
    tile = Tile(*product.tile, product.block_m, 64, product.warps, 3)
    log = log_images(batch, call.size[0], tile)
    blocks_y = -(-call.size[0] // tile.rows)
    blocks = -(-batch // 2**log) * -(-blocks_y // (tile.block_m >> log))
    assert values["log_images"] == log
    assert (grid_x, grid_y, grid_z) == (blocks * -(-call.size[1] // tile.columns), call.channels, 1)
    assert threads == 32 * product.warps


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 8, 33, 64, 65, 130])
def test_images_of_a_program_are_python_s(run_launches, batch):
    calls = [Call("float16", batch, 2, (height, 28), (7, 7)) for height in (1, 3, 9, 28, 57)]
    for call, (product, _, values) in zip(calls, run_launches(calls).launches()[1::2], strict=True):
        tile = Tile(*product.tile, product.block_m, 64, product.warps, 3)
        assert values["log_images"] == log_images(batch, call.size[0], tile)


def test_parameters_by_name(run_launches):
    """Every value lies where the kernel's signature has its name."""
    call = Call("float16", 3, 6, (9, 40), (11, 31), activation=1, input=1 << 21, output=1 << 22)
    small = replace(call, kernel=(5, 3), has_bias=False)
    result = run_launches([call, small])
    (pack, launch, packing), (product, _, values), (simple, _, few) = result.launches()
    rows, columns, window, offset = product.tile
    planes = 11 + 2 * (rows - 1)
    elements = 6 * planes * window * columns
    scratch = {"global_scratch": 0, "profile_scratch": 0}
    sizes = {"KH": 11, "KW": 31, "planes": planes}
    assert launch == [6, -(-planes // PACK_GROUP), 1, 128, 1, 1, 20480, 77, 1]
    tile = {"offset": offset, "ROWS": rows, "COLUMNS": columns, "WINDOW": window}
    assert packing == {"weight_ptr": 3001, "packed_ptr": elements, **sizes, **tile, **scratch}
    assert values == {
        **{"input_ptr": 1 << 21, "packed_ptr": elements, "weight_ptr": 3001, "bias_ptr": 4001, "output_ptr": 1 << 22},
        **{"N": 3, "C": 6, "H": 9, "W": 40, "log_images": 2},
        **{"has_bias": 1, "ACTIVATION": 1, **sizes, **scratch},
    }
    assert few == {
        **{"input_ptr": 1 << 21, "weight_ptr": 3001, "bias_ptr": 3001, "output_ptr": 1 << 22, "C": 6, "H": 9, "W": 40},
        **{"KH": 5, "KW": 3, "stride_n": 101, "stride_c": 102, "stride_h": 103, "stride_w": 104},
        **{"has_bias": 0, "activation": 1, **scratch},
    }
    assert isinstance(pack, variants.Pack)
    assert pack.element_bytes == 2
    assert simple == variants.Simple(90, "float16", "contiguous")


def test_every_odd_filter_and_width_has_a_tile_that_covers_it(run_launches):
    """From 5 to 51 columns, but for the rare rest that kernel.py serves; whatever is chosen sees all its columns."""
    calls = [
        Call(dtype, 2, 4, (9, width), (5, kernel))
        for dtype in DTYPES
        for width in (1, 7, 8, 9, 14, 16, 17, 27, 28, 31, 32, 33, 40, 56, 57)
        for kernel in range(5, 53, 2)
    ]
    result = run_launches(calls)
    products = iter(variant for variant, _, _ in result.launches() if isinstance(variant, variants.Toeplitz))
    rest = set()
    for call, answer in zip(calls, result.answers, strict=True):
        width, pad = call.size[1], call.kernel[1] // 2
        if answer == "simple":
            rest.add(call)
            continue
        tile = next(products)
        _, columns, window, offset = tile.tile
        assert width <= columns if offset == 0 else offset >= pad and window >= offset + columns + pad
        assert width % tile.alignment == 0
    unaligned = (9, 17, 27, 31, 33, 57)  # with filters that the window compiled for them does not hold
    assert rest == {c for c in calls if c.dtype != "float32" and c.size[1] in unaligned and c.kernel[1] > 33}


@pytest.mark.parametrize(
    ("call", "alignment"),
    [
        (STAGES["stage1"], 8),
        (replace(STAGES["stage1"], input=(1 << 20) + 8), 1),  # rows begin off the 16 bytes
        (replace(STAGES["stage1"], output=(1 << 20) + 8), 1),
        (replace(STAGES["stage1"], size=(56, 52)), 1),
        (replace(STAGES["stage2"], input=(1 << 20) + 8), 4),  # 8 bytes are enough there
        (replace(STAGES["stage3"], input=(1 << 20) + 4), 2),
        (replace(STAGES["stage1"], dtype="float32"), 1),
        (replace(STAGES["stage1"], input=0), 8),  # a copy to come
    ],
)
def test_alignment(run_launches, call, alignment):
    result = run_launches([call])
    assert result.answers == ["toeplitz"]
    assert result.launches()[1][0].alignment == alignment


@pytest.mark.parametrize(("batch", "block_m"), [(1, 16), (2, 16), (3, 64), (65, 64)])
def test_blocks_fit_the_batch(run_launches, batch, block_m):
    assert run_launches([replace(STAGES["stage1"], batch=batch)]).launches()[1][0].block_m == block_m


def test_what_the_simple_kernel_serves(run_launches):
    """Few taps, more elements than int32 counts, a filter of more than 255 rows."""
    assert TOEPLITZ_TAPS == 25
    stage = STAGES["stage3"]
    calls = [
        replace(stage, kernel=(3, 7)),
        replace(stage, kernel=(23, 1)),
        replace(stage, batch=2**31 // (512 * 14 * 14) + 1),
        replace(stage, kernel=(8 * 65537, 1)),
        replace(stage, kernel=(257, 27)),
        replace(stage, kernel=(3, 3), channels_last=True),
    ]
    result = run_launches(calls)
    assert result.answers == ["simple"] * 6
    assert [v.layout for v, _, _ in result.launches()] == ["contiguous"] * 5 + ["channels_last"]
    largest = replace(stage, batch=2**31 // (512 * 14 * 14))
    tall = replace(stage, kernel=(255, 27))
    assert run_launches([replace(stage, kernel=(5, 5)), tall, largest]).answers == ["toeplitz"] * 3


def test_pytorch_serves_what_no_kernel_does_and_one_warning_says_so(run_launches):
    too_many_channels = replace(STAGES["stage3"], channels=65536)
    for calls, architecture in (([STAGES["stage1"]], 75), ([STAGES["stage1"]], 130), ([too_many_channels], 90)):
        result = run_launches(calls * 3, architecture, contexts=(1, 2) * 2)
        assert result.answers == ["pytorch"] * 12
        assert result.stderr == FALLBACK
        assert result.log == []


@pytest.mark.parametrize("architecture", [87, 103, 121])
def test_an_architecture_between(run_launches, architecture):
    """8.7 runs the newest of 8.x; from 9.0 on a cubin is for its architecture alone."""
    result = run_launches([STAGES["stage1"], replace(STAGES["stage1"], kernel=(3, 3))], architecture)
    if architecture == 87:
        assert [v.architecture for v, _, _ in result.launches()] == [80, 80, 86]
    else:
        assert result.answers == ["pytorch"] * 2

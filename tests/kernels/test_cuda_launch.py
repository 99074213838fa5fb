"""The cubin that the library launches, and its arguments: Python's rules, applied to the compiled variants."""

from dataclasses import replace

import pytest
from launch_stand_in import DTYPES, LAYERS, STAGES, Call, python_launches

from kernels.depthwise_conv2d.dispatch import TOEPLITZ_TAPS
from kernels.depthwise_conv2d.packing import PACK_GROUP
from kernels.depthwise_conv2d.toeplitz import choose_form, choose_tile, warps_for
from kernels.native import variants

FALLBACK = "widefield: no kernel is compiled for this GPU or these sizes; PyTorch's convolution is used instead\n"
GELU = 2
NUMBERS = ("N", "C", "H", "W", "KH", "KW", "offset", "planes", "log_images", "has_bias", "WINDOW", "ACTIVATION")
WIDTHS = ((7, 7), (8, 5), (12, 7), (16, 15), (20, 9), (28, 31), (40, 5), (64, 51), (72, 31), (96, 65))  # and a filter's


def python_s_tile(call, architecture=90):
    """Return choose_tile's choice among the library's variants for rows that are aligned as its tiles need."""
    element_bytes = 4 if call.dtype == "float32" else 2
    tile = choose_tile(call.batch, *call.size, call.kernel[1], element_bytes)
    flat, columns = tile.is_flat(call.size[1]), tile.columns
    forms = (variants.FLAT_FORMS if flat else variants.WINDOW_FORMS)[columns]
    if element_bytes == 4:
        forms = tuple((rows, min(64, block_m)) for rows, block_m in forms)
    elif flat and call.activation == variants.RELU:
        cubins = 80 if architecture < 90 else architecture
        forms += tuple((r, m) for shipped, r, m in variants.shipped_forms(cubins) if shipped == columns)
    rows, block_m = choose_form(call.batch, call.size[0], forms)
    return replace(tile, rows=rows, block_m=block_m, warps=warps_for(block_m * rows * columns, element_bytes))


def check_toeplitz(launches, call, tile):
    """The grid, every number by its name and what is constant in the cubin are what Python launches with the tile."""
    (pack, (*pack_grid, _, _, _, _, _, _), packing), (product, (*grid, _, _, _, _), values) = launches
    (python_pack_grid, python_packing), (python_grid, python) = python_launches(call, tile)
    assert (product.flat, product.rows, product.columns) == (python["FLAT"], python["ROWS"], python["COLUMNS"])
    assert (product.block_m, product.warps) == (python["BLOCK_M"], python["num_warps"])
    assert (grid[0], grid[1]) == python_grid
    assert grid[2:] == [1, 32 * product.warps, 1]
    assert {n: values.get(n, product.activation) for n in NUMBERS} == {n: int(python[n]) for n in NUMBERS}
    assert tuple(pack_grid[:2]) == python_pack_grid
    same = ("KH", "KW", "offset", "planes", "ROWS", "COLUMNS", "WINDOW")
    assert {n: packing[n] for n in same} == {n: python_packing[n] for n in same}
    assert values["packed_ptr"] == call.channels * packing["planes"] * packing["WINDOW"] * packing["COLUMNS"]
    assert pack.architecture == product.architecture
    return product, python


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("activation", [variants.RELU, GELU])
@pytest.mark.parametrize("batch", [1, 2, 8, 64])
def test_each_layer_goes_python_s_way(run_launches, architecture, activation, batch):
    """RepLKNet's layers at 224 and 384 px: the kernel, the compiled tile, the grid and every argument."""
    calls = {name: replace(call, batch=batch, activation=activation) for name, call in LAYERS.items()}
    result = run_launches(calls.values(), architecture)
    launches = iter(result.launches())
    for (stage, call), answer in zip(calls.items(), result.answers, strict=True):
        whole = stage in ("stage3", "stage4")
        assert answer == ("whole image" if whole else "toeplitz")
        if not whole:
            product, python = check_toeplitz((next(launches), next(launches)), call, python_s_tile(call, architecture))
            alignment = {"ALIGNMENT": product.alignment, "ROW_ALIGNMENT": product.row_alignment}
            assert all(python[n] % value == 0 for n, value in alignment.items())
            if stage in STAGES:  # 24 and 12 columns at 384 px are in the tiles for 28 and 14
                assert alignment == {n: python[n] for n in alignment}
        else:
            product, (*grid, _, _, _, _), values = next(launches)
            ((python_grid, python),) = python_launches(call)
            assert (grid[0], grid[1]) == python_grid
            assert grid[2:] == [1, 32 * python["num_warps"], 1]
            assert (product.size, product.kernel, product.block_n) == (python["H"], python["KH"], python["BLOCK_N"])
            names = ("N", "C", "has_bias", "ACTIVATION")
            assert {n: values[n] for n in names} == {n: python[n] for n in names}
        assert product.architecture == (80 if architecture < 90 else architecture)
        assert product.dtype == call.dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rule_is_python_s(run_launches, dtype):
    """Many batches and heights; only widths that fit the tiles' alignment."""
    calls = [
        Call(dtype, batch, 2, (height, width), (7, kernel), activation=activation)
        for batch in (1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 64, 65, 130)
        for height in (2, 4, 6, 10, 14, 28, 56, 58)
        for width, kernel in WIDTHS
        for activation in (variants.RELU, GELU)
        if dtype == "float32" or height * width % 16 == 0
    ]
    result = run_launches(calls)
    assert result.answers == ["toeplitz"] * len(calls)
    launches = result.launches()
    for index, call in enumerate(calls):
        check_toeplitz(launches[2 * index : 2 * index + 2], call, python_s_tile(call))


@pytest.mark.parametrize(("batch", "block_n"), [(1, 16), (16, 16), (17, 64), (32, 64), (65, 64)])
def test_images_of_a_whole_image_program(run_launches, batch, block_n):
    """Python also has a block of 32."""
    ((product, (grid_x, *_), _),) = run_launches([replace(STAGES["stage3"], batch=batch)]).launches()
    assert product.block_n == block_n
    assert grid_x == -(-batch // block_n)
    ((_, python),) = python_launches(replace(STAGES["stage3"], batch=batch))
    assert python["BLOCK_N"] == (32 if batch in (17, 32) else block_n)


def test_parameters_by_name(run_launches):
    """Every value is at the position of its name in the kernel's signature."""
    call = Call("float16", 3, 6, (9, 40), (11, 31), activation=1, input=1 << 21, output=1 << 22)
    small = replace(call, kernel=(5, 3), has_bias=False)
    whole = replace(call, size=(7, 7), kernel=(13, 13), has_bias=False, activation=0)
    result = run_launches([call, small, whole])
    (pack, launch, packing), (product, _, values), (taps, _, few), (image, _, seen) = result.launches()
    planes = 11 + 2 * (product.rows - 1)
    elements = 6 * planes * 40 * 64
    scratch = {"global_scratch": 0, "profile_scratch": 0}
    sizes = {"KH": 11, "KW": 31, "planes": planes, "offset": 0, "WINDOW": 40}
    assert launch == [6, -(-planes // PACK_GROUP), 1, 128, 1, 1, 20480, 77, 1]
    tile = {"ROWS": product.rows, "COLUMNS": 64}
    assert packing == {"weight_ptr": 3001, "packed_ptr": elements, **sizes, **tile, **scratch}
    pointers = {"input_ptr": 1 << 21, "weight_ptr": 3001, "bias_ptr": 4001, "output_ptr": 1 << 22}
    assert values == {
        **pointers,
        "packed_ptr": elements,
        **{"N": 3, "C": 6, "H": 9, "W": 40, "log_images": 2},
        **{"has_bias": 1, "ACTIVATION": 1, **sizes, **scratch},
    }
    assert few == {
        **pointers,
        **{"bias_ptr": 3001, "C": 6, "H": 9, "W": 40},
        **{"KH": 5, "KW": 3, "stride_n": 101, "stride_c": 102, "stride_h": 103, "stride_w": 104},
        **{"has_bias": 0, "activation": 1, **scratch},
    }
    assert seen == {**pointers, "bias_ptr": 3001, "N": 3, "C": 6, "has_bias": 0, "ACTIVATION": 0, **scratch}
    assert isinstance(pack, variants.Pack)
    assert pack.element_bytes == 2
    assert taps == variants.Taps(90, "float16", "contiguous")
    assert image == variants.WholeImage(90, "float16", 7, 13, 16)


def test_every_width_and_odd_filter_has_a_tile_that_covers_it(run_launches):
    """Whatever is chosen sees all its columns, and reads no wider than rows and runs are aligned."""
    calls = [
        Call(dtype, 2, 4, (height, width), (5, kernel))
        for dtype in DTYPES
        for height in (9, 14)
        for width in (1, 7, 8, 9, 14, 16, 17, 27, 28, 31, 32, 33, 40, 56, 57, 64, 65, 72, 100)
        for kernel in (5, 7, 31, 51, 65, 101, 255)
    ]
    result = run_launches(calls)
    assert result.answers == ["toeplitz"] * len(calls)
    for call, (product, _, values) in zip(calls, result.launches()[1::2], strict=True):
        (height, width), pad = call.size, call.kernel[1] // 2
        if width <= 64:
            assert product.flat
            assert values["WINDOW"] == width <= product.columns
            assert values["offset"] == 0
        else:
            assert not product.flat
            assert values["offset"] % 8 == values["WINDOW"] % 16 == 0
            assert values["offset"] >= pad
            assert values["WINDOW"] >= values["offset"] + product.columns + pad
        assert width % product.row_alignment == 0
        runs = (height * width, product.rows * width) if product.flat else (width,)
        assert all(run % product.alignment == 0 for run in runs)


@pytest.mark.parametrize(
    ("call", "tile", "alignment"),  # rows x columns, of runs and of rows
    [
        (STAGES["stage1"], (2, 64), (8, 8)),
        (replace(STAGES["stage1"], input=(1 << 20) + 8), (2, 64), (1, 1)),  # rows begin off the 16 bytes
        (replace(STAGES["stage1"], output=(1 << 20) + 8), (2, 64), (1, 1)),
        (replace(STAGES["stage1"], size=(56, 52)), (2, 64), (1, 1)),
        (STAGES["stage2"], (4, 32), (8, 4)),
        (replace(STAGES["stage2"], input=(1 << 20) + 8), (1, 32), (4, 4)),  # 8 bytes are enough there
        (replace(STAGES["stage2"], input=(1 << 20) + 2), (2, 64), (1, 1)),
        (replace(STAGES["stage2"], size=(27, 28)), (1, 32), (4, 4)),  # images begin off the 16 bytes
        (replace(STAGES["stage3"], kernel=(25, 25)), (8, 16), (4, 2)),
        (replace(STAGES["stage3"], input=(1 << 20) + 2), (2, 64), (1, 1)),  # nor may the whole-image kernel
        (replace(STAGES["stage4"], kernel=(11, 11)), (8, 8), (1, 1)),
        (replace(STAGES["stage1"], dtype="float32"), (2, 64), (1, 1)),
        (replace(STAGES["stage1"], input=0), (2, 64), (8, 8)),  # a copy to come
        (LAYERS["stage1 at 384"], (4, 32), (8, 8)),
        (replace(LAYERS["stage1 at 384"], input=(1 << 20) + 2), (4, 32), (1, 1)),
        (replace(LAYERS["stage1 at 384"], size=(96, 90)), (4, 32), (1, 1)),
    ],
)
def test_alignment(run_launches, call, tile, alignment):
    result = run_launches([call])
    assert result.answers == ["toeplitz"]
    product = result.launches()[1][0]
    assert (product.rows, product.columns) == tile
    assert (product.alignment, product.row_alignment) == alignment


def test_alignment_of_whole_images(run_launches):
    """Rows of 14 columns are aligned to two elements, rows of 7 to one."""
    calls = [replace(STAGES["stage3"], input=(1 << 20) + 4), replace(STAGES["stage4"], output=(1 << 20) + 2)]
    assert run_launches(calls).answers == ["whole image"] * 2


def test_the_shipped_tile_is_for_relu(run_launches):
    calls = [replace(STAGES["stage1"], activation=activation) for activation in (0, variants.RELU, GELU)]
    for architecture, rows in ((80, 4), (90, 4), (100, 2), (120, 2)):
        products = [product for product, _, _ in run_launches(calls, architecture).launches()[1::2]]
        assert [product.rows for product in products] == [2, rows, 2]


def test_whole_images_are_not_for_float32_nor_other_sizes(run_launches):
    stage = STAGES["stage3"]
    calls = [replace(stage, dtype="float32"), replace(stage, size=(14, 12)), replace(stage, kernel=(27, 29))]
    assert run_launches([*calls, replace(stage, size=(13, 14))]).answers == ["toeplitz"] * 4


def test_what_the_taps_kernel_serves(run_launches):
    """Few taps, more elements than int32 counts, a filter of more than 255 rows."""
    assert TOEPLITZ_TAPS == 25
    stage = STAGES["stage3"]
    calls = [
        replace(stage, kernel=(3, 7)),
        replace(stage, kernel=(23, 1)),
        replace(stage, batch=2**31 // (512 * 14 * 14) + 1),
        replace(stage, kernel=(8 * 65537, 1)),
        replace(stage, kernel=(257, 27)),
        replace(stage, channels=2**15 - 512, kernel=(257, 255)),  # a filter of 2^31 elements, nearly
        replace(stage, batch=1, channels=1, size=(46340, 46340), kernel=(3, 3)),
        replace(stage, kernel=(3, 3), channels_last=True),
    ]
    result = run_launches(calls)
    assert result.answers == ["taps"] * 8
    assert [v.layout for v, _, _ in result.launches()] == ["contiguous"] * 7 + ["channels_last"]
    largest = replace(stage, batch=2**31 // (512 * 14 * 14))
    tall = replace(stage, kernel=(255, 27))
    assert run_launches([replace(stage, kernel=(5, 5)), tall]).answers == ["toeplitz"] * 2
    assert run_launches([largest]).answers == ["whole image"]


def test_pytorch_serves_what_no_kernel_does_and_one_warning_says_so(run_launches):
    too_many_channels = replace(STAGES["stage3"], channels=65536)
    too_many_pixels = replace(STAGES["stage3"], batch=1, channels=1, size=(46341, 46341))
    too_wide = replace(STAGES["stage3"], batch=1, channels=1, size=(1, 2**32 + 64))
    too_many_taps = replace(STAGES["stage3"], channels=2**15, kernel=(257, 257))
    sizes = [too_many_channels, too_many_pixels, too_wide, too_many_taps]
    refused = [(STAGES["stage1"], 75), (STAGES["stage1"], 130), *((call, 90) for call in sizes)]
    for call, architecture in refused:
        result = run_launches([call] * 3, architecture, contexts=(1, 2) * 2)
        assert result.answers == ["pytorch"] * 12
        assert result.stderr == FALLBACK
        assert result.log == []


@pytest.mark.parametrize("architecture", [87, 103, 121])
def test_an_architecture_between(run_launches, architecture):
    """8.7 runs the newest of 8.x; from 9.0 on a cubin runs only on its architecture."""
    result = run_launches([STAGES["stage1"], replace(STAGES["stage1"], kernel=(3, 3))], architecture)
    if architecture == 87:
        assert [v.architecture for v, _, _ in result.launches()] == [80, 80, 86]
    else:
        assert result.answers == ["pytorch"] * 2

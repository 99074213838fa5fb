"""Which cubin the library launches, and with what: against a stand-in for the CUDA driver, in a program of its own."""

import os
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kernels.depthwise_conv2d.dispatch import TOEPLITZ_TAPS
from kernels.depthwise_conv2d.packing import PACK_GROUP
from kernels.depthwise_conv2d.toeplitz import Tile, log_images
from kernels.native import aot, variants

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "kernels/native"
DTYPES = tuple(variants.POINTER)
FALLBACK = "widefield: no kernel is compiled for this GPU; PyTorch's convolution is used instead\n"
SIZES = {"i32": "4", "i64": "8"}  # of a parameter; the pointers' is 8


@dataclass(frozen=True)
class Call:
    dtype: str
    batch: int
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    channels_last: bool = False
    activation: int = 2
    has_bias: bool = True
    input: int = 1 << 20
    output: int = 2 << 20
    stream: int = 77

    def line(self) -> str:
        numbers = (DTYPES.index(self.dtype), int(self.channels_last), self.batch, self.channels, *self.size)
        numbers += (*self.kernel, self.activation, int(self.has_bias), self.input, self.output, self.stream)
        return " ".join(map(str, numbers))


STAGES = {  # of RepLKNet-31B at 224 px
    "stage1": Call("bfloat16", 64, 128, (56, 56), (31, 31)),
    "stage2": Call("bfloat16", 64, 256, (28, 28), (29, 29)),
    "stage3": Call("bfloat16", 64, 512, (14, 14), (27, 27)),
    "stage4": Call("bfloat16", 64, 1024, (7, 7), (13, 13)),
}


def parameters(variant):
    """(name, bytes) of a cubin's parameters: what is no constant, in the kernel's order, then two scratch pointers."""
    kernel, signature, constants, _ = variant.specialisation()
    named = [(name, SIZES.get(signature[name], "8")) for name in kernel.arg_names if name not in constants]
    return [*named, ("global_scratch", "8"), ("profile_scratch", "8")]


@dataclass(frozen=True)
class Result:
    answers: list[str]
    log: list[list[str]]
    stderr: str

    def launches(self) -> list[tuple[object, list[int], dict[str, int]]]:
        """(variant, [grid, block, shared bytes, stream, context], parameters by name) in order."""
        by_name = {str(variant): variant for variant in variants.all_variants()}
        found = []
        for words in self.log:
            if words[0] == "launch":
                variant, numbers = by_name[words[1]], [int(word) for word in words[2:]]
                names = [name for name, _ in parameters(variant)]
                found.append((variant, numbers[:9], dict(zip(names, numbers[9:], strict=True))))
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Builds the program with a table whose images are the variants' names, and the driver that reads them."""
    folder = tmp_path_factory.mktemp("launch")
    kernels = []
    names = {"Simple": "depthwise_conv2d_kernel", "Pack": "pack_filter_kernel", "Toeplitz": "toeplitz_kernel"}
    for variant in variants.all_variants():
        image = folder / f"{variant}.cubin"
        image.write_bytes(str(variant).encode() + b"\0")
        shared = 65552 if isinstance(variant, variants.Toeplitz) and variant.block_m == 64 else 20480
        kernels.append(aot.CompiledKernel(variant, str(image), names[type(variant).__name__], shared, variant.warps))
    (folder / "cubins.cpp").write_text(aot.cubin_table(kernels))
    compile = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
    sources = [NATIVE / "cuda_launch.cpp", NATIVE / "cuda_driver.cpp"]
    sources += [HERE / "launch_program.cpp", folder / "cubins.cpp"]
    subprocess.run([*compile, *map(str, sources), "-o", str(folder / "program"), "-pthread"], check=True)
    fake = [str(HERE / "fake_cuda_driver.cpp"), "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*compile, "-shared", "-fPIC", *fake], check=True)
    samples = {names[type(v).__name__]: v for v in variants.all_variants()}
    sizes = {f"FAKE_{name}": "".join(size for _, size in parameters(v)) for name, v in samples.items()}

    def run(calls, architecture=90, contexts=(1,), fail="", driver=True, device=0):
        environment = {**os.environ, **sizes, "FAKE_ARCHITECTURE": str(architecture), "FAKE_FAIL": fail}
        environment |= {"FAKE_LOG": str(folder / "log"), "LD_LIBRARY_PATH": str(folder) if driver else ""}
        (folder / "log").write_text("")
        command = [str(folder / "program"), *map(str, (device, *contexts))]
        text = "\n".join(call.line() for call in calls)
        done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=True)
        log = [line.split() for line in (folder / "log").read_text().splitlines()]
        return Result(done.stdout.splitlines(), log, done.stderr)

    return run


TILES = {  # of batch 1 and of 64
    "stage1": ((2, 32, 64, 16), (4, 32, 64, 16)),
    "stage2": ((2, 32, 32, 0), (4, 32, 32, 0)),
    "stage3": ((4, 16, 16, 0), (8, 16, 16, 0)),
    "stage4": ((4, 8, 8, 0), (8, 8, 8, 0)),
}


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("batch", [1, 64])
def test_tile_and_grid_of_each_stage(run, architecture, stage, batch):
    """The grid is Python's of the same tile."""
    call = replace(STAGES[stage], batch=batch)
    result = run([call], architecture)
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
def test_images_of_a_program_are_python_s(run, batch):
    calls = [Call("float16", batch, 2, (height, 28), (7, 7)) for height in (1, 3, 9, 28, 57)]
    for call, (product, _, values) in zip(calls, run(calls).launches()[1::2], strict=True):
        tile = Tile(*product.tile, product.block_m, 64, product.warps, 3)
        assert values["log_images"] == log_images(batch, call.size[0], tile)


def test_parameters_by_name(run):
    """Every value lies where the kernel's signature has its name."""
    call = Call("float16", 3, 6, (9, 40), (11, 31), activation=1, input=1 << 21, output=1 << 22)
    small = replace(call, kernel=(5, 3), has_bias=False)
    result = run([call, small])
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


def test_every_odd_filter_and_width_has_a_tile_that_covers_it(run):
    """From 5 to 51 columns, but for the rare rest that kernel.py serves; whatever is chosen sees all its columns."""
    calls = [
        Call(dtype, 2, 4, (9, width), (5, kernel))
        for dtype in DTYPES
        for width in (1, 7, 8, 9, 14, 16, 17, 27, 28, 31, 32, 33, 40, 56, 57)
        for kernel in range(5, 53, 2)
    ]
    result = run(calls)
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
def test_alignment(run, call, alignment):
    result = run([call])
    assert result.answers == ["toeplitz"]
    assert result.launches()[1][0].alignment == alignment


@pytest.mark.parametrize(("batch", "block_m"), [(1, 16), (2, 16), (3, 64), (65, 64)])
def test_blocks_fit_the_batch(run, batch, block_m):
    assert run([replace(STAGES["stage1"], batch=batch)]).launches()[1][0].block_m == block_m


def test_what_the_simple_kernel_serves(run):
    """Few taps, more elements than int32 counts, too many rows of the filter for the grid."""
    assert TOEPLITZ_TAPS == 25
    stage = STAGES["stage3"]
    calls = [
        replace(stage, kernel=(3, 7)),
        replace(stage, kernel=(23, 1)),
        replace(stage, batch=2**31 // (512 * 14 * 14) + 1),
        replace(stage, kernel=(8 * 65537, 1)),
        replace(stage, kernel=(3, 3), channels_last=True),
    ]
    result = run(calls)
    assert result.answers == ["simple"] * 5
    assert [v.layout for v, _, _ in result.launches()] == ["contiguous"] * 4 + ["channels_last"]
    largest = replace(stage, batch=2**31 // (512 * 14 * 14))
    assert run([replace(stage, kernel=(5, 5)), largest]).answers == ["toeplitz"] * 2


def test_pytorch_serves_what_no_kernel_does_and_one_warning_says_so(run):
    too_many_channels = replace(STAGES["stage3"], channels=65536)
    for calls, architecture in (([STAGES["stage1"]], 75), ([STAGES["stage1"]], 130), ([too_many_channels], 90)):
        result = run(calls * 3, architecture, contexts=(1, 2) * 2)
        assert result.answers == ["pytorch"] * 12
        assert result.stderr == FALLBACK
        assert result.log == []


@pytest.mark.parametrize("architecture", [87, 103, 121])
def test_an_architecture_between(run, architecture):
    """8.7 runs the newest of 8.x; from 9.0 on a cubin is for its architecture alone."""
    result = run([STAGES["stage1"], replace(STAGES["stage1"], kernel=(3, 3))], architecture)
    if architecture == 87:
        assert [v.architecture for v, _, _ in result.launches()] == [80, 80, 86]
    else:
        assert result.answers == ["pytorch"] * 2


def test_threads_load_each_module_once_a_context(run):
    """And with this thread's capture mode relaxed, so that a graph's capture is not broken; then it is as it was."""
    result = run([*STAGES.values()] * 20, contexts=(1, 2) * 4)
    assert result.answers == ["toeplitz"] * 8 * 80
    loads = Counter(tuple(words[1:]) for words in result.log if words[0] == "load")
    assert set(loads.values()) == {1}
    assert len(loads) == 2 * (1 + 4)  # contexts x (packing and a tile for each stage)
    assert {words[2] for words in loads} == {"1", "2"}
    assert {words[4] for words in loads} == {"2"}
    assert len(result.launches()) == 8 * 80 * 2


@pytest.mark.parametrize("device", [0, 1])
def test_a_thread_without_a_context_launches_in_its_device_s_primary_one(run, device):
    """As PyTorch's threads do that have had nothing but cached memory yet; one of another device's context too."""
    others = 11 - 10 * device  # a context of the other device
    result = run([*STAGES.values()] * 5, contexts=(0, others) * 4, device=device)
    assert result.answers == ["toeplitz"] * 8 * 20  # and every thread's context is what it was
    primary = str(10 * device + 9)
    assert {numbers[8] for _, numbers, _ in result.launches()} == {int(primary)}
    assert {words[3] for words in result.log if words[0] == "load"} == {primary}
    assert [words for words in result.log if words[0] == "retain"] == [["retain", str(device), "mode", "2"]]


def test_a_thread_s_own_context_of_the_device_is_kept(run):
    result = run([STAGES["stage1"]], contexts=(13,), device=1)
    assert [numbers[8] for _, numbers, _ in result.launches()] == [13, 13]
    assert not [words for words in result.log if words[0] == "retain"]


def test_large_shared_memory_is_asked_for_once(run):
    result = run([STAGES["stage1"]] * 2)
    name = str(result.launches()[1][0])
    assert [words for words in result.log if words[0] == "attribute"] == [["attribute", name, "8", "65552"]]
    assert result.launches()[1][1][6] == 65552
    small = run([replace(STAGES["stage1"], batch=1)])
    assert not [words for words in small.log if words[0] == "attribute"]


CALLS = ["cuDeviceGet", "cuCtxGetCurrent", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuModuleLoadData"]


@pytest.mark.parametrize("call", [*CALLS, "cuFuncSetAttribute", "cuLaunchKernel"])
def test_a_failing_call_is_named(run, call):
    message = f"widefield: {call} failed: an illegal memory access was encountered"
    assert run([STAGES["stage1"]] * 2, contexts=(0,), fail=call).answers == [message] * 2


def test_a_missing_driver_is_named(run):
    answer = "widefield: libcuda.so.1 was not found: is the NVIDIA driver installed?"
    assert run([STAGES["stage1"]], driver=False).answers == [answer]

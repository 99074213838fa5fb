"""The native library's launches in a program of their own, against a stand-in for the CUDA driver."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch

from kernels.native import aot, build, variants

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "kernels/native"
DTYPES = tuple(variants.POINTER)
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
LAYERS = STAGES | {  # and of RepLKNet-31L at 384 px
    "stage1 at 384": Call("float16", 64, 192, (96, 96), (31, 31)),
    "stage2 at 384": Call("float16", 64, 384, (48, 48), (29, 29)),
    "stage3 at 384": Call("float16", 64, 768, (24, 24), (27, 27)),
    "stage4 at 384": Call("float16", 64, 1536, (12, 12), (13, 13)),
}


def python_launches(call, tile=None):
    """Return (grid, arguments by the kernel's names) of each kernel that Python launches for a call. `tile` replaces
    Python's choice, which is the whole-image kernel where that suits."""
    from kernels.depthwise_conv2d import packing, toeplitz, whole_image
    from kernels.depthwise_conv2d.activation import ACTIVATIONS

    launches = []

    def recorder(kernel):
        class Launch:
            def __getitem__(self, grid):
                def launch(*arguments, **constants):
                    launches.append((grid, dict(zip(kernel.arg_names, arguments, strict=False)) | constants))

                return launch

        return Launch()

    def empty(*shape):  # of no memory, aligned to all
        return torch.empty(shape, dtype=getattr(torch, call.dtype), device="meta")

    input, weight = empty(call.batch, call.channels, *call.size), empty(call.channels, 1, *call.kernel)
    bias = empty(call.channels) if call.has_bias else None
    activation = next(name for name, number in ACTIVATIONS.items() if number == call.activation)
    with (
        mock.patch.object(toeplitz, "toeplitz_kernel", recorder(toeplitz.toeplitz_kernel)),
        mock.patch.object(packing, "pack_filter_kernel", recorder(packing.pack_filter_kernel)),
        mock.patch.object(whole_image, "whole_image_kernel", recorder(whole_image.whole_image_kernel)),
    ):
        if tile is None and whole_image.suits(input, call.kernel):
            whole_image.launch(input, weight, bias, input, activation)
        else:
            toeplitz.launch(input, weight, bias, input, activation, tile=tile)
    return launches


def parameters(variant):
    """Return (name, bytes) of a cubin's parameters: non-constants in the kernel's order, then two scratch pointers."""
    kernel, signature, constants, _ = variant.specialisation()
    named = [(name, SIZES.get(signature[name], "8")) for name in kernel.arg_names if name not in constants]
    return [*named, ("global_scratch", "8"), ("profile_scratch", "8")]


def name(variant):
    """One name for all cubins with the same parameters."""
    kernel, _, constants, _ = variant.specialisation()
    return f"{kernel.__name__}_{'relu' if 'ACTIVATION' in constants else 'any'}"


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
def run_launches(tmp_path_factory):
    """Build the program with a table whose images are the variants' names, and the driver that reads them."""
    folder = tmp_path_factory.mktemp("launch")
    kernels = []
    for variant in variants.all_variants():
        image = folder / f"{variant}.cubin"
        image.write_bytes(str(variant).encode() + b"\0")
        shared = 65552 if isinstance(variant, variants.Toeplitz) and variant.block_m == 128 else 20480
        kernels.append(aot.CompiledKernel(variant, str(image), name(variant), shared, variant.warps))
    (folder / "cubins.cpp").write_text(build.cubin_table(kernels))
    compile = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
    sources = [NATIVE / "cuda_launch.cpp", NATIVE / "cuda_driver.cpp"]
    sources += [HERE / "launch_program.cpp", folder / "cubins.cpp"]
    subprocess.run([*compile, *map(str, sources), "-o", str(folder / "program"), "-pthread"], check=True)
    fake = [str(HERE / "fake_cuda_driver.cpp"), "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*compile, "-shared", "-fPIC", *fake], check=True)
    samples = {name(v): v for v in variants.all_variants()}
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

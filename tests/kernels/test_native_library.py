"""libwidefield.so in processes that know nothing of Python's `kernels`, and what it links."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from machine_code import NEW_TRITON

from kernels import depthwise_conv2d, native_library
from kernels.depthwise_conv2d.activation import ACTIVATIONS
from kernels.depthwise_conv2d.op import SCHEMA
from kernels.depthwise_conv2d.toeplitz import choose_tile
from kernels.native import aot, build, variants

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "kernels/native/lib/libwidefield.so"


def test_cpp_has_the_same_schema():
    source = (ROOT / "kernels/native/ops.cpp").read_text()
    assert re.search(r'm\.def\("(.*)"\)', source).group(1) == SCHEMA  # type: ignore[union-attr]


def test_cpp_has_the_same_numbers_of_activations():
    """The library passes its number to the kernels that activation.py ends."""
    source = (ROOT / "kernels/native/depthwise_conv2d_cpu.h").read_text()
    numbers = re.search(r"enum class Activation \{ (.*) \};", source).group(1)  # type: ignore[union-attr]
    assert numbers == ", ".join(f"{name} = {number}" for name, number in ACTIVATIONS.items())


def test_it_links_torch_only():
    needed = subprocess.run(["readelf", "-d", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"NEEDED.*\[(.*?)\]", needed)
    assert any(name.startswith("libtorch_cpu") for name in libraries)
    assert not [name for name in libraries if re.search(r"python|cuda", name)], libraries
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", str(LIBRARY)], capture_output=True, text=True, check=True
    )
    mangled = [
        line.split()[-1] for line in undefined.stdout.splitlines() if re.search(r" _ZN?K?(2at|3c10|5torch)", line)
    ]
    assert not mangled, f"C++ symbols of libtorch are no stable ABI: {mangled}"


def test_traced_model_runs_in_a_process_without_kernels(tmp_path):
    weight = torch.randn(16, 1, 13, 13)
    traced = torch.jit.trace(lambda x: depthwise_conv2d(x, weight, None, "relu"), torch.randn(2, 16, 9, 9))
    traced.save(str(tmp_path / "model.pt"))
    x = torch.randn(5, 16, 11, 8)
    torch.save((x, torch.relu(torch.nn.functional.conv2d(x, weight, padding=6, groups=16))), tmp_path / "case.pt")
    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]); model = torch.jit.load(sys.argv[2] + '/model.pt');"
        "x, y = torch.load(sys.argv[2] + '/case.pt'); torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4);"
        "assert 'kernels' not in sys.modules; print('right')"
    )
    command = [sys.executable, "-c", code, str(LIBRARY), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "right", done.stderr


def test_taking_the_library_s_place_on_cuda_warns_of_nothing():
    """PyTorch 2.11 warns of a registration that replaces another, though it was told to allow it."""
    command = [sys.executable, "-W", "always", "-c", "import kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_second_build_does_nothing():
    before = LIBRARY.stat().st_mtime_ns
    assert "up to date" in build.build()
    assert LIBRARY.stat().st_mtime_ns == before


def test_a_change_of_what_they_are_made_of_is_seen(tmp_path, monkeypatch):
    """The stamp covers every source, the compiler's flags, PyTorch and Triton."""
    native, kernels, torch_folder = (tmp_path / name for name in ("native", "depthwise_conv2d", "torch"))
    shutil.copytree(ROOT / "kernels/native", native, ignore=shutil.ignore_patterns("lib"))
    shutil.copytree(ROOT / "kernels/depthwise_conv2d", kernels)
    torch_folder.mkdir()
    (torch_folder / "version.py").touch()
    monkeypatch.setattr(build, "HERE", native)
    monkeypatch.setattr(aot, "FOLDER", kernels)

    def made_of():
        return build.fingerprint(torch_folder), aot.source_key("packing.py")

    def differs(before):
        return [now != then for now, then in zip(made_of(), before, strict=True)]

    assert {variant.source for variant in variants.all_variants()} <= set(build.KERNELS)
    sources = [path for path in native.iterdir() if path.suffix in (".cpp", ".h", ".py")]
    for path in [*sources, *(kernels / name for name in build.KERNELS), torch_folder / "version.py"]:
        before = made_of()
        path.write_text(path.read_text() + "\n")
        assert differs(before) == [True, path.name in ("packing.py", "activation.py", "product.py")], path
    before = made_of()
    with monkeypatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, "-DCHANGED"))
        assert differs(before) == [True, False]
    monkeypatch.setenv("WIDEFIELD_ARCHITECTURES", "90 80")
    assert differs(before) == [True, False]
    before = made_of()
    monkeypatch.setenv("WIDEFIELD_ARCHITECTURES", "80  90")
    assert differs(before) == [False, False]
    monkeypatch.setattr(build, "triton_version", lambda: "0.0")
    monkeypatch.setattr(aot.triton, "__version__", "0.0")
    assert differs(before) == [True, True]


def test_missing_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match="apt-get install g\\+\\+"):
        build.build(tmp_path / "lib" / "libwidefield.so")


def test_failed_compilation_keeps_the_old_library(tmp_path, monkeypatch):
    output = tmp_path / "libwidefield.so"
    output.write_bytes(b"old")
    monkeypatch.setattr(build, "compile_kernels", lambda cache: [])
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-no-such-flag"))
    left = tmp_path / f"build-{os.getpid()}"  # by a process that was killed: in a container numbers come again
    left.mkdir()
    with pytest.raises(build.BuildError, match="no-such-flag"):
        build.build(output)
    assert output.read_bytes() == b"old"
    assert set(tmp_path.iterdir()) == {output, left}


def test_no_compiler_runs_on_after_one_failed(tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *cuda_driver.cpp*) while [ ! -e {tmp_path}/started ]; do sleep 0.01; done; exit 1;; esac\n'
        f"touch {tmp_path}/started; (sleep 1; touch {tmp_path}/ran-on) & wait\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "compile_kernels", lambda cache: [])
    with pytest.raises(build.BuildError, match=r"cuda_driver\.cpp"):
        build.build(tmp_path / "lib" / "libwidefield.so")
    time.sleep(1.2)
    assert not (tmp_path / "ran-on").exists()


def test_cpu_only_build_without_triton(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "compile_kernels", lambda cache: [])
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O1"))  # half the time
    output = tmp_path / "libwidefield.so"
    assert "for the CPU only" in build.build(output)
    code = "import sys, torch; torch.ops.load_library(sys.argv[1]); print(torch.ops.widefield.depthwise_conv2d)"
    done = subprocess.run([sys.executable, "-c", code, str(output)], capture_output=True, text=True)
    assert "widefield.depthwise_conv2d" in done.stdout, done.stderr


def test_a_library_loaded_by_hand_is_the_one_that_counts(tmp_path):
    copy = shutil.copy(LIBRARY, tmp_path)
    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]); from kernels import depthwise_conv2d\n"
        "x, w = torch.ones(1, 2, 3, 3, requires_grad=True), torch.ones(2, 1, 3, 3)\n"
        "depthwise_conv2d(x, w).sum().backward(); print(x.grad.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code, copy], cwd=ROOT, capture_output=True, text=True)
    assert "tensor(98.)" in done.stdout, done.stderr


def test_a_library_for_another_torch_says_so(tmp_path, monkeypatch):
    from kernels import native

    broken = tmp_path / "libwidefield.so"
    broken.write_bytes(b"\x7fELF nothing")
    monkeypatch.setenv("WIDEFIELD_LIBRARY", str(broken))
    assert native_library() == broken
    with pytest.raises(RuntimeError, match="make native"):
        native.load_native_library()
    broken.unlink()
    for named in (broken, tmp_path):
        monkeypatch.setenv("WIDEFIELD_LIBRARY", str(named))
        with pytest.raises(RuntimeError, match=f"WIDEFIELD_LIBRARY={named} is not a file: name a"):
            native.load_native_library()
    monkeypatch.setenv("WIDEFIELD_NATIVE", "0")
    assert not native.load_native_library()
    monkeypatch.setenv("WIDEFIELD_NATIVE", "false")
    with pytest.raises(RuntimeError, match="WIDEFIELD_NATIVE=false: 0 leaves the library out, 1 loads it"):
        native.load_native_library()


@pytest.fixture(scope="module")
def compiled():
    return aot.compile_all(LIBRARY.parent / "cubins")


def test_what_is_compiled(compiled):
    """Every architecture and type; the tensor-core kernels' 8.0 cubins run on 8.6 and 8.9."""
    assert [kernel.variant for kernel in compiled] == variants.all_variants()
    assert len({kernel.file for kernel in compiled}) == len(compiled)
    taps = {(v.architecture, v.dtype, v.layout) for v in variants.all_variants() if isinstance(v, variants.Taps)}
    assert len(taps) == 6 * 3 * 2
    whole = [v for v in variants.all_variants() if isinstance(v, variants.WholeImage)]
    assert {(v.architecture, v.dtype, v.size, v.kernel) for v in whole} == {
        (architecture, dtype, *image)
        for architecture in (80, 90, 100, 120)
        for dtype in ("float16", "bfloat16")
        for image in ((14, 27), (7, 13))
    }
    assert len(compiled) == 228  # a limit to the library's size and to what its build takes


@pytest.mark.parametrize(
    ("named", "few_taps", "tensor_cores"),
    [
        ("90", {90}, {90}),
        (" 86  90", {86, 90}, {80, 90}),
        ("89", {89}, {80}),
        ("", set(variants.ARCHITECTURES), set(variants.TENSOR_CORE_ARCHITECTURES)),
    ],
)
def test_some_architectures(monkeypatch, named, few_taps, tensor_cores):
    """8.6 and 8.9 bring the tensor cores' cubins of 8.0, which they run."""
    monkeypatch.setenv("WIDEFIELD_ARCHITECTURES", named)
    monkeypatch.setattr(aot, "compile_all", lambda cache, chosen: chosen)
    chosen = build.compile_kernels(Path())
    every = [
        v
        for v in variants.all_variants()
        if v.architecture in (few_taps if isinstance(v, variants.Taps) else tensor_cores)
    ]
    assert chosen == every
    assert {type(variant).__name__ for variant in chosen} == set(build.KINDS), "C++ has a table of each"


def test_an_unknown_architecture_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WIDEFIELD_ARCHITECTURES", "90 9.0")
    with pytest.raises(build.BuildError, match=r"WIDEFIELD_ARCHITECTURES has 9\.0: choose among 80 86 89 90 100 120,"):
        build.build(tmp_path / "libwidefield.so")


def test_another_number_of_warps_is_compiled_anew(monkeypatch, tmp_path):
    """toeplitz.py's rule may give others while the kernel's own source stays the same."""
    kernels = []
    (tmp_path / "packing-of_an_older_kernel").mkdir()
    (tmp_path / "older.cubin").touch()
    for warps in (4, 8):
        monkeypatch.setattr(variants.Pack, "warps", warps)
        kernels += aot.compile_all(tmp_path, [variants.Pack(80, 4)])
    assert [kernel.warps for kernel in kernels] == [4, 8]
    assert list(tmp_path.iterdir()) == [Path(kernels[0].file).parent], "what is older goes"
    assert len({Path(kernel.file).read_bytes() for kernel in kernels}) == 2


def test_only_what_is_missing_is_compiled(monkeypatch, tmp_path):
    """All 228 take minutes. Another source or Triton has a folder of its own, in which all are missing."""
    asked = []

    def compile_one(variant, path):
        asked.append(variant)
        path.with_suffix(".json").write_text('{"name": "pack", "shared_bytes": 0, "warps": 4}')

    monkeypatch.setattr(aot, "compile_one", compile_one)
    monkeypatch.setattr(aot, "ProcessPoolExecutor", lambda *_, **__: nullcontext(SimpleNamespace(map=map)))
    first, second = variants.Pack(80, 4), variants.Pack(80, 2)
    for wanted, missing in (([first], [first]), ([first, second], [second]), ([first, second], [])):
        asked.clear()
        assert [kernel.variant for kernel in aot.compile_all(tmp_path, wanted)] == wanted
        assert asked == missing
    monkeypatch.setattr(aot.triton, "__version__", "0.0")
    aot.compile_all(tmp_path, [first, second])
    assert asked == [first, second]


def test_what_was_cut_off_is_compiled_anew(monkeypatch, tmp_path):
    def full(path, text):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    variant = variants.Pack(80, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            aot.compile_all(tmp_path, [variant])
    assert [kernel.variant for kernel in aot.compile_all(tmp_path, [variant])] == [variant]


def test_forms_are_those_that_the_rule_chooses():
    """Each of those compiled is what choose_tile takes of all, for some batch of one of RepLKNet's image sizes."""
    images = {8: (7, 8), 16: (12, 14), 32: (24, 28), 64: (48, 56)}
    for columns, forms in variants.FLAT_FORMS.items():
        tiles = [choose_tile(batch, size, size, 13, 2) for batch in range(1, 129) for size in images[columns]]
        assert {tile.columns for tile in tiles} == {columns}
        assert set(forms) <= {(tile.rows, tile.block_m) for tile in tiles}
    wide = [choose_tile(batch, size, size, 31, 2) for batch in range(1, 129) for size in (80, 96)]
    assert (4, 128) in {(tile.rows, tile.block_m) for tile in wide}
    assert [variants.shipped_forms(architecture) for architecture in (80, 90, 100)] == [[(64, 4, 128)]] * 2 + [[]]


def test_cubins_are_in_the_library(compiled):
    library = LIBRARY.read_bytes()
    for kernel in compiled:
        assert Path(kernel.file).read_bytes() in library, kernel


def nvidia_tool(name: str) -> str:
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__path__[0]) / "bin" / name
    assert path.exists(), path
    return str(path)


def run_tool(name: str, *arguments: str) -> str:
    return subprocess.run([nvidia_tool(name), *arguments], capture_output=True, text=True, check=True).stdout


SAMPLE = [  # one of each kind; all of them are slow
    variants.Taps(89, "float16", "channels_last"),
    variants.Pack(80, 4),
    variants.Pack(100, 2),
    variants.Toeplitz(80, "bfloat16", True, 64, 4, 128, 8, variants.RELU),
    variants.Toeplitz(90, "float16", True, 64, 2, 64, 1),
    variants.Toeplitz(100, "bfloat16", True, 32, 4, 128, 4),
    variants.Toeplitz(120, "float16", True, 16, 1, 32, 2),
    variants.Toeplitz(90, "float32", False, 32, 4, 64, 1),
    variants.WholeImage(90, "bfloat16", 14, 27, 64),
    variants.WholeImage(80, "float16", 7, 13, 16),
]
EVERY = [
    pytest.param(variant, marks=[] if variant in SAMPLE else pytest.mark.slow, id=str(variant))
    for variant in variants.all_variants()
]
SHARED_LIMIT = {80: 99, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block; 8.0's run on 8.6 and 8.9 too
# Blocks of 16 and 32 are too few rows for the instructions of 9.0 and 10.0, which take 64.
TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


@pytest.mark.parametrize("variant", EVERY)
def test_machine_code(compiled, variant):
    """No spills, registers and shared memory within the limits, and the parameters that cuda_launch.cpp passes; in
    the tensor-core kernel its instructions, and asynchronous copies of the image where its rows are aligned."""
    (kernel,) = [kernel for kernel in compiled if kernel.variant == variant]
    usage = run_tool("cuobjdump", "-res-usage", kernel.file)
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    old = not NEW_TRITON and getattr(variant, "dtype", "") == "float32"  # some float32 forms spill there
    assert used["STACK"] <= (32 if old else 0), usage
    assert used["LOCAL"] == 0, usage
    assert 0 < used["REG"] * 32 * kernel.warps <= 65536
    assert kernel.shared_bytes <= SHARED_LIMIT[variant.architecture] * 1024

    listing = run_tool("cuobjdump", "-elf", kernel.file)
    infos = re.findall(r"Ordinal : 0x([0-9a-f]+)\s+Offset\s+: 0x[0-9a-f]+\s+Size\s+: 0x([0-9a-f]+)", listing)
    sizes = {int(ordinal, 16): int(size, 16) for ordinal, size in infos}
    function, signature, constants, _ = variant.specialisation()
    width = {"i32": 4, "i64": 8}
    expected = [width.get(signature[name], 8) for name in function.arg_names if name not in constants]
    assert [sizes[i] for i in sorted(sizes)] == [*expected, 8, 8]  # and Triton's two scratch pointers

    code = run_tool("nvdisasm", "-c", kernel.file)
    assert old or re.search(r"\b(LDL|STL)\b", code) is None
    if isinstance(variant, variants.Pack):
        assert f"STG.E.{32 * variant.element_bytes}" in code  # four elements at once
    if isinstance(variant, variants.Toeplitz):
        instruction = TENSOR_CORES[variant.architecture] if variant.block_m >= 64 else "HMMA"
        assert (re.search(rf"\b{instruction}\b", code) is not None) == (variant.dtype != "float32")
        assert "LDGSTS" in code
        assert variant.alignment == 1 or "STS.U16" not in code
    if isinstance(variant, variants.WholeImage):
        instruction = TENSOR_CORES[variant.architecture] if variant.block_n >= 64 else "HMMA"
        assert re.search(rf"\b{instruction}\b", code) is not None
        taps = re.findall(r"LDG\.E\.U16\S* R\d+, .*", code)
        assert sum("+0x" in tap or "+-0x" in tap for tap in taps) > len(taps) / 3  # a constant from one another

"""Compile a Triton-language kernel for an architecture that is not present, and read its machine code."""

import importlib.metadata
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
ARCHITECTURES = [  # 8.6 and 8.9 have 8.0's instructions and 12.0's shared memory: they are slow
    pytest.param(each, marks=pytest.mark.slow if each in (86, 89) else ()) for each in sorted(SHARED_LIMIT)
]


# What is said of the machine code holds from Triton 3.9 on. In the code of 3.6 (PyTorch 2.11) the loss takes 179 to 204
# registers, and the reduction and some float32 forms of the native library spill.
NEW_TRITON = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2]) >= (3, 9)


@dataclass(frozen=True)
class MachineCode:
    text: str
    registers: int
    stack: int
    shared: int
    ir: str  # Triton's

    def has(self, instruction: str) -> bool:
        return re.search(rf"\b{re.escape(instruction)}\b", self.text) is not None

    def check(self, architecture: int, warps: int) -> None:
        """No spills; registers and shared memory within a block's limits."""
        assert not self.has("LDL")
        assert not self.has("STL")
        assert self.stack == 0
        assert self.registers * 32 * warps <= 65536
        assert self.shared <= SHARED_LIMIT[architecture] * 1024


def run_tool(name: str, *arguments: str) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=True).stdout


def machine_code(
    kernel, architecture, pointers, constants, warps, stages, folder: Path, multiples=(), registers=None
) -> MachineCode:
    """Compile as the just-in-time compiler does for aligned pointers. `pointers` has their types by name; the other
    arguments are 32-bit integers, those in `multiples` multiples of 16; `registers` limits a thread's."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    sixteen = {*pointers, *multiples}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in sixteen}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = run_tool("cuobjdump", "--dump-resource-usage", str(path))
    (registers,), (stack,) = re.findall(r"REG:(\d+)", usage), re.findall(r"STACK:(\d+)", usage)
    text, shared = run_tool("nvdisasm", "-c", str(path)), compiled.metadata.shared
    return MachineCode(text, int(registers), int(stack), shared, compiled.asm["ttir"])

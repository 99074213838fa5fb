"""Results files with the machine and the versions, and checks of what is going to be timed."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
SAMPLE_S, BUSY_CORES = 2.0, 0.2  # before a measurement: other work is looked for so long, and may use so much
SOURCES = (".py", ".cpp", ".h", ".json", ".txt")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """The processor, and the cores and memory that this process may use."""
    described = Path("/proc/cpuinfo").read_text()
    names = (line.split(":", 1)[1].strip() for line in described.splitlines() if line.startswith("model name"))
    cpu = next(names, platform.processor())
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {name} " in described]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": cores(), "instructions": sets, "memory_gib": round(memory, 1)}


def pin_float32() -> None:
    """Compute float32 on a GPU as IEEE float32: by default cuDNN uses TF32, and the environment may ask cuBLAS to."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def gpu() -> dict[str, Any]:
    """The current CUDA device, the versions of CUDA and cuDNN, and whether float32 is computed in TF32."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
    }


def name_on(hardware: dict[str, Any], name: str) -> str:
    """The name of one GPU's results file: "kernels", "NVIDIA H200" -> kernels_nvidia_h200."""
    return f"{name}_" + re.sub(r"\W+", "_", hardware["name"].lower()).strip("_")


def name_here(name: str) -> str:
    """The name of this processor's results file: one with AMX has its own, "kernels_cpu" -> kernels_cpu_amx."""
    return f"{name}_amx" if "amx_bf16" in machine()["instructions"] else name


def versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def code(root: Path) -> dict[str, Any]:
    """The commit of a checkout, and whether anything but results has changed since; empty outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root.resolve():  # installed inside another project's checkout
            return {}
        changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "changed_since": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def circumstances() -> dict[str, Any]:
    """The date, the machine and, in a checkout, the commit."""
    return {"date": date.today().isoformat(), "machine": machine(), **code(ROOT)}


def write_results(name: str, **content: Any) -> Path:
    """Write benchmarks/results/<name>.json, with the date and the machine."""
    return write_document(RESULTS / f"{name}.json", **content)


def write_document(path: Path, **content: Any) -> Path:
    """Write a JSON file of results, with its name and `circumstances`.

    It replaces an earlier file only when it is complete: an interrupted call or a full disk leaves the earlier one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": path.stem, **circumstances(), **content}
    text = json.dumps(document, indent=2, default=asdict) + "\n"
    if path.exists() and not path.is_file():  # such as /dev/stdout
        path.write_text(text)
        return path
    # Not by models.files, which imports PyTorch and kernels: gpu-check tells of a machine that has none.
    whole = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        whole.write_text(text)
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
    return path


def publish(name: str, *, warning: str | None, **content: Any) -> None:
    """`write_results` with a warning that makes the figures doubtful, if any; prints the path."""
    path = write_results(name, warning=warning, **content)
    print(f"wrote {path}" + (f"; {warning}" if warning else ""))


def reason(failure: BaseException) -> str:
    """The type of an exception and the first line of what it says."""
    return f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"


def busy_s() -> float:
    """Seconds, since the machine's start, in which the cores that this process may use were not idle."""
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    seconds = 0.0
    for name, *ticks in map(str.split, Path("/proc/stat").read_text().splitlines()):
        if name in own:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, ticks)
            seconds += (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return seconds


def other_work_warning() -> str | None:
    """A line if the cores are busy while this process sleeps, which would change the figures.

    Not by the load average: its minute has the benchmark that ran before.
    """
    begun, started = busy_s(), time.monotonic()
    time.sleep(SAMPLE_S)
    busy = (busy_s() - begun) / (time.monotonic() - started)
    words = f"other work on {busy:.1f} of {cores()} cores: do not publish these figures"
    return words if busy > BUSY_CORES else None


def fingerprint(*paths: str, **known: Any) -> str:
    """A hash of the sources in `paths` (files or folders, from the root), the machine and `known`.

    A kept run is used again only if its fingerprint is the same.
    """
    digest = hashlib.sha256(json.dumps([machine(), known], sort_keys=True).encode())
    for top in (ROOT / path for path in paths):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(ROOT)
            if path.suffix in SOURCES and "lib" not in name.parts:  # is built from the others
                digest.update(str(name).encode() + path.read_bytes())
    return digest.hexdigest()


def run_as_served(module: str, spin: bool = False) -> None:
    """Restart this benchmark with the allocator settings of a server's processes, which glibc reads at the start.

    `spin`: also with the server's OpenMP spin count, for a loop in this process that is compared with a server.
    """
    # Imported here: benchmarks of a GPU also run where what the server needs is not installed.
    from server.tritonserver_options import ENVIRONMENT, SPIN

    wanted = ENVIRONMENT | SPIN if spin else ENVIRONMENT
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def require_native() -> None:
    """Raise `SystemExit` if PyTorch's convolution, or a library of other sources, would be timed as Widefield's."""
    import kernels  # noqa: F401 - loads the library
    from kernels.native import is_loaded, native_library
    from kernels.native.build import is_current

    if not is_loaded():
        raise SystemExit(
            "the native library is not loaded, so that PyTorch's convolution would be timed as Widefield's: "
            "python kernels/native/build.py, and unset WIDEFIELD_NATIVE"
        )
    if (library := native_library()) is None or not is_current(library):
        raise SystemExit(
            f"{library} is not built from these sources, which would be said to be timed: "
            "python kernels/native/build.py, and unset WIDEFIELD_LIBRARY"
        )


def require_server() -> None:
    """Raise `SystemExit` if a server would run a library of other sources, or without one."""
    from server.backends import build as backends

    require_native()
    if other := [name for name, library in backends.LIBRARIES.items() if not backends.is_current(library)]:
        raise SystemExit(
            f"the server's {', '.join(other)}: not built from these sources, which would be said to be timed: "
            "python server/backends/build.py"
        )


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's Core, a single one that the process keeps.

    Each Core's CPU plugin installs its own signal stack and unmaps it at its end. With a second Core in between, the
    thread is left with an unmapped stack, and the next signal ends the process.
    """
    import openvino

    return openvino.Core()

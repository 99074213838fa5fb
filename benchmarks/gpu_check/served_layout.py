"""The file that a server loads, RepLKNet-31B in bfloat16, on a GPU: as it is exported, and in contiguous memory.

This process traces both on the CPU. A second one, which never imports `kernels`, times them with the native library at
each batch size; results: served_layout_<gpu>.json. It decides export.torchscript.ServedBackbone's layout on a GPU.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.commands import no_options
from benchmarks.cuda_timing import elapsed_ms
from benchmarks.gpu_check.alone import check_alone, run_alone
from benchmarks.harness import gpu, name_on, pin_float32, versions, write_results
from benchmarks.timing import interleaved

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
BATCHES = (64, 8, 1)
ROUNDS = 10
TRACED_SIZE = 64  # of the images: a trace serves every size, and this one takes less time
TOLERANCE = 0.05  # of the norm of the logits: bfloat16 rounds otherwise in another layout


def write_files(arch: str, folder: Path) -> None:
    """Write <layout>.pt, traced as export/ does."""
    from export.torchscript import ServedBackbone, trace_backbone
    from models import create_model, reparameterize

    class Contiguous(ServedBackbone):
        def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
            return super().forward(pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))

    torch.manual_seed(0)
    model = reparameterize(create_model(arch).eval())
    for (layout, memory_format), kind in zip(LAYOUTS.items(), (ServedBackbone, Contiguous), strict=True):
        backbone = kind(model, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "bf16")
        backbone.model.to(memory_format=memory_format)
        trace_backbone(backbone, TRACED_SIZE).save(str(folder / f"{layout}.pt"))


@torch.inference_mode()
def measure(folder: Path, size: int, device: str = "cuda") -> None:
    """Time both files. Raises `RuntimeError` if their answers differ, or if `kernels` was imported."""
    pin_float32()
    files = {layout: torch.jit.load(str(folder / f"{layout}.pt"), map_location=device) for layout in LAYOUTS}
    hardware, rows = gpu(), []
    for batch in BATCHES:
        pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
        last, plain = (files[layout](pixels).float() for layout in LAYOUTS)
        distance = float((last - plain).norm() / plain.norm())
        if not distance <= TOLERANCE:
            raise RuntimeError(f"batch {batch}: the logits differ by {distance:.2g} of their norm")
        runs = {layout: lambda file=file, pixels=pixels: file(pixels) for layout, file in files.items()}
        times = interleaved(runs, ROUNDS, clock=elapsed_ms)
        rows.append({"batch": batch, "ms": times, "distance": distance})
        print(f"batch {batch}: " + ", ".join(f"{name} {timing.median:.2f} ms" for name, timing in times.items()))
        write_results(name_on(hardware, "served_layout"), gpu=hardware, versions=versions("torch"), rows=rows)
    check_alone()


def main(arch: str = "replknet_31b", size: int = 224) -> int:
    done = run_alone("benchmarks.gpu_check.served_layout", partial(write_files, arch), str(size))
    return 1 if done is None else done.returncode


if __name__ == "__main__":
    if len(sys.argv) == 4:
        torch.ops.load_library(sys.argv[1])
        measure(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit(0)
    no_options(__doc__, __spec__)
    sys.exit(main())

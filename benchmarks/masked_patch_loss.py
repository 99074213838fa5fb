"""The masked-patch loss, forward and backward, against SimMIM's own formulation in PyTorch, eager and compiled.

    python -m benchmarks.masked_patch_loss [--device cuda] [--batches 32 128] [--rounds 15]

At the published recipe: stride 32, 60 % of the 32-pixel patches masked, image in float32, prediction in float32 (on a
CPU) or bfloat16 (on a GPU), in both memory formats. On a GPU a round replays one CUDA graph over inputs that together
exceed the cache, so that no launch is timed. `of_copy` is the least traffic (masked share of prediction and image read,
gradient written) over the time, as a share of a copy's bandwidth in the same process: on a CPU that of a copy of as
many bytes into existing memory, timed in turn; on a GPU that of the limit in docs/kernels.md. A wrong answer ends the
run.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.commands import add_batches, add_rounds, command_parser
from benchmarks.cuda_timing import captured, replayed
from benchmarks.harness import cores, gpu, other_work_warning, pin_float32, publish, run_as_served, versions
from benchmarks.kernels.cuda import measure_bandwidths
from benchmarks.timing import Step, Timing, interleaved
from kernels import masked_patch_loss

SIZE, STRIDE, PATCH, RATIO = 192, 32, 32, 0.6
NORMS = ("none", "window", "patch")
CACHE = {"cpu": 0, "cuda": 128 * 2**20}  # bytes that the inputs of a round exceed; a CPU uses one set


def eager(prediction: Tensor, image: Tensor, mask: Tensor, norm: str, window: int = 47) -> Tensor:
    """SimMIM's loss as published; with MAE's normalisation if `norm` is "patch"."""
    if norm == "window":
        mean = F.avg_pool2d(image, window, 1, window // 2, count_include_pad=False)
        square = F.avg_pool2d(image**2, window, 1, window // 2, count_include_pad=False)
        count = F.avg_pool2d(torch.ones_like(image), window, 1, window // 2, count_include_pad=True) * window**2
        var = ((square - mean**2) * (count / (count - 1))).clamp(min=0)
        image = (image - mean) / (var + 1e-6) ** 0.5
    elif norm == "patch":
        rows = F.unfold(image, PATCH, stride=PATCH)
        var, mean = torch.var_mean(rows, dim=1, keepdim=True)
        image = F.fold((rows - mean) / (var + 1e-6) ** 0.5, image.shape[2:], PATCH, stride=PATCH)
    weight = mask.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).unsqueeze(1)
    restored = F.pixel_shuffle(prediction, STRIDE)
    error = F.l1_loss(image, restored, reduction="none")
    return (error * weight).sum() / (weight.sum() + 1e-5) / image.shape[1]


def ours(prediction: Tensor, image: Tensor, mask: Tensor, norm: str) -> Tensor:
    return masked_patch_loss(prediction, image, mask, "l1", norm)


def compiled(*given: Any) -> Tensor:
    return _compiler()(*given)


@functools.cache
def _compiler() -> Callable[..., Tensor]:
    """The compiled loss, made at its first use: torch.compile takes seconds to import."""
    return torch.compile(eager, dynamic=False, fullgraph=True)


IMPLEMENTATIONS = {"eager": eager, "torch.compile": compiled, "widefield": ours}


def inputs(batch: int, size: int, dtype: torch.dtype, layout: torch.memory_format, device: str) -> tuple[Tensor, ...]:
    side = size // STRIDE
    prediction = torch.randn(batch, 3 * STRIDE**2, side, side, device=device).to(dtype, memory_format=layout)
    image = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    order = torch.rand(batch, side * side, device=device).argsort(dim=1)
    mask = (order < math.ceil(RATIO * side * side)).view(batch, side, side).to(torch.float32)
    return prediction.requires_grad_(), image, mask


def step(function: Callable[..., Tensor], sets: list[tuple[Tensor, ...]], norm: str) -> Step:
    def run() -> list[Tensor]:
        return [torch.autograd.grad(function(*tensors, norm), tensors[0])[0] for tensors in sets]

    return run


def check(name: str, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], norm: str) -> None:
    """Raise `SystemExit` if the loss or more than 1 gradient in 10,000 (a sign at a tie) differs from float64's."""
    exact = tensors[0].detach().double().requires_grad_()
    expected = eager(exact, tensors[1].double(), tensors[2].double(), norm)
    expected_grad = torch.autograd.grad(expected, exact)[0]
    loss = function(*tensors, norm)
    grad = torch.autograd.grad(loss, tensors[0])[0]
    off = ~((grad.double() - expected_grad).abs() <= 0.01 * expected_grad.abs().max())  # also true of NaN
    if not abs(loss.item() / expected.item() - 1) < 1e-3 or off.double().mean() > 1e-4:
        raise SystemExit(
            f"{name}, norm {norm}: {loss.item()} against {expected.item()}, {off.double().mean():.2%} of gradients off"
        )


def timed(candidates: dict[str, Step], calls: int, rounds: int, device: str) -> dict[str, Timing]:
    """Time the candidates; milliseconds of one of the `calls` that each makes."""
    if device == "cpu":
        return {name: timing.of_one(calls) for name, timing in interleaved(candidates, rounds).items()}
    torch.cuda.synchronize()  # the inputs are ready for any stream
    with torch.cuda.stream(torch.cuda.Stream()):
        return replayed({name: captured(run) for name, run in candidates.items()}, max(rounds, 2), calls)


def measure(
    batches: list[int],
    size: int,
    rounds: int,
    device: str,
    ceiling: float | None = None,
    names: Sequence[str] = tuple(IMPLEMENTATIONS),
) -> list[dict[str, Any]]:
    """Return a row for each batch, layout and norm, with the implementations `names`.

    `ceiling`: bytes/s, if no copy is to be timed beside the losses.
    """
    rows = []
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    implementations = {name: IMPLEMENTATIONS[name] for name in names}
    for batch in batches:
        for layout in (torch.contiguous_format, torch.channels_last):
            first = inputs(batch, size, dtype, layout, device)
            used = first[0].nbytes + first[1].nbytes
            least = RATIO * used + first[0].nbytes
            sets = [first] + [
                inputs(batch, size, dtype, layout, device) for _ in range(math.ceil(CACHE[device] / used) - 1)
            ]
            sources = [torch.empty(used, dtype=torch.uint8, device=device).random_() for _ in sets if ceiling is None]
            targets = [torch.empty_like(source) for source in sources]
            for norm in NORMS:
                torch.compiler.reset()  # a compiled function keeps eight shapes at most
                for name, function in implementations.items():
                    check(name, function, first, norm)
                candidates = {name: step(function, sets, norm) for name, function in implementations.items()}
                if ceiling is None:
                    pairs = list(zip(targets, sources, strict=True))
                    candidates["copy"] = lambda pairs=pairs: [to.copy_(block) for to, block in pairs]  # type: ignore[misc]
                few = max(2, rounds // 5) if norm == "window" and device == "cpu" else rounds  # eager takes seconds
                timings = timed(candidates, len(sets), few, device)
                bandwidth = ceiling / 1000 if ceiling else 2 * used / timings["copy"].median  # bytes/ms
                row = {"batch": batch, "size": size, "dtype": str(dtype).removeprefix("torch."), "norm": norm}
                row |= {"layout": "nchw" if layout == torch.contiguous_format else "nhwc", "ms": timings}
                row |= {"speedup_over_eager": round(timings["eager"].median / timings["widefield"].median, 2)}
                if compiled := timings.get("torch.compile"):
                    row |= {"speedup_over_compiled": round(compiled.median / timings["widefield"].median, 2)}
                row |= {"of_copy": round(least / timings["widefield"].median / bandwidth, 3)}
                row |= {"bandwidth_gb_per_s": round(bandwidth / 1e6, 1), "least_mb": round(least / 1e6, 2)}
                rows.append(row)
                text = "  ".join(f"{name} {timing.median:8.4f} ms" for name, timing in timings.items())
                print(
                    f"batch {batch} {row['layout']} norm {norm:6}  {text}  {row['speedup_over_eager']}x eager, "
                    f"{row['of_copy']:.0%} of the bandwidth"
                )
    return rows


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on (default: cpu)")
    add_batches(parser, None, "batch sizes (default: 8 on cpu, 32 128 on cuda)")
    add_rounds(parser, 15)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if options.device == "cpu":
        run_as_served("benchmarks.masked_patch_loss")
        torch.set_num_threads(cores())
    torch.manual_seed(0)
    warning = other_work_warning()
    batches = options.batches or {"cpu": [8], "cuda": [32, 128]}[options.device]
    hardware = ceiling = None
    if options.device == "cuda":
        pin_float32()
        hardware = gpu()
        with torch.cuda.stream(torch.cuda.Stream()):
            ceiling = max(measure_bandwidths("cuda").values())
    rows = measure(batches, SIZE, options.rounds, options.device, ceiling)
    name = f"masked_patch_loss_{options.device}"
    publish(name, gpu=hardware, versions=versions("torch"), warning=warning, rows=rows)


if __name__ == "__main__":
    main()

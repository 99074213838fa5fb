"""RepLKNet-31B with the operator against eager PyTorch convolutions: a training step and inference, in bfloat16.

The same weights and images, in turn, in one process; the figures go to results/end_to_end_<gpu>.json. "eager" is the
same model with F.conv2d for every K x K and 5 x 5 depthwise layer. Both are timed in the contiguous layout, which is
compared and in which training/ trains on a GPU, and in channels_last. The operator uses the algorithms that
benchmarks.kernels --tune found, if it was run before.
"""

import os
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import harness
from benchmarks.commands import no_options
from benchmarks.cuda_timing import elapsed_ms
from benchmarks.harness import gpu, name_on, pin_float32, reason, versions, write_results
from benchmarks.timing import Timing
from benchmarks.whole_network import Convolve, as_right_as_eager, depthwise_by, eager, errors_in_norm, training_step
from kernels import depthwise_conv2d
from kernels.depthwise_conv2d import tile_files
from models import create_model, reparameterize

OURS, EAGER = "widefield", "eager"
GOALS = {"training step": 3.0, "inference": 2.5}
BATCHES = (64, 32, 16, 8)
LEAST_ROUNDS, SECONDS = 2, 20.0  # of one comparison: after both no further round is started
CHECKED_IMAGES = 8

Work = Callable[..., list[Tensor]]  # (model, images, precise)


@torch.no_grad()
def infer(model: nn.Module, images: Tensor, precise: bool = False) -> list[Tensor]:
    return [model(images)]


def lay_out(model: nn.Module, layout: torch.memory_format, optimizer: Optimizer | None = None) -> None:
    """Set the memory format of the weights and of the optimiser's moments: a fused step refuses different strides.

    All variants share one state, because none changes the weights.
    """
    model.to(memory_format=layout)
    for state in optimizer.state.values() if optimizer else ():
        for name, value in state.items():
            if value.dim() == 4:  # as Module.to does
                state[name] = value.to(memory_format=layout)


def variants() -> dict[str, tuple[Convolve, torch.memory_format]]:
    return {
        OURS: (depthwise_conv2d, torch.contiguous_format),
        EAGER: (eager, torch.contiguous_format),
        f"{OURS} channels_last": (depthwise_conv2d, torch.channels_last),
        f"{EAGER} channels_last": (eager, torch.channels_last),
    }


def compare(
    model: nn.Module, images: Tensor, work: Work, rounds: int, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Return {"ms": {name: Timing}, "speedup_over_eager", ...}. Raises `ValueError` for a wrong answer."""
    errors, used = check_what_fits(model, images, work, optimizer)
    samples: dict[str, list[float]] = {name: [] for name in variants()}
    deadline = time.monotonic() + SECONDS
    for turn in range(rounds + 1):  # the first warms up
        if turn > LEAST_ROUNDS and time.monotonic() > deadline:
            break
        for name, (convolve, layout) in variants().items():
            lay_out(model, layout, optimizer)
            source = images.contiguous(memory_format=layout)
            with depthwise_by(model, convolve):
                samples[name].append(elapsed_ms(lambda source=source: work(model, source)))  # type: ignore[misc]
    timings = {name: Timing.of(values[1:]) for name, values in samples.items()}
    ours = timings[OURS].median
    return {
        "ms": timings,
        "depthwise_calls": used,
        "errors": errors,
        "speedup_over_eager": round(timings[EAGER].median / ours, 3),
        "speedup_over_eager_channels_last": round(timings[f"{EAGER} channels_last"].median / ours, 3),
    }


def check_what_fits(
    model: nn.Module, images: Tensor, work: Work, optimizer: Optimizer | None = None
) -> tuple[dict[str, list[float]], int]:
    """`check` with the batch that is timed, so that no kernel is compiled for the check alone; if float32 has no memory
    for it, with `CHECKED_IMAGES`."""
    try:
        return check(model, images, work, optimizer)
    except torch.OutOfMemoryError:
        if len(images) <= CHECKED_IMAGES:
            raise
    torch.cuda.empty_cache()
    return check(model, images[:CHECKED_IMAGES], work, optimizer)


def check(
    model: nn.Module, images: Tensor, work: Work, optimizer: Optimizer | None = None
) -> tuple[dict[str, list[float]], int]:
    """Return each variant's errors against eager in float32, relative in norm, and the number of layers computed.

    Raises `ValueError` if one is not `as_right_as_eager`, or if a variant computed fewer layers.
    """
    precise = deepcopy(model).float()
    with depthwise_by(precise, eager):
        exact = work(precise, images.float(), True)
    errors, used = {}, {}
    for name, (convolve, layout) in variants().items():
        lay_out(model, layout, optimizer)
        with depthwise_by(model, convolve) as calls:
            answers = work(model, images.contiguous(memory_format=layout))
        errors[name] = errors_in_norm(answers, exact)
        used[name] = calls[0]
    for name in (OURS, f"{OURS} channels_last"):
        for what, ours, theirs in zip(("logits", "gradient"), errors[name], errors[EAGER], strict=False):
            if not as_right_as_eager(ours, theirs):
                off = f"off float32 by {ours:.2g} of the norm with the operator, {theirs:.2g} eager"
                raise ValueError(f"the {what}: {off} ({name})")
    if len(set(used.values())) != 1 or not used[OURS]:
        raise ValueError(f"depthwise layers computed by each variant: {used}; they must be as many")
    return errors, used[OURS]


def what_fits(batches: tuple[int, ...], run: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Call `run` with the largest batch that fits in memory. Raises `ValueError` if none does."""
    for batch in batches:
        try:
            return {"batch": batch} | run(batch)
        except torch.OutOfMemoryError as error:
            print(f"batch {batch}: {str(error).splitlines()[0]}", flush=True)
            torch.cuda.empty_cache()
    raise ValueError(f"no batch of {batches} fits into the memory")


def comparisons(
    arch: str, size: int, device: str, rounds: int, batches: tuple[int, ...] = BATCHES
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return {"training step", "inference"}, each a function that measures its row."""
    torch.manual_seed(0)
    model = create_model(arch).to(device)
    deploy = reparameterize(model.eval()).to(torch.bfloat16)

    def train(batch: int) -> dict[str, Any]:
        images, labels = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device)
        # A learning rate of 0: AdamW does all its work, and the weights that every variant starts from do not change.
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=device != "cpu")

        def step(timed: nn.Module, images: Tensor, precise: bool = False) -> list[Tensor]:
            own = optimizer if timed is model else None  # not for the float32 copy
            return training_step(timed, images, labels[: len(images)], precise, own)

        return compare(model.train(), images, step, rounds, optimizer)

    def answer(batch: int) -> dict[str, Any]:
        images = torch.randn(batch, 3, size, size, device=device, dtype=torch.bfloat16)
        return compare(deploy, images, infer, rounds)

    return {"training step": partial(what_fits, batches, train), "inference": partial(what_fits, batches, answer)}


def main(arch: str = "replknet_31b", size: int = 224, device: str = "cuda", rounds: int = 5) -> int:
    pin_float32()
    hardware = gpu()
    name = name_on(hardware, "end_to_end")
    os.environ.setdefault("WIDEFIELD_TILES", str(harness.RESULTS / f"{name_on(hardware, 'kernels')}_tiles.json"))
    content = {"gpu": hardware, "arch": arch, "image_size": size, "versions": versions("torch", "triton")}
    content["tuned"] = tile_files.read(tile_files.cache_file())
    failures = []
    for what, measure in comparisons(arch, size, device, rounds).items():
        try:
            row = content[what] = measure()
        except Exception as failure:  # the other is still measured
            failures.append(f"{what}: {reason(failure)}")
            continue
        path = write_results(name, **content)
        times = ", ".join(f"{who} {timing.median:.1f} ms" for who, timing in row["ms"].items())
        met = "met" if row["speedup_over_eager"] >= GOALS[what] else "NOT MET"
        print(f"{what}, batch {row['batch']}: {times}")
        print(f"  {row['speedup_over_eager']}x eager, wanted {GOALS[what]}x: {met}; wrote {path}", flush=True)
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    sys.exit(main())

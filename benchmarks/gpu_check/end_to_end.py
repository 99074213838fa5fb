"""RepLKNet-31B with the operator against eager PyTorch convolutions: a training step and inference, in bfloat16.

The same weights and images, in turn, in one process; the figures go to results/end_to_end_<gpu>.json. "eager" is the
same model with F.conv2d for every K x K and 5 x 5 depthwise layer, in the contiguous and the channels_last layout.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cuda_timing import elapsed_ms
from benchmarks.harness import Timing, gpu, versions, write_results
from kernels import depthwise_conv2d
from models import create_model, reparameterize

OURS, EAGER = "widefield", "eager"
GOALS = {"training step": 3.0, "inference": 2.5}
BATCHES = (64, 32, 16, 8)
LEAST_KERNEL = 5
LEAST_ROUNDS, SECONDS = 2, 20.0  # of one comparison: after them no further round, however slow a variant is
# Of the logits and of the first filter's gradient, relative in norm: bfloat16 through 50 layers, there and back.
LOGIT_TOLERANCE, GRADIENT_TOLERANCE = 0.1, 0.3

Convolve = Callable[..., Tensor]


def eager(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    output = F.conv2d(input, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=input.shape[1])
    return {"none": lambda t: t, "relu": torch.relu, "gelu": F.gelu}[activation](output)


def is_large_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return module.groups == module.in_channels and module.stride == (1, 1) and module.kernel_size[0] >= LEAST_KERNEL


@contextmanager
def depthwise_by(model: nn.Module, convolve: Convolve) -> Iterator[list[int]]:
    """All depthwise layers from 5 x 5 on computed by `convolve`; yields a list with the number of its calls."""
    calls = [0]

    def counted(*arguments: Any, **named: Any) -> Tensor:
        calls[0] += 1
        return convolve(*arguments, **named)

    def bound(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
        return lambda x: counted(x, module.weight, module.bias)

    changed = [module for module in model.modules() if is_large_depthwise(module)]
    for module in changed:
        module.forward = bound(module)  # type: ignore[arg-type]
    try:
        with mock.patch("models.layers.depthwise_conv2d", counted):
            yield calls
    finally:
        for module in changed:
            del module.forward


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Forward and backward under autocast. Returns the logits and the first depthwise filter's gradient.

    Not the loss: at random weights it is the same whatever a kernel does.
    """
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    first = next(module for module in model.modules() if is_large_depthwise(module))
    answers = [logits.detach(), first.weight.grad]
    for parameter in model.parameters():
        parameter.grad = None
    return answers


@torch.no_grad()
def infer(model: nn.Module, images: Tensor) -> list[Tensor]:
    return [model(images)]


def variants() -> dict[str, tuple[Convolve, torch.memory_format]]:
    return {
        OURS: (depthwise_conv2d, torch.contiguous_format),
        EAGER: (eager, torch.contiguous_format),
        f"{EAGER} channels_last": (eager, torch.channels_last),
    }


def compare(
    model: nn.Module, images: Tensor, work: Callable[[nn.Module, Tensor], list[Tensor]], rounds: int
) -> dict[str, Any]:
    """{"ms": {name: Timing}, "speedup_over_eager", ...}. Raises `ValueError` where an answer differs from eager's."""
    answers, samples, used = {}, {name: [] for name in variants()}, {}  # type: ignore[var-annotated]
    deadline = time.monotonic() + SECONDS
    for turn in range(rounds + 1):  # the first warms up, and is checked
        if turn > LEAST_ROUNDS and time.monotonic() > deadline:
            break
        for name, (convolve, layout) in variants().items():
            model.to(memory_format=layout)
            source = images.contiguous(memory_format=layout)
            with depthwise_by(model, convolve) as calls:
                if turn == 0:
                    answers[name] = work(model, source)
                    used[name] = calls[0]
                    work(model, source)
                else:
                    samples[name].append(elapsed_ms(lambda model=model, source=source: work(model, source)))  # type: ignore[misc]
        if turn == 0:
            check(answers, used)
    timings = {name: Timing.of(values) for name, values in samples.items()}
    ours = timings[OURS].median
    return {
        "ms": timings,
        "depthwise_calls": used[OURS],
        "speedup_over_eager": round(timings[EAGER].median / ours, 3),
        "speedup_over_eager_channels_last": round(timings[f"{EAGER} channels_last"].median / ours, 3),
    }


def check(answers: dict[str, list[Tensor]], used: dict[str, int]) -> None:
    """Raises `ValueError` where a variant's answers differ from eager's, or where it computed fewer layers."""
    for name, each in answers.items():
        for what, limit, answer, expected in zip(
            ("logits", "gradient"), (LOGIT_TOLERANCE, GRADIENT_TOLERANCE), each, answers[EAGER], strict=False
        ):
            error = ((answer.float() - expected.float()).norm() / expected.float().norm()).item()
            if not error <= limit:
                raise ValueError(
                    f"{name}: the {what} differ from eager's by {error:.2g} of the norm, {limit} is allowed"
                )
    if len(set(used.values())) != 1 or not used[OURS]:
        raise ValueError(f"depthwise layers computed by each variant: {used}; they must be as many")


def what_fits(batches: tuple[int, ...], run: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """`run` at the largest batch that the memory holds."""
    for batch in batches:
        try:
            return {"batch": batch} | run(batch)
        except torch.OutOfMemoryError as error:
            print(f"batch {batch}: {str(error).splitlines()[0]}", flush=True)
            torch.cuda.empty_cache()
    raise ValueError(f"no batch of {batches} fits into the memory")


def measure(
    arch: str, size: int, device: str, rounds: int, batches: tuple[int, ...] = BATCHES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("training step", row), then ("inference", row)."""
    torch.manual_seed(0)
    model = create_model(arch).to(device)
    deploy = reparameterize(model.eval()).to(torch.bfloat16)

    def train(batch: int) -> dict[str, Any]:
        images, labels = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device)

        def step(model: nn.Module, images: Tensor) -> list[Tensor]:
            return training_step(model, images, labels)

        return compare(model.train(), images, step, rounds)

    def answer(batch: int) -> dict[str, Any]:
        images = torch.randn(batch, 3, size, size, device=device, dtype=torch.bfloat16)
        return compare(deploy, images, infer, rounds)

    for what, run in (("training step", train), ("inference", answer)):
        yield what, what_fits(batches, run)


def main(arch: str = "replknet_31b", size: int = 224, device: str = "cuda", rounds: int = 5) -> int:
    hardware = gpu()
    name = "end_to_end_" + re.sub(r"\W+", "_", hardware["name"].lower()).strip("_")
    content = {"gpu": hardware, "arch": arch, "image_size": size, "versions": versions("torch", "triton")}
    for what, row in measure(arch, size, device, rounds):
        content[what] = row
        path = write_results(name, **content)
        times = ", ".join(f"{who} {timing.median:.1f} ms" for who, timing in row["ms"].items())
        met = "met" if row["speedup_over_eager"] >= GOALS[what] else "NOT MET"
        print(f"{what}, batch {row['batch']}: {times}")
        print(f"  {row['speedup_over_eager']}x eager, wanted {GOALS[what]}x: {met}; wrote {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

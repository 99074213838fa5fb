"""Cases and bounds that every implementation of the depthwise convolution is held to."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    height: int
    width: int
    kernel_height: int
    kernel_width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width}-k{self.kernel_height}x{self.kernel_width}"


CASES = [
    Case(1, 16, 14, 14, 27, 27),  # K > H, batch 1
    Case(2, 3, 9, 7, 31, 31),  # few channels, K far beyond the image
    Case(2, 32, 20, 11, 13, 13),  # even and odd sides, W off the tile
    Case(3, 48, 8, 8, 5, 5),
    Case(2, 16, 12, 10, 31, 5),  # strips
    Case(2, 16, 12, 10, 5, 31),
    Case(1, 1, 1, 1, 3, 3),
    Case(5, 20, 6, 29, 51, 51),
    Case(1, 32, 57, 56, 31, 31),
]
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Problem:
    """Rounded inputs, the float64 answer and the bound of the error at each output."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    activation: str
    expected: Tensor
    bound: Tensor

    def check(self, output: Tensor) -> None:
        assert output.dtype == self.input.dtype
        assert output.shape == self.input.shape
        error = (output.double() - self.expected).abs()
        worst = int((error / self.bound).argmax())
        assert bool((error <= self.bound).all()), (
            f"error {error.flatten()[worst]:.3g} against a bound of {self.bound.flatten()[worst]:.3g}"
        )


def float64_answer(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The reference; on a GPU PyTorch's own convolution, which equals it: tap by tap there are up to 9,000 launches."""
    if not input.is_cuda:  # imported here: native_gpu.py, which has no CPU problem, must not import `kernels`
        from kernels.depthwise_conv2d.reference import depthwise_conv2d_reference

        return depthwise_conv2d_reference(input, weight, bias, activation)
    channels, _, height, width = weight.shape
    with torch.backends.cudnn.flags(enabled=False):
        output = F.conv2d(input, weight, bias, padding=(height // 2, width // 2), groups=channels)
    return {"none": lambda t: t, "relu": F.relu, "gelu": F.gelu}[activation](output)


def make_problem(
    case: Case,
    dtype: torch.dtype = torch.float32,
    activation: str = "none",
    bias: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> Problem:
    """The same numbers on every device; the float64 answer is computed there too (`float64_answer`)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    input = random(case.batch, case.channels, case.height, case.width)
    weight = random(case.channels, 1, case.kernel_height, case.kernel_width)
    shift = random(case.channels) if bias else None
    exact = [None if t is None else t.double() for t in (input, weight, shift)]
    expected = float64_answer(*exact, activation)  # type: ignore[arg-type]
    magnitude = [None if t is None else t.abs() for t in exact]
    sums = float64_answer(*magnitude, "none")  # type: ignore[arg-type]
    # Accumulated in float32 (float64), rounded once to the type: c eps sum |x||w| with c = 4.
    accumulation = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    bound = 4 * (accumulation * sums + EPS[dtype] * expected.abs()) + 1e-30
    return Problem(input, weight, shift, activation, expected, bound)

"""Cases and bounds that every implementation of the masked-patch loss is held to."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.masked_patch_loss.reference import masked_patch_loss_reference

EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class LossCase:
    batch: int
    channels: int
    rows: int  # cells of the prediction
    columns: int
    stride: int
    patch: int

    def __str__(self) -> str:
        cells = f"{self.batch}x{self.channels}x{self.rows}x{self.columns}"
        return f"{cells}-s{self.stride}-p{self.patch}"


CASES = [
    LossCase(2, 3, 3, 2, 4, 4),  # a patch is a cell
    LossCase(1, 3, 1, 2, 8, 4),  # patches divide the cells, as upstream's do
    LossCase(3, 1, 2, 4, 4, 8),  # cells divide the patches; one channel
    LossCase(1, 2, 3, 1, 5, 5),  # one column, sides that are no powers of two
    LossCase(2, 3, 4, 2, 2, 4),  # few channels in the prediction
    LossCase(1, 3, 1, 1, 12, 12),  # one cell, one patch
    LossCase(9, 2, 1, 1, 2, 1),  # more images than pixels, patches of a pixel
]


@dataclass(frozen=True)
class LossProblem:
    """Rounded inputs, the float64 answers and the bounds of their errors."""

    prediction: Tensor
    image: Tensor
    mask: Tensor
    settings: tuple[str, str, int]
    expected: Tensor
    expected_grad: Tensor
    bound: float
    grad_bound: Tensor

    def check(self, loss: Tensor, grad: Tensor | None) -> None:
        assert loss.shape == ()
        assert loss.dtype == (
            torch.float64 if torch.float64 in (self.prediction.dtype, self.image.dtype) else torch.float32
        )
        assert abs(loss.item() - self.expected.item()) <= self.bound, (loss.item(), self.expected.item(), self.bound)
        if grad is not None:
            assert grad.dtype == self.prediction.dtype
            error = (grad.double() - self.expected_grad).abs()
            assert bool((error <= self.grad_bound).all()), (error - self.grad_bound).max()


def make_loss_problem(
    case: LossCase,
    dtype: torch.dtype = torch.float32,
    loss: str = "l1",
    target_norm: str = "none",
    window: int = 7,
    *,
    image_dtype: torch.dtype = torch.float32,
    ratio: float = 0.6,
    grad_loss: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> LossProblem:
    """Unmasked elements are NaN: no answer may depend on them (a window reads them, so there they are finite)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = case.rows * case.stride, case.columns * case.stride

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    prediction = random(case.batch, case.channels * case.stride**2, case.rows, case.columns).to(dtype)
    image = random(case.batch, case.channels, height, width).to(image_dtype)
    mask = torch.rand(case.batch, height // case.patch, width // case.patch, generator=generator).to(device) < ratio
    exact = prediction.double().clone().requires_grad_()
    settings = (loss, target_norm, window)
    expected = masked_patch_loss_reference(exact, image.double(), mask, *settings)
    (grad,) = torch.autograd.grad(expected, exact)
    pixels = mask.repeat_interleave(case.patch, 1).repeat_interleave(case.patch, 2)
    hidden = ~pixels[:, None].expand_as(image)
    # Rounding of a difference of numbers up to `largest`, in the type of the arithmetic; then of the stored derivative
    # and of the gradient. A normalised target has the error of its mean and deviation besides.
    wide = torch.float64 in (dtype, image_dtype)
    largest = 8.0 if target_norm == "none" else 64.0
    rounding = EPS[torch.float64 if wide else torch.float32] * largest
    scale = grad_loss / (pixels.sum().item() + 1e-5) / case.channels
    shuffled = F.pixel_unshuffle(pixels[:, None].double(), case.stride).repeat(1, case.channels, 1, 1)
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # below the normal numbers the steps are equal
    grad_bound = (4 * rounding * scale * shuffled + 2 * EPS[dtype] * grad.abs() * grad_loss) * (1 + 1e-6) + least / 2
    prediction = torch.where(F.pixel_unshuffle(hidden.double(), case.stride).bool(), float("nan"), prediction)
    if target_norm != "window":
        image = torch.where(hidden, float("nan"), image)
    bound = 16 * rounding * (1 + abs(expected.item()))
    return LossProblem(prediction, image, mask, settings, expected.detach(), grad * grad_loss, bound, grad_bound)

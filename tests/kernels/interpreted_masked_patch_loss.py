"""Run by test_masked_patch_loss_triton.py under TRITON_INTERPRET=1: the kernels' arithmetic without a GPU."""

import itertools
import sys
from contextlib import nullcontext

import torch
from loss_cases import CASES, make_loss_problem

from kernels.masked_patch_loss import op
from kernels.masked_patch_loss.kernel import LOSSES, launch, launch_backward, programs
from kernels.masked_patch_loss.kernel_normalize import launch_normalization

NAN = float("nan")


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    count = 0
    layouts = (torch.contiguous_format, torch.channels_last)
    kinds = [("l1", "none"), ("smooth_l1", "none"), ("l2", "none"), ("l1", "window"), ("l2", "patch")]
    for (number, case), layout, (loss, norm) in itertools.product(enumerate(CASES), layouts, kinds):
        if norm == "window" and (number % 2 == 0 or layout != layouts[number // 2 % 2]):
            continue  # a window is slow to interpret
        image_dtype = dtype if layout == torch.channels_last else torch.float32
        problem = make_loss_problem(case, dtype, loss, norm, image_dtype=image_dtype, grad_loss=64.0)
        prediction = problem.prediction.contiguous(memory_format=layout)
        image = problem.image.contiguous(memory_format=layout)
        mask = problem.mask.view(torch.uint8)
        target = image
        if norm != "none":
            target = torch.full(image.shape, NAN)  # poisoned: what is masked must be written
            launch_normalization(image, mask, target, norm, problem.settings[2])
        sums = torch.full((programs(prediction),), NAN)
        counts = torch.full(sums.shape, -(2**30), dtype=torch.int32)
        if loss == "l1":
            direction = torch.full_like(prediction, 77, dtype=torch.int8)
        else:
            direction = torch.full_like(prediction, NAN)
        result, scale = torch.full((1,), NAN), torch.full((1,), NAN)
        launch(prediction, target, mask, direction, sums, counts, result, scale, loss)
        grad = torch.full_like(direction, NAN, dtype=dtype)
        launch_backward(direction, torch.tensor(64.0), scale, grad)
        problem.check(result[0], grad)
        assert grad.stride() == prediction.stride()
        before = result.clone()
        launch(prediction, target, mask, None, sums, counts, result, scale, loss)  # without a gradient
        assert torch.equal(before, result)
        count += 1
    count += dispatched(dtype)
    print(count, "problems right")
    print(combinations(dtype), "combinations right")


def combinations(dtype: torch.dtype) -> int:
    """Every loss with every normalisation as the operator runs them: strides, images of the prediction's type; then a
    mask of zeros, whose loss and gradient are 0."""
    count = 0
    for loss, norm, empty in itertools.product(LOSSES, ("none", "window", "patch"), (False, True)):
        ratio = 0.0 if empty else 0.6
        problem = make_loss_problem(
            CASES[0], dtype, loss, norm, window=3, image_dtype=dtype, ratio=ratio, grad_loss=64.0
        )
        prediction = problem.prediction.transpose(2, 3).contiguous().transpose(2, 3)
        image = problem.image.transpose(1, 3).contiguous().transpose(1, 3)
        assert not prediction.is_contiguous()
        assert not image.is_contiguous()
        result, direction, scale = op._cuda(prediction, image, problem.mask, *problem.settings)
        grad = op._backward_cuda(torch.tensor(64.0), result, direction, scale, dtype)
        problem.check(result, grad)
        if empty:
            assert result.item() == 0.0
            assert torch.equal(grad, torch.zeros_like(grad))
        count += 1
    return count


def dispatched(dtype: torch.dtype) -> int:
    """What the operator does on a GPU, with the CPU in its place: strides, mask types, both passes."""
    torch.cuda.device = lambda device: nullcontext()  # type: ignore[assignment, misc]
    for norm in ("none", "window", "patch"):
        problem = make_loss_problem(CASES[4], dtype, "l1", norm, window=3, grad_loss=64.0)
        prediction = problem.prediction.transpose(2, 3).contiguous().transpose(2, 3)
        image = problem.image.transpose(1, 2).contiguous().transpose(1, 2)
        result, direction, scale = op._cuda(
            prediction, image, problem.mask.mT.contiguous().mT.float(), *problem.settings
        )
        problem.check(result, op._backward_cuda(torch.tensor(64.0), result, direction, scale, dtype))
        loss, direction, _ = op._cuda(prediction, image, problem.mask, *problem.settings, gradient=False)
        assert torch.equal(loss, result)
        assert direction.numel() == 0
    return 3


if __name__ == "__main__":
    main()

"""Run by test_masked_patch_loss_triton.py under TRITON_INTERPRET=1: the kernels' arithmetic without a GPU."""

import itertools
import sys
from contextlib import nullcontext

import torch
import triton
from loss_cases import CASES, LossCase, make_loss_problem

from kernels.masked_patch_loss import launch as tiles
from kernels.masked_patch_loss import op
from kernels.masked_patch_loss.kernel import LOSSES
from kernels.masked_patch_loss.kernel_normalize import launch_normalization
from kernels.masked_patch_loss.launch import launch, launch_backward

NAN = float("nan")
SMALL = LossCase(2, 2, 2, 2, 2, 2)  # where a window, which is slow to interpret, is computed for its layouts


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
        unscaled_grad = op._empty_packed_grad(prediction, image, loss, True)
        unscaled_grad.fill_(77 if loss == "l1" else NAN)
        result, scale = torch.full((1,), NAN), torch.full((1,), NAN)
        launch(prediction, target, mask, unscaled_grad, result, scale, loss)
        grad = torch.full_like(prediction, NAN)
        launch_backward(unscaled_grad, torch.tensor(64.0), scale, grad)
        problem.check(result[0], grad)
        assert grad.stride() == prediction.stride()
        before = result.clone()
        launch(prediction, target, mask, None, result, scale, loss)  # without a gradient
        assert torch.equal(before, result)
        count += 1
    count += dispatched(dtype)
    print(count, "problems right")
    print(combinations(dtype), "combinations right")
    print(paths(dtype), "paths right")


def combinations(dtype: torch.dtype) -> int:
    """Every loss with every normalisation as the operator runs them: strides, images of the prediction's type; then a
    mask of zeros, whose loss and gradient are 0."""
    count = 0
    for loss, norm, empty in itertools.product(LOSSES, ("none", "window", "patch"), (False, True)):
        ratio = 0.0 if empty else 0.6
        problem = make_loss_problem(SMALL, dtype, loss, norm, window=3, image_dtype=dtype, ratio=ratio, grad_loss=64.0)
        prediction = problem.prediction.transpose(2, 3).contiguous().transpose(2, 3)
        image = problem.image.transpose(1, 3).contiguous().transpose(1, 3)
        assert not prediction.is_contiguous()
        assert not image.is_contiguous()
        result, unscaled_grad, scale = op._cuda(prediction, image, problem.mask, *problem.settings)
        grad = op._backward_cuda(torch.tensor(64.0), unscaled_grad, scale, dtype, prediction.shape[1])
        problem.check(result, grad)
        if empty:
            assert result.item() == 0.0
            assert torch.equal(grad, torch.zeros_like(grad))
        count += 1
    return count


def paths(dtype: torch.dtype) -> int:
    """Cells that fill a program of their own, several steps a program, several passes of the last sum, every mask."""
    count = 0
    cells = [LossCase(1, 3, 2, 2, 20, 20), LossCase(2, 3, 1, 2, 20, 5), LossCase(1, 3, 2, 2, 20, 40)]
    for case, loss, layout in itertools.product(cells, ("l1", "l2"), (torch.contiguous_format, torch.channels_last)):
        problem = make_loss_problem(case, dtype, loss, image_dtype=dtype, ratio=0.5, grad_loss=64.0, seed=3)
        prediction = problem.prediction.contiguous(memory_format=layout)
        last = layout == torch.channels_last
        _, block_q, steps = tiles.tile(3, 20, case.batch * case.rows * case.columns, last)
        assert (block_q == 1, steps > 1) == (last, last)
        count += answered(problem, prediction, problem.image.contiguous(memory_format=layout), problem.mask)
    prediction = torch.full((1, 12, 1, 1), 40000.0).to(dtype)  # twice that is above float16's largest number
    _, unscaled_grad, scale = op._cuda(prediction, torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 1), "l2")
    grad = op._backward_cuda(torch.tensor(1.0), unscaled_grad, scale, dtype, 12)
    torch.testing.assert_close(grad, prediction / 6, rtol=1e-2, atol=0)
    count += 1
    for loss, at_nan in (("l1", 0.0), ("smooth_l1", NAN), ("l2", NAN)):  # as PyTorch's own losses
        prediction = torch.tensor([NAN, 3.0, -3.0, 0.0]).to(dtype).view(1, 4, 1, 1)
        _, unscaled_grad, scale = op._cuda(prediction, torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1), loss)
        grad = op._backward_cuda(torch.tensor(4.0), unscaled_grad, scale, dtype, 4).flatten().float()
        slope = 6.0 if loss == "l2" else 1.0
        expected = torch.tensor([at_nan, slope, -slope, 0.0])
        torch.testing.assert_close(grad, expected, rtol=1e-2, atol=0, equal_nan=True)
        count += 1
    problem = make_loss_problem(LossCase(9, 3, 3, 3, 2, 2), dtype, grad_loss=64.0)
    tiles.TILE[False], tiles.MOST_PROGRAMS, tiles.LARGEST_FINISH = 64, 4, 2  # type: ignore[assignment]
    block_k, block_q, steps = tiles.tile(3, 2, 81, False)
    assert steps > 1
    assert triton.cdiv(81, block_q) * triton.cdiv(tiles.packed(3, 2), block_k * steps) > 2  # partial sums
    for kind in (torch.bool, *op.MASK_DTYPES):
        mask = problem.mask.to(kind)
        if kind not in (torch.bool, torch.uint8, torch.bfloat16):  # interpreted, bfloat16's -0 is not 0
            mask = mask * -2
        count += answered(problem, problem.prediction, problem.image, mask)
    count += answered(problem, problem.prediction, problem.image, problem.mask.to(torch.complex64))
    count += answered(
        problem, problem.prediction, problem.image, problem.mask[:, :1].float().expand(9, 3, 3), check=False
    )
    return count


def answered(problem, prediction, image, mask, check: bool = True) -> int:
    """The operator's answers; where the mask is not the problem's, the vectorized implementation's."""
    result, unscaled_grad, scale = op._cuda(prediction, image, mask, *problem.settings)
    grad = op._backward_cuda(torch.tensor(64.0), unscaled_grad, scale, prediction.dtype, prediction.shape[1])
    assert grad.stride() == prediction.stride()
    if check:
        problem.check(result, grad)
    else:
        prediction, image = (tensor.nan_to_num() for tensor in (prediction, image))
        result, unscaled_grad, scale = op._cuda(prediction, image, mask, *problem.settings)
        grad = op._backward_cuda(torch.tensor(64.0), unscaled_grad, scale, prediction.dtype, prediction.shape[1])
        expected, signs, scale = op._cpu(prediction, image, mask, *problem.settings)
        torch.testing.assert_close(result, expected)
        expected = op._backward_cpu(torch.tensor(64.0), signs, scale, prediction.dtype, prediction.shape[1])
        torch.testing.assert_close(grad, expected)
    return 1


def dispatched(dtype: torch.dtype) -> int:
    """The code that the operator runs on a GPU, on the CPU: strides, mask types, both passes."""
    torch.cuda.device = lambda device: nullcontext()  # type: ignore[assignment, misc]
    for norm in ("none", "window", "patch"):
        problem = make_loss_problem(SMALL, dtype, "l1", norm, window=3, grad_loss=64.0)
        prediction = problem.prediction.transpose(2, 3).contiguous().transpose(2, 3)
        image = problem.image.transpose(1, 2).contiguous().transpose(1, 2)
        result, unscaled_grad, scale = op._cuda(
            prediction, image, problem.mask.mT.contiguous().mT.float(), *problem.settings
        )
        grad = op._backward_cuda(torch.tensor(64.0), unscaled_grad, scale, dtype, prediction.shape[1])
        problem.check(result, grad)
        loss, unscaled_grad, _ = op._cuda(prediction, image, problem.mask, *problem.settings, gradient=False)
        assert torch.equal(loss, result)
        assert unscaled_grad.numel() == 0
    return 3


if __name__ == "__main__":
    main()

"""widefield::masked_patch_loss: its schema, checks, dispatch and gradient."""

import torch
from torch import Tensor

from kernels.arguments import check_tensors, holds
from kernels.devices import runs_kernels
from kernels.layout import contiguous_or_channels_last
from kernels.masked_patch_loss.arguments import check_arguments
from kernels.masked_patch_loss.reference import masked_patch_loss_reference
from kernels.masked_patch_loss.vectorized import backward_vectorized, masked_patch_loss_vectorized
from kernels.transforms import is_transformed

SCHEMA = (
    "masked_patch_loss(Tensor prediction, Tensor image, Tensor mask, str loss='l1', str target_norm='none', "
    "int window=47, bool gradient=True) -> (Tensor loss, Tensor unscaled_grad, Tensor scale)"
)
BACKWARD_SCHEMA = (
    "masked_patch_loss_backward(Tensor grad_loss, Tensor unscaled_grad, Tensor scale, ScalarType dtype, "
    "SymInt channels) -> Tensor"
)
NAME = "widefield::masked_patch_loss"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MASK_DTYPES = (*TRITON_DTYPES, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Places of an image, of a mask, or cells: the kernels index them in 32 bits. kernel_backward.py counts up to four times
# the elements of an image of one channel, whose signs have a byte each.
COUNTABLE = 2**29

_library = torch.library.Library("widefield", "FRAGMENT")


def masked_patch_loss(
    prediction: Tensor, image: Tensor, mask: Tensor, loss: str = "l1", target_norm: str = "none", window: int = 47
) -> Tensor:
    """sum(loss(PixelShuffle(s)(prediction) - target) over masked pixels) / (masked pixels + 1e-5) / C.

    The loss of SimMIM (Xie et al., CVPR 2022) from the decoder's output before its PixelShuffle; the gradient is
    computed in the same pass. Sums run over the whole batch; a mask of zeros gives 0 and zero gradients.

    Args:
        prediction: [B,C*s*s,h,w], contiguous or channels_last (anything else is copied); float32, float16, bfloat16 or
            float64.
        image: [B,C,h*s,w*s], the target; any strides, one of the same types. It gets no gradient.
        mask: [B,h',w'], any type; what is not 0 is masked. A patch is h*s/h' pixels square, and either that size
            divides s or s divides it.
        loss: "l1", "smooth_l1" (beta 1) or "l2".
        target_norm: "none"; "window": (x - mean) / sqrt(var + 1e-6) over the `window` x `window` pixels around each
            pixel of a channel that are inside the image, with unbiased variance (SimMIM); "patch": the same over the
            pixels and channels of each mask patch (MAE).
        window: odd, at least 3.

    Returns:
        [], float32 (float64 if the prediction or the image is), computed in that type; under autocast too. Under
        torch.func's transforms and forward-mode differentiation the reference is used, in float64.

    Raises:
        ValueError: naming the argument, its value and what is expected.
        RuntimeError: when it is differentiated twice.
    """
    check_tensors(prediction=prediction, image=image, mask=mask)
    if image.requires_grad and torch.is_grad_enabled():
        raise ValueError("image requires a gradient, which the loss does not give: pass image.detach()")
    if is_transformed():
        check_arguments(prediction, image, mask, loss, target_norm, window)
        value = masked_patch_loss_reference(prediction.double(), image.double(), mask, loss, target_norm, window)
        return value.to(_result_dtype(prediction, image))
    gradient = torch.is_grad_enabled() and prediction.requires_grad
    return torch.ops.widefield.masked_patch_loss(prediction, image, mask, loss, target_norm, window, gradient)[0]


def _empty_unscaled_grad(prediction: Tensor, loss: str, gradient: bool) -> Tensor:
    """Allocate d loss / d difference before its scale: int8 for l1's -1, 0 and 1, else the prediction's type."""
    if not gradient:
        return prediction.new_empty(0)
    return torch.empty_like(prediction, dtype=torch.int8 if loss == "l1" else prediction.dtype)


def _empty_packed_grad(prediction: Tensor, image: Tensor, loss: str, gradient: bool) -> Tensor:
    """Allocate the same for the kernels, which pack four of l1's signs in a byte of [B,cdiv(C*s,4)*s,h,w]."""
    if loss != "l1" or not gradient:
        return _empty_unscaled_grad(prediction, loss, gradient)
    batch, _, h, w = prediction.shape
    stride = image.shape[2] // h
    rows = (image.shape[1] * stride + 3) // 4
    layout = torch.contiguous_format if prediction.is_contiguous() else torch.channels_last
    return torch.empty((batch, rows * stride, h, w), dtype=torch.uint8, device=prediction.device, memory_format=layout)


def _has_kernels(prediction: Tensor, image: Tensor, mask: Tensor) -> bool:
    """Whether the Triton-language kernels run on this GPU, take these types and can index these sizes."""
    if prediction.dtype not in TRITON_DTYPES or image.dtype not in TRITON_DTYPES or not _runs_on(prediction):
        return False
    extents = [
        sum((n - 1) * step for n, step in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
        for tensor in (image, mask)
    ]
    if max(*extents, prediction.shape[1:].numel()) >= COUNTABLE:
        return False
    few = prediction.shape[0] * prediction.shape[2] * prediction.shape[3] < COUNTABLE
    countable = holds(few, unknown=True)
    if countable:  # compiled code then holds for these sizes only
        torch._check(few, lambda: f"a compiled masked_patch_loss takes fewer than {COUNTABLE} cells")
    return countable


def _runs_on(t: Tensor) -> bool:
    """`runs_kernels` for the GPU of `t`; a fake tensor's, where there is no GPU, is taken for one that does."""
    return not (t.is_cuda and torch.cuda.is_available()) or runs_kernels(t.device)


def _result_dtype(prediction: Tensor, image: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (prediction.dtype, image.dtype) else torch.float32


def _cpu(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    loss: str = "l1",
    target_norm: str = "none",
    window: int = 47,
    gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(prediction, image, mask, loss, target_norm, window)
    source = contiguous_or_channels_last(prediction)
    unscaled_grad = _empty_unscaled_grad(source, loss, gradient)
    dtype = _result_dtype(prediction, image)
    total, scale = masked_patch_loss_vectorized(source, image, mask, loss, target_norm, window, unscaled_grad, dtype)
    return total, unscaled_grad, scale


def _cuda(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    loss: str = "l1",
    target_norm: str = "none",
    window: int = 47,
    gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(prediction, image, mask, loss, target_norm, window)
    if not _has_kernels(prediction, image, mask):
        return _cpu(prediction, image, mask, loss, target_norm, window, gradient)
    from kernels.masked_patch_loss.launch import launch

    source = contiguous_or_channels_last(prediction)
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    elif mask.dtype not in MASK_DTYPES:
        mask = (mask != 0).view(torch.uint8)
    unscaled_grad = _empty_packed_grad(source, image, loss, gradient)
    result, scale = (source.new_empty((), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device(source.device):
        target = image
        if target_norm != "none":
            from kernels.masked_patch_loss.kernel_normalize import launch_normalization

            target = torch.empty(image.shape, dtype=torch.float32, device=image.device)
            launch_normalization(image, mask.contiguous(), target, target_norm, window)
        launch(source, target, mask, unscaled_grad if gradient else None, result, scale, loss)
    return result, unscaled_grad, scale


def _fake(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    loss: str = "l1",
    target_norm: str = "none",
    window: int = 47,
    gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(prediction, image, mask, loss, target_norm, window)
    dtype = _result_dtype(prediction, image)
    scalar, source = prediction.new_empty((), dtype=dtype), contiguous_or_channels_last(prediction)
    if prediction.device.type == "cuda" and _has_kernels(prediction, image, mask):
        unscaled_grad = _empty_packed_grad(source, image, loss, gradient)
    else:
        unscaled_grad = _empty_unscaled_grad(source, loss, gradient)
    return scalar, unscaled_grad, torch.empty_like(scalar)


def _backward_cpu(grad_loss: Tensor, unscaled_grad: Tensor, scale: Tensor, dtype: torch.dtype, channels: int) -> Tensor:
    return backward_vectorized(unscaled_grad, grad_loss * scale, dtype)


def _backward_cuda(
    grad_loss: Tensor, unscaled_grad: Tensor, scale: Tensor, dtype: torch.dtype, channels: int
) -> Tensor:
    if not (dtype in TRITON_DTYPES and scale.dtype in TRITON_DTYPES and _runs_on(unscaled_grad)):
        return backward_vectorized(unscaled_grad, grad_loss * scale, dtype)
    from kernels.masked_patch_loss.launch import launch_backward

    grad = _backward_fake(grad_loss, unscaled_grad, scale, dtype, channels)
    with torch.cuda.device(unscaled_grad.device):
        launch_backward(unscaled_grad, grad_loss, scale, grad)
    return grad


def _backward_fake(
    grad_loss: Tensor, unscaled_grad: Tensor, scale: Tensor, dtype: torch.dtype, channels: int
) -> Tensor:
    """Allocate the gradient: of `channels` channels if `unscaled_grad` packs four of them in a byte."""
    if unscaled_grad.dtype != torch.uint8:
        return torch.empty_like(unscaled_grad, dtype=dtype)
    batch, _, h, w = unscaled_grad.shape
    layout = torch.channels_last if unscaled_grad.stride(1) == 1 else torch.contiguous_format
    return torch.empty((batch, channels, h, w), dtype=dtype, device=unscaled_grad.device, memory_format=layout)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, unscaled_grad, scale = output
    # scale stays in the graph, so that differentiating twice reaches `_double_backward`, which raises.
    ctx.mark_non_differentiable(unscaled_grad)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(unscaled_grad, scale)  # not the loss, which may be divided in place
    ctx.dtype, ctx.channels, ctx.gradient = inputs[0].dtype, inputs[0].shape[1], inputs[6]  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if grads[0] is None:  # what is differentiated does not depend on the loss
        return (None,) * 7
    if not ctx.gradient:  # type: ignore[attr-defined]
        raise RuntimeError("masked_patch_loss was called with gradient=False: call it with gradient=True to train")
    unscaled_grad, scale = ctx.saved_tensors  # type: ignore[attr-defined]
    backward = torch.ops.widefield.masked_patch_loss_backward
    grad = backward(grads[0], unscaled_grad, scale, ctx.dtype, ctx.channels)  # type: ignore[attr-defined]
    return grad, *[None] * 6


def _double_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> None:
    raise RuntimeError(
        "masked_patch_loss cannot be differentiated twice: its gradient is computed in the forward pass. For second "
        "derivatives: from kernels.masked_patch_loss.reference import masked_patch_loss_reference"
    )


def _register() -> None:
    _library.define(SCHEMA)
    _library.impl("masked_patch_loss", _cpu, "CPU")
    _library.impl("masked_patch_loss", _cuda, "CUDA")
    torch.library.register_fake(NAME, _fake)
    torch.library.register_autograd(NAME, _backward, setup_context=_setup_context)
    _library.define(BACKWARD_SCHEMA)
    _library.impl("masked_patch_loss_backward", _backward_cpu, "CPU")
    _library.impl("masked_patch_loss_backward", _backward_cuda, "CUDA")
    torch.library.register_fake(f"{NAME}_backward", _backward_fake)
    torch.library.register_autograd(f"{NAME}_backward", _double_backward)


_register()

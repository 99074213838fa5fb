"""widefield::masked_patch_loss: its schema, checks, dispatch and gradient."""

import torch
from torch import Tensor

from kernels.masked_patch_loss.vectorized import backward_vectorized, masked_patch_loss_vectorized

SCHEMA = (
    "masked_patch_loss(Tensor prediction, Tensor image, Tensor mask, str loss='l1', str target_norm='none', "
    "int window=47, bool gradient=True) -> (Tensor loss, Tensor direction, Tensor scale)"
)
BACKWARD_SCHEMA = (
    "masked_patch_loss_backward(Tensor grad_loss, Tensor loss, Tensor direction, Tensor scale, "
    "ScalarType dtype) -> Tensor"
)
NAME = "widefield::masked_patch_loss"
LOSSES = ("l1", "smooth_l1", "l2")
TARGET_NORMS = ("none", "window", "patch")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_library = torch.library.Library("widefield", "FRAGMENT")


def masked_patch_loss(
    prediction: Tensor, image: Tensor, mask: Tensor, loss: str = "l1", target_norm: str = "none", window: int = 47
) -> Tensor:
    """sum(loss(PixelShuffle(s)(prediction) - target) over masked pixels) / (masked pixels + 1e-5) / C.

    The loss of SimMIM (Xie et al., CVPR 2022) from the decoder's output before its PixelShuffle; the gradient is found
    in the same pass. Sums run over the whole batch; a mask of zeros gives 0 and zero gradients.

    Args:
        prediction: [B,C*s*s,h,w], contiguous or channels_last (anything else is copied).
        image: [B,C,h*s,w*s], the target; any strides, any floating-point type of its own. It gets no gradient.
        mask: [B,h',w'], any type; what is not 0 is masked. A patch is h*s/h' pixels square, and either that size
            divides s or s divides it.
        loss: "l1", "smooth_l1" (beta 1) or "l2".
        target_norm: "none"; "window": (x - mean) / sqrt(var + 1e-6) over the `window` x `window` pixels around each
            pixel of a channel, as far as they are inside the image, unbiased variance (SimMIM); "patch": the same over
            the pixels and channels of each mask patch (MAE).
        window: odd, at least 3.

    Returns:
        [], float32 (float64 if the prediction or the image is), computed in that type; under autocast too.

    Raises:
        ValueError: naming the argument, its value and what is expected.
        RuntimeError: when it is differentiated twice.
    """
    if image.requires_grad:
        raise ValueError("image requires a gradient, which the loss does not give: pass image.detach()")
    gradient = torch.is_grad_enabled() and prediction.requires_grad
    return torch.ops.widefield.masked_patch_loss(prediction, image, mask, loss, target_norm, window, gradient)[0]


def check_arguments(
    prediction: Tensor, image: Tensor, mask: Tensor, loss: str = "l1", target_norm: str = "none", window: int = 47
) -> None:
    """Raises `ValueError` for what the operation is not defined on."""
    for name, tensor, dims in (("prediction", prediction, 4), ("image", image, 4), ("mask", mask, 3)):
        if tensor.dim() != dims:
            layout = {"prediction": "[B,C*s*s,h,w]", "image": "[B,C,H,W]", "mask": "[B,h',w']"}[name]
            raise ValueError(f"{name} has shape {list(tensor.shape)}: {layout} is expected")
        if tensor.device != prediction.device:
            raise ValueError(f"{name} is on {tensor.device}, prediction on {prediction.device}")
        if name != "mask" and not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} is {tensor.dtype}: a floating-point type is expected")
    batch, channels, height, width = image.shape
    if 0 in image.shape or 0 in prediction.shape or 0 in mask.shape:
        shapes = ", ".join(str(list(t.shape)) for t in (prediction, image, mask))
        raise ValueError(f"prediction, image, mask have shapes {shapes}: none may be empty")
    stride = height // prediction.shape[2]
    expected = [batch, channels * stride**2, height // max(stride, 1), width // max(stride, 1)]
    if stride == 0 or list(prediction.shape) != expected or height % stride or width % stride:
        raise ValueError(
            f"prediction has shape {list(prediction.shape)}, image {list(image.shape)}: [B,C*s*s,H/s,W/s] is expected"
        )
    patch = height // mask.shape[1]
    if patch == 0 or list(mask.shape) != [batch, height // patch, width // patch] or height % patch or width % patch:
        raise ValueError(
            f"mask has shape {list(mask.shape)}, image {list(image.shape)}: [{batch},H/p,W/p] is expected for square "
            "patches of p pixels"
        )
    if patch % stride and stride % patch:
        raise ValueError(
            f"a mask patch is {patch} pixels, the prediction's stride {stride}: one must be a multiple of the other"
        )
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r}: choose one of {', '.join(LOSSES)}")
    if target_norm not in TARGET_NORMS:
        raise ValueError(f"target_norm {target_norm!r}: choose one of {', '.join(TARGET_NORMS)}")
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window {window}: an odd number of pixels, at least 3, is expected")


def _dense(prediction: Tensor) -> Tensor:
    if prediction.is_contiguous() or prediction.is_contiguous(memory_format=torch.channels_last):
        return prediction
    return prediction.contiguous()


def _direction(prediction: Tensor, loss: str, gradient: bool) -> Tensor:
    """Room for d loss / d difference: -1, 0 and 1 fit in a byte, the rest has the prediction's type."""
    if not gradient:
        return prediction.new_empty(0)
    return torch.empty_like(prediction, dtype=torch.int8 if loss == "l1" else prediction.dtype)


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
    source = _dense(prediction)
    direction = _direction(source, loss, gradient)
    dtype = _result_dtype(prediction, image)
    total, scale = masked_patch_loss_vectorized(source, image, mask, loss, target_norm, window, direction, dtype)
    return total, direction, scale


def _cuda(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    loss: str = "l1",
    target_norm: str = "none",
    window: int = 47,
    gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    if prediction.dtype not in TRITON_DTYPES or image.dtype not in TRITON_DTYPES:
        return _cpu(prediction, image, mask, loss, target_norm, window, gradient)
    check_arguments(prediction, image, mask, loss, target_norm, window)
    from kernels.masked_patch_loss.kernel import launch, programs

    source = _dense(prediction)
    mask = (mask if mask.dtype == torch.bool else mask != 0).contiguous().view(torch.uint8)
    direction = _direction(source, loss, gradient)
    result, scale = (source.new_empty((), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device(source.device):
        target = image
        if target_norm != "none":
            from kernels.masked_patch_loss.kernel_normalize import launch_normalization

            target = torch.empty(image.shape, dtype=torch.float32, device=image.device)
            launch_normalization(image, mask, target, target_norm, window)
        count = programs(source)
        sums = source.new_empty(count, dtype=torch.float32)
        counts = source.new_empty(count, dtype=torch.int32)
        launch(source, target, mask, direction if gradient else None, sums, counts, result, scale, loss)
    return result, direction, scale


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
    scalar = prediction.new_empty((), dtype=dtype)
    return scalar, _direction(_dense(prediction), loss, gradient), torch.empty_like(scalar)


def _backward_cpu(grad_loss: Tensor, loss: Tensor, direction: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return backward_vectorized(direction, grad_loss * scale, dtype)


def _backward_cuda(grad_loss: Tensor, loss: Tensor, direction: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype not in TRITON_DTYPES or scale.dtype not in TRITON_DTYPES:
        return backward_vectorized(direction, grad_loss * scale, dtype)
    from kernels.masked_patch_loss.kernel import launch_backward

    grad = torch.empty_like(direction, dtype=dtype)
    with torch.cuda.device(direction.device):
        launch_backward(direction, grad_loss, scale, grad)
    return grad


def _backward_fake(grad_loss: Tensor, loss: Tensor, direction: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(direction, dtype=dtype)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    loss, direction, scale = output
    ctx.mark_non_differentiable(direction, scale)
    # The loss is kept for its place in the graph alone: through it a second differentiation finds its error.
    ctx.save_for_backward(loss, direction, scale)
    ctx.dtype, ctx.gradient = inputs[0].dtype, inputs[6]  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.gradient:  # type: ignore[attr-defined]
        raise RuntimeError("masked_patch_loss was called with gradient=False: call it with gradient=True to train")
    loss, direction, scale = ctx.saved_tensors  # type: ignore[attr-defined]
    backward = torch.ops.widefield.masked_patch_loss_backward
    return backward(grads[0], loss, direction, scale, ctx.dtype), *[None] * 6  # type: ignore[attr-defined]


def _double_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> None:
    raise RuntimeError(
        "masked_patch_loss cannot be differentiated twice: its gradient is computed in the forward pass. For second "
        "derivatives use kernels.masked_patch_loss.reference.masked_patch_loss_reference"
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

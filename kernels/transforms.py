"""Whether PyTorch differentiates in a way that an operator with its own gradient does not support."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Under forward-mode differentiation or a transform of torch.func: the operators would drop the tangents there, so
    that derivatives would be zero, or be refused; PyTorch's own operations have them all.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def register_autograd(
    library: torch.library.Library,
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    instead: Callable[..., Any] | None = None,
) -> None:
    """torch.library's, which drops tangents in silence: of operands that have some, `instead` computes.

    Without it the operator raises `RuntimeError` there.
    """

    def impl(op: str, kernel: Callable[..., Any], key: str, **options: bool) -> None:
        def watching(keyset: Any, *args: Any) -> Any:
            if not _have_tangents(args):
                return kernel(keyset, *args)
            if instead is None:
                raise RuntimeError(
                    f"{name} has no forward-mode derivative: in place of the operator call kernels.depthwise_conv2d or "
                    "kernels.masked_patch_loss, which have"
                )
            return instead(*args)

        library.impl(op, watching, key, **options)

    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=SimpleNamespace(impl=impl))


def _have_tangents(operands: tuple[Any, ...]) -> bool:
    if forward_ad._current_level < 0 and not torch.compiler.is_compiling():  # what is compiled tells it no level
        return False
    tensors = (each for each in operands if isinstance(each, Tensor))
    return any(torch._VF._unpack_dual(each, level=0)[1] is not None for each in tensors)  # PyTorch has one level

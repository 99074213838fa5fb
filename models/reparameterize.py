"""Structural re-parameterisation: what is linear in evaluation mode becomes one convolution.

A batch norm in evaluation mode is y = scale * x + shift for each channel, with scale = gamma / sqrt(var + eps) and
shift = beta - mean * scale. After a convolution it scales the output channels; before a 1 x 1 convolution without
padding, or before a linear layer, it scales the input channels, and its shift becomes a bias. `reparameterize`
works in float64 and rounds to the model's own type once, at the end.
"""

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from kernels import DepthwiseConv2d
from models.timm_models import of_timm, reparameterize_timm
from models.wrappers import bare_model

Foldable = nn.Conv2d | nn.Linear
# Of layers that apply only their weight and bias:
FORWARDS = {nn.Conv2d.forward, nn.Linear.forward, DepthwiseConv2d.forward}


def reparameterize(model: nn.Module) -> nn.Module:
    """A deep copy of `model` in deploy form: branches merged, every batch norm folded, evaluation mode, frozen.

    The logits equal those of `model.eval()`; batch statistics are never used, whatever mode `model` is in. The final
    norm is folded into the head, so `forward_features` of the copy gives the features before that norm. What wraps
    `model` (torch.compile, DataParallel) is not copied.

    In a timm model the blocks that timm can merge are merged; it may keep batch norms, which tracing then folds.

    Parametrisations (weight norm, ...) become plain weights; a module put in place of a batch norm or DropPath is kept.

    Raises `TypeError` for a model that has no `reparameterize()` of its own, and `ValueError` for a batch norm without
    running statistics, for a layer beside a batch norm unless it is a plain convolution or linear layer, for weights
    that a hook computes (torch.nn.utils.prune, weight_norm and spectral_norm; those of parametrizations have none), and
    for a hook on what is folded away.
    """
    model = bare_model(model)
    convert = getattr(model, "reparameterize", None)
    if convert is None and not of_timm(model):
        raise TypeError(f"{type(model).__name__} has no reparameterize(): pass a model of models.create_model")
    _check_hooks(model)
    dtype = next(model.parameters()).dtype
    deploy = deepcopy(model).double()
    for module in [*deploy.modules()]:
        if is_parametrized(module):
            _make_plain(module)
    if of_timm(deploy):
        reparameterize_timm(deploy)
    else:
        deploy.reparameterize()  # type: ignore[operator]
    _check_hooks_kept(model, deploy)
    merged = deploy.state_dict().keys() != model.state_dict().keys()
    deploy.deploy_form = merged  # type: ignore[assignment]  # save_checkpoint refuses it
    return deploy.to(dtype).eval().requires_grad_(False)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether `module` is a batch norm, including torchvision's and timm's frozen ones."""
    return isinstance(module, _BatchNorm) or type(module).__name__ == "FrozenBatchNorm2d"


def batch_norm_affine(bn: Any) -> tuple[Tensor, Tensor]:
    """Return scale [C] and shift [C], float64, of a batch norm of any kind (SyncBatchNorm too) in evaluation mode.

    Raises `ValueError` for one without running statistics.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            f"{bn} keeps no running statistics, so it depends on the batch and cannot be folded: "
            "train with track_running_stats=True"
        )
    scale = (bn.running_var.double() + bn.eps).rsqrt()  # [C]
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -bn.running_mean.double() * scale  # [C]
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    return scale, shift


@torch.no_grad()
def fold_after(conv: nn.Conv2d, bn: nn.Module) -> None:
    """Set conv := bn(conv(.)), in place. Raises `ValueError` for a `conv` with a custom forward."""
    _check_plain(conv)
    scale, shift = batch_norm_affine(bn)
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift  # [C_out]
    _assign(conv, conv.weight.double() * scale.view(-1, 1, 1, 1), bias)


@torch.no_grad()
def fold_before(bn: nn.Module, layer: Foldable) -> None:
    """Set layer := layer(bn(.)), in place; exact for a linear layer and for a 1 x 1 convolution without padding.

    Raises `ValueError` for any other convolution, whose zero padding would have to become -shift / scale, and for a
    `layer` with a custom forward.
    """
    _check_plain(layer)
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size != (1, 1) or layer.padding != (0, 0) or layer.groups != 1):
        raise ValueError(f"a batch norm before {layer} cannot be folded: only 1x1, unpadded and ungrouped is exact")
    scale, shift = batch_norm_affine(bn)
    weight = layer.weight.double()  # [C_out,C_in] or [C_out,C_in,1,1]
    bias = weight.flatten(1) @ shift  # [C_out]
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    _assign(layer, weight * scale.view(1, -1, *[1] * (weight.dim() - 2)), bias)


@torch.no_grad()
def merge_branches(large: nn.Conv2d, small: nn.Conv2d | None) -> nn.Conv2d:
    """Return one K x K depthwise convolution equal to the sum of two folded ones; the small kernel is centred."""
    weight, bias = large.weight.double(), cast(Tensor, large.bias).double()  # [C,1,K,K], [C]
    if small is not None:
        margin = (large.kernel_size[0] - small.kernel_size[0]) // 2
        weight = weight + nn.functional.pad(small.weight.double(), [margin] * 4)
        bias = bias + cast(Tensor, small.bias).double()
    _assign(large, weight, bias)
    return large


def _make_plain(module: nn.Module) -> None:
    """Replace parametrised weights by plain parameters. (remove_parametrizations would break the original model: the
    copy shares its class, from which the attribute would be deleted.)
    """
    names = module.parametrizations.keys()  # type: ignore[operator, union-attr]
    values = {name: nn.Parameter(getattr(module, name).detach()) for name in names}
    plain = type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = plain
    for name, value in values.items():
        module.register_parameter(name, value)


def _check_hooks(model: nn.Module) -> None:
    """Raise `ValueError` for a weight that a hook computes before each call: it may be outdated, and the hook stays."""
    for name, module in model.named_modules():
        for part in ("weight", "bias"):
            if isinstance(vars(module).get(part), Tensor):
                raise ValueError(
                    f"{name}.{part} is computed by a hook and cannot be folded: make it a parameter first, with prune."
                    "remove, remove_weight_norm or remove_spectral_norm of torch.nn.utils"
                )


def _check_hooks_kept(model: nn.Module, deploy: nn.Module) -> None:
    kept = {name: type(module) for name, module in deploy.named_modules()}
    for name, module in model.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks
        if hooked and kept.get(name) is not type_before_parametrizations(module):
            raise ValueError(
                f"{name} has a forward hook and is folded into what is beside it: remove the hook first (remove() of "
                "what register_forward_hook has returned)"
            )


def _check_plain(layer: nn.Module) -> None:
    if type(layer).forward not in FORWARDS:
        raise ValueError(
            f"{type(layer).__name__} has a forward of its own and cannot be folded with the batch norm beside it: "
            "merge it into a plain layer first"
        )


def _assign(layer: Foldable, weight: Tensor, bias: Tensor) -> None:
    layer.bias = nn.Parameter(bias.to(layer.weight))
    layer.weight = nn.Parameter(weight.to(layer.weight))

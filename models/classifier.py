"""The head of any classifier here, RepLKNet or one of timm's, and the features that it is given."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import SettingsError


@torch.no_grad()
def check_logits(model: nn.Module, num_classes: int, image_size: int) -> None:
    """Run a copy of the model, which is on the CPU, in evaluation mode on one image.

    Raises `SettingsError` unless it answers with logits [1,num_classes], and `ValueError` if it cannot run.
    """
    shape, kind = [1, 3, image_size, image_size], type(model).__name__
    try:
        logits = deepcopy(model).eval()(torch.zeros(shape))  # a copy: timm's LeViT keeps what it computes in this mode
    except Exception as error:
        what = f"{kind} cannot run on images {shape}: {type(error).__name__}: {error}"
        raise ValueError(f"{what} (WIDEFIELD_TRACEBACK=1 shows where)") from error
    found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if found != [1, num_classes]:
        raise SettingsError(
            f"{kind} answers images {shape} with {found}: a classifier of {num_classes} classes returns one tensor of "
            f"logits, {[1, num_classes]}"
        )


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """Normalised images [B,3,H,W] -> the input of the classifier's last layer, [B,C]."""
    network: Any = model
    return network.forward_head(network.forward_features(images), pre_logits=True)


def linear_head(model: nn.Module) -> nn.Linear:
    """The last layer. Raises `ValueError` for a model whose head is more than one linear layer with a bias."""
    heads = _heads(model)
    head = heads[0]
    if len(heads) > 1 or not isinstance(head, nn.Linear) or head.bias is None:
        kinds = " and ".join(type(each).__name__ for each in heads)
        raise ValueError(f"{type(model).__name__} ends in {kinds}: this method needs a linear layer with a bias")
    return head


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the classifier's modules, such as fc: what is replaced for other labels.

    There is one, except in timm's distilled models, which have head and head_dist and answer with their mean, and in
    VOLO, which adds its aux_head's answer to the head's.
    """
    names = {module: name for name, module in model.named_modules()}
    return tuple(names[head] for head in _heads(model))


def _heads(model: nn.Module) -> tuple[nn.Module, ...]:
    network: Any = model
    heads = network.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    auxiliary = getattr(network, "aux_head", None)  # VOLO's, which its get_classifier does not name
    return heads if auxiliary is None else (*heads, auxiliary)

"""What any classifier here, RepLKNet or timm's, lets one do with its head."""

from typing import Any

from torch import Tensor, nn


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """Normalised images [B,3,H,W] -> what the classifier's last layer is given, [B,C]."""
    network: Any = model
    return network.forward_head(network.forward_features(images), pre_logits=True)


def linear_head(model: nn.Module) -> nn.Linear:
    """The last layer. Raises `ValueError` for a model whose head is more than one linear layer with a bias."""
    head = _head(model)
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"{type(model).__name__} ends in {type(head).__name__}: this method needs a linear layer with a bias"
        )
    return head


def head_name(model: nn.Module) -> str:
    """The name of the classifier's module, such as head or fc: what other labels need another one of."""
    head = _head(model)
    return next(name for name, module in model.named_modules() if module is head)


def _head(model: nn.Module) -> nn.Module:
    network: Any = model
    return network.get_classifier()

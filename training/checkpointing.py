"""Which settings go with activation checkpointing, `RepLKNet.set_grad_checkpointing`."""

from torch import nn

from models import RepLKNet
from training.settings import LoopConfig, SettingsError


def checkpoint_blocks(model: nn.Module, config: LoopConfig) -> None:
    """Every block of a RepLKNet, in place; keys and answers stay. Raises `SettingsError` where it cannot be used.

    AdvProp's choice of norms and a sparse mask are a context around the forward pass: it is gone when the backward pass
    computes a block again, so both are refused.
    """
    if not isinstance(model, RepLKNet):
        raise SettingsError(f"--grad-checkpointing: it is for RepLKNets, not for {type(model).__name__}; leave it out")
    for name, value in (("compile", True), ("head_only", True), ("adversarial", "advprop"), ("mask_mode", "sparse")):
        if getattr(config, name, None) == value:
            option = f"--{name.replace('_', '-')}" + (f" {value}" if isinstance(value, str) else "")
            raise SettingsError(f"--grad-checkpointing does not go with {option}: leave one of them out")
    model.set_grad_checkpointing()

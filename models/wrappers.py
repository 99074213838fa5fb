"""A model inside what runs it: torch.compile, DataParallel and DistributedDataParallel."""

from torch import nn

WRAPPED = ({"_orig_mod"}, {"module"})


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model inside its wrappers, whose keys do not begin with "_orig_mod." or "module."."""
    while (names := {name for name, _ in model.named_children()}) in WRAPPED:
        model = model.get_submodule(names.pop())
    return model

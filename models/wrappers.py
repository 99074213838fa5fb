"""A model inside what runs it: torch.compile, DataParallel and DistributedDataParallel."""

from torch import nn

WRAPPED = ({"_orig_mod"}, {"module"})


def bare_model(model: nn.Module) -> nn.Module:
    """The model itself, whose keys have no "_orig_mod." or "module." before them; one that nothing wraps as it is."""
    while (names := {name for name, _ in model.named_children()}) in WRAPPED:
        model = model.get_submodule(names.pop())
    return model

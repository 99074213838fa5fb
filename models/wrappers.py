"""A model inside what runs it: torch.compile, DataParallel and DistributedDataParallel; and fully_shard."""

from collections.abc import Mapping

from torch import Tensor, nn

WRAPPED = ({"_orig_mod"}, {"module"})


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model inside its wrappers, whose keys do not begin with "_orig_mod." or "module."."""
    while (names := {name for name, _ in model.named_children()}) in WRAPPED:
        model = model.get_submodule(names.pop())
    return model


def sharded_name(state: Mapping[str, Tensor]) -> str:
    """Return the name of the first weight that is a DTensor, of which this process has only a part, else ""."""
    return next((name for name, tensor in state.items() if hasattr(tensor, "full_tensor")), "")

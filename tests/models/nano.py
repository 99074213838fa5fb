"""Small models with weights of their own, and their comparison."""

import torch

from models import RepLKNet, create_model

State = dict[str, torch.Tensor]


def nano(seed: int = 0, num_classes: int = 5) -> RepLKNet:
    torch.manual_seed(seed)
    model = create_model("replknet_nano", num_classes).train()
    model(torch.randn(4, 3, 32, 32))  # batch statistics that are not the default
    return model.eval()


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())

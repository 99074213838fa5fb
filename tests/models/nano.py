"""Small models with weights of their own, their comparison, and files of weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import RepLKNet, WeightsError, create_model, load_weights

State = dict[str, torch.Tensor]


def nano(seed: int = 0, num_classes: int = 5) -> RepLKNet:
    torch.manual_seed(seed)
    model = create_model("replknet_nano", num_classes).train()
    model(torch.randn(4, 3, 32, 32))  # batch statistics that are not the default
    return model.eval()


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def write(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)  # type: ignore[attr-defined]
    else:
        torch.save(content, path)
    return path


def refused(path: Path, *messages: str, **options: bool) -> str:
    """Check that loading raises `WeightsError` with file and messages, and changes no weight; return its text."""
    model = nano(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, path, **options)
    for message in (str(path), *messages):
        assert message in str(error.value)
    assert same(model.state_dict(), before)
    return str(error.value)

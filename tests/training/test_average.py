"""The averaged weights: timm's numbers and keys, with less time spent in Python."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from models import create_model
from training.optim import Average


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_timms_to_the_bit(warmup: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for weights that moved to other memory too, as with several processes; no step lists the state."""
    torch.manual_seed(0)
    model = create_model("replknet_nano", 3).train()
    ours, timms = Average(model, 0.9, warmup), ModelEmaV3(model, 0.9, use_warmup=warmup)
    model.head.weight.data = model.head.weight.data.clone()
    for step in range(1, 6):
        model(torch.randn(2, 3, 32, 32))  # moves the batch statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        timms.update(model, step=step)
        with monkeypatch.context() as patch:
            patch.delattr(nn.Module, "state_dict")
            ours.update(model, step=step)
    expected, found = timms.module.state_dict(), ours.module.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert found["norm.num_batches_tracked"] == 5
    assert not torch.equal(found["head.weight"], model.head.weight)


def test_a_model_without_batch_norms_has_nothing_to_copy() -> None:
    model = nn.Linear(2, 2)
    average = Average(model, 0.5, use_warmup=False)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model, step=2)
    torch.testing.assert_close(average.module.weight.detach(), before + 0.5)

"""What timm's models let one do with them, done with a RepLKNet."""

import torch
from nano import nano

from models import RepLKNet, reparameterize


def blocks_run(model: RepLKNet) -> int:
    """How often blocks are computed in a step of training, the backward pass included."""
    calls = []
    blocks = [block for stage in model.stages for block in stage.blocks]
    hooks = [block.register_forward_pre_hook(lambda *_: calls.append(1)) for block in blocks]
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    for hook in hooks:
        hook.remove()
    return len(calls)


def test_checkpointing_is_set_and_taken_back() -> None:
    model = nano()
    once = blocks_run(model)
    assert once == 10
    model.set_grad_checkpointing()
    assert blocks_run(model) == 2 * once
    assert blocks_run(reparameterize(model).requires_grad_()) == once, "the deploy form is not trained"
    model.set_grad_checkpointing(False)
    assert blocks_run(model) == once

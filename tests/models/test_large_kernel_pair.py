"""A block's two branches over one read of the input: where it is asked for, and that nothing else changes."""

import pytest
import torch

from models import create_model, layers
from models.layers import ReparamLargeKernelConv
from models.masked import MaskedPretrainer


@pytest.fixture
def asked(monkeypatch):
    """As on a GPU: how often both branches were asked for at once."""
    calls = []
    real = layers.depthwise_conv2d_pair

    def pair(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(layers, "depthwise_conv2d_pair", pair)
    monkeypatch.setattr(layers, "on_gpu", lambda x: True)
    return calls


def trained(model, *arguments):
    """The output, every gradient and the batch norms' statistics after a step."""
    torch.manual_seed(0)
    output = model.train()(*arguments)
    output.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), grads, {name: b.clone() for name, b in model.named_buffers()}


def both_ways(make, *arguments):
    """(answers by two calls of the modules, answers with both branches at once)."""
    answers = []
    for at_once in (False, True):
        torch.manual_seed(0)
        model = make()
        with pytest.MonkeyPatch.context() as patch:
            if not at_once:
                patch.setattr(layers, "on_gpu", lambda x: False)
            answers.append(trained(model, *arguments))
    return answers


def test_training_gives_the_same_numbers(asked):
    plain, at_once = both_ways(lambda: ReparamLargeKernelConv(8, 9, 5), torch.randn(2, 8, 7, 6))
    assert len(asked) == 1
    torch.testing.assert_close(at_once, plain)


def test_sparse_pretraining_gives_the_same_numbers(asked):
    def make():
        return MaskedPretrainer(create_model("replknet_nano"), "sparse")

    images, mask = torch.randn(2, 3, 64, 64), torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 0]]])
    plain, at_once = both_ways(make, images, mask)
    assert len(asked) > 1
    torch.testing.assert_close(at_once, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["lkb_origin", "lkb_origin.conv", "small_conv", "small_conv.conv"])
def test_a_hook_is_called(asked, where):
    layer, x = ReparamLargeKernelConv(8, 9, 5).train(), torch.randn(2, 8, 7, 6)
    seen = []
    hook = layer.get_submodule(where).register_forward_hook(lambda *_: seen.append(where))
    layer(x)
    assert (seen, asked) == ([where], [])
    hook.remove()
    layer(x)
    assert (seen, len(asked)) == ([where], 1)


def test_evaluation_and_one_branch_ask_for_none(asked):
    x = torch.randn(2, 8, 7, 6)
    ReparamLargeKernelConv(8, 9, 5).eval()(x)
    ReparamLargeKernelConv(8, 9, None).train()(x)
    deployed = ReparamLargeKernelConv(8, 9, 5).eval()
    deployed.reparameterize()
    deployed.train()(x)
    assert asked == []

"""The methods that timm's models have, on a RepLKNet."""

from pathlib import Path

import pytest
import torch
from nano import nano, write
from torch import nn

from models import RepLKNet, create_model, load_weights, pooled_features, reparameterize

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


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


def test_layer_decay_groups_are_the_authors() -> None:
    with torch.device("meta"):
        matcher = create_model("replknet_31b", 3).group_matcher()
    expected = {
        "stem.3.conv.weight": 0,
        "stages.0.blocks.3.pw1.conv.weight": 1,
        "transitions.0.0.conv.weight": 1,
        "stages.1.blocks.0.prelkb_bn.weight": 2,
        "transitions.1.1.bn.bias": 2,
        "stages.2.blocks.0.pw1.conv.weight": 3,
        "stages.2.blocks.7.pw1.conv.weight": 4,
        "stages.2.blocks.35.pw2.conv.weight": 11,
        "transitions.2.0.conv.weight": 11,
        "stages.3.blocks.2.large_kernel.lkb_origin.conv.weight": 12,
        "norm.weight": 13,
        "head.bias": 13,
    }
    assert {name: matcher(name) for name in expected} == expected


@pytest.mark.parametrize("arch", ["replknet_nano", "timm/resnet18"])
def test_without_classes_the_answer_is_the_pooled_features(arch: str) -> None:
    model = create_model(arch, 0).eval()
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(IMAGES), pooled_features(model, IMAGES), rtol=0, atol=0)


def test_the_deploy_form_without_a_head_keeps_the_norm_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pth", nano(1).state_dict())
    model = create_model("replknet_nano", 0).eval()
    load_weights(model, path, skip_head=True)
    deploy = reparameterize(model)
    torch.testing.assert_close(deploy(IMAGES), pooled_features(nano(1), IMAGES), rtol=1e-4, atol=1e-4)
    assert [name for name, module in deploy.named_modules() if isinstance(module, nn.BatchNorm2d)] == ["norm"]


@pytest.mark.parametrize("model", [nano(1), create_model("timm/resnet18", 5)], ids=["ours", "timm's"])
def test_another_head(model: nn.Module) -> None:
    model = model.double().eval()
    pooled = pooled_features(model, IMAGES.double())
    for classes in (7, 0, 3):
        model.reset_classifier(classes, "avg")
        assert model.num_classes == classes
        assert model(IMAGES.double()).shape == (2, classes or model.num_features)
        torch.testing.assert_close(pooled_features(model, IMAGES.double()), pooled, rtol=0, atol=0)


def test_heads_that_cannot_be_reset_are_named() -> None:
    with pytest.raises(ValueError, match="num_classes -1: at least 1 is needed, or 0 for no head"):
        nano().reset_classifier(-1)
    with pytest.raises(ValueError, match=r"global_pool 'max': a RepLKNet has only the mean \(avg\)"):
        nano().reset_classifier(3, "max")
    with pytest.raises(ValueError, match="head holds its last batch norm: reset the training form's"):
        reparameterize(nano()).reset_classifier(3)

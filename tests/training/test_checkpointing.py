"""Activation checkpointing: the same run, in less memory."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from kernels import DepthwiseConv2d
from models import ModelConfig, checkpointing, create_model
from tests.training.runs import QUIET, Tiny, assert_same, records
from training import finetune, pretrain
from training.finetune_config import Config
from training.methods import make_learner
from training.settings import LoopConfig, SettingsError

METHODS = {
    "plain": {},
    "gpaco": {"loss": "gpaco", "paco_queue": 8, "paco_dim": 4},
    "paco": {"loss": "paco", "label_smoothing": 0.0, "paco_queue": 8, "paco_dim": 4},
    "fast_at": {"adversarial": "fast_at"},
}


def step(method: dict, checkpointed: bool, amp: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, every gradient and every buffer after a step with drop path."""
    torch.manual_seed(0)
    config, model = Config(**method), create_model("replknet_nano", 3, drop_path_rate=0.5)
    if checkpointed:
        model.set_grad_checkpointing()
    learner = make_learner(model, config, ModelConfig("replknet_nano", 3), [5, 3, 2]).train()
    views = (4, 2) if "paco" in method.get("loss", "") else (4,)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = learner(torch.randn(*views, 3, 64, 64), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    tensors = {name: parameter.grad for name, parameter in learner.named_parameters() if parameter.requires_grad}
    return loss.item(), tensors | dict(learner.named_buffers())


@pytest.mark.parametrize("name", [*METHODS, "bf16"])
def test_a_step_is_the_same_bit_for_bit(name: str) -> None:
    """The operator runs, drop path draws the same random numbers, and batch statistics are counted once."""
    (loss, tensors), (expected_loss, expected) = (
        step(METHODS.get(name, {}), checkpointed, amp=name == "bf16") for checkpointed in (True, False)
    )
    assert loss == expected_loss
    assert tensors.keys() == expected.keys()
    different = [key for key, tensor in expected.items() if not torch.equal(tensors[key], tensor)]
    assert not different


def test_with_compile_the_gradient_is_the_same() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    compiled = torch.compile(lambda x: checkpointing.checkpointed(block, x), backend="eager")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    expected, grad = (torch.autograd.grad(run(x).square().sum(), x)[0] for run in (block, compiled))
    assert torch.equal(grad, expected)


def test_what_is_kept_is_less_and_blocks_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], DepthwiseConv2d.forward

    def spy(self: DepthwiseConv2d, x: torch.Tensor) -> torch.Tensor:
        calls.append(self)
        return original(self, x)

    monkeypatch.setattr(DepthwiseConv2d, "forward", spy)
    kept, count = [], []
    for checkpointed in (False, True):
        sizes: list[int] = []
        model = create_model("replknet_nano", 3)
        if checkpointed:
            model.set_grad_checkpointing()
        calls.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.numel()) or x, lambda x: x):
            loss = model(torch.randn(2, 3, 64, 64)).sum()
        loss.backward()
        kept.append(sum(sizes))
        count.append(len(calls))
        calls.clear()
        with torch.no_grad():
            model(torch.randn(2, 3, 64, 64))
        assert len(calls) == count[0], "without a gradient nothing is computed again"
    assert kept[1] < kept[0] / 2
    assert count[1] == 2 * count[0]


def test_a_run_is_the_same_and_may_be_resumed_with_it(tiny: Tiny, tmp_path: Path) -> None:
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        finetune.train(tiny(tmp_path / name, grad_checkpointing=checkpointed, drop_path=0.2), QUIET)
    assert_same(tmp_path / "plain", tmp_path / "checkpointed")
    assert records(tmp_path / "plain") == records(tmp_path / "checkpointed")
    finetune.train(tiny(tmp_path / "plain", grad_checkpointing=True, drop_path=0.2), QUIET)


def test_pretraining_is_the_same_run(small_digits: Path, tmp_path: Path) -> None:
    options = ["--preset", "digits", "--data", str(small_digits), "--epochs", "1", "--workers", "0", "--device", "cpu"]
    for name in ("plain", "checkpointed"):
        more = ["--grad-checkpointing"] if name == "checkpointed" else []
        pretrain.train(pretrain.parse_arguments([*options, "--output", str(tmp_path / name), *more]), QUIET)
    assert records(tmp_path / "plain") == records(tmp_path / "checkpointed")
    assert_same(tmp_path / "plain", tmp_path / "checkpointed")


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (Config(compile=True), "--compile"),
        (Config(head_only=True), "--head-only"),
        (Config(adversarial="advprop"), "--adversarial advprop"),
        (pretrain.Config(mask_mode="sparse"), "--mask-mode sparse"),
    ],
)
def test_what_it_does_not_go_with_is_refused_before_the_data_are_opened(
    config: LoopConfig, option: str, tmp_path: Path
) -> None:
    script = finetune if isinstance(config, Config) else pretrain
    config = dataclasses.replace(config, grad_checkpointing=True, data=tmp_path / "nowhere", output=tmp_path)
    with pytest.raises(SettingsError, match=f"--grad-checkpointing does not go with {option}: leave one of them out"):
        script.train(config, QUIET)


def test_a_timm_models_run_is_the_same(tiny: Tiny, tmp_path: Path) -> None:
    vit = {"arch": "timm/test_vit", "epochs": 1, "drop_path": 0.2}
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        finetune.train(tiny(tmp_path / name, grad_checkpointing=checkpointed, **vit), QUIET)
    assert_same(tmp_path / "plain", tmp_path / "checkpointed")
    assert records(tmp_path / "plain") == records(tmp_path / "checkpointed")


@pytest.mark.parametrize(
    ("arch", "why"),
    [
        ("timm/resnet10t", "the batch norms of this ResNet would count their statistics twice"),
        ("timm/pit_ti_224", r"timm has none for PoolingVisionTransformer \(gradient checkpointing not supported\)"),
    ],
)
def test_a_model_that_cannot_is_refused(arch: str, why: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{why}; leave it out"):
        finetune.train(tiny(tmp_path, arch=arch, drop_path=0.0, grad_checkpointing=True), QUIET)

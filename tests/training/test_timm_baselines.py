"""Baselines of timm train, evaluate, are attacked and explained by the same scripts as our own models."""

from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from models import create_model, load_checkpoint
from tests.training.runs import QUIET, Tiny
from training import distributed, pretrain
from training.accuracy import by_class, top1
from training.adversarial import add_auxiliary, strip_auxiliary, use_auxiliary
from training.attack import Config as AttackConfig
from training.attack import attack_checkpoint
from training.cam import explain, last_layer
from training.cam_scores import parts_from_the_head, randomization_check
from training.evaluate import Config as EvaluateConfig
from training.evaluate import evaluate
from training.explain import Config as ExplainConfig
from training.explain import explain_images
from training.finetune import train
from training.learners import CosineSupervised, HeadOnly
from training.losses import CrossEntropy
from training.optim import parameter_groups
from training.paco import PaCo
from training.settings import SettingsError

SIZE = 64


def test_the_same_scripts(tiny: Tiny, small_digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    accuracy = train(tiny(run, arch="timm/mobilenetv3_small_100", epochs=1, image_size=SIZE), QUIET)
    model, config = load_checkpoint(run)
    assert (config.arch, config.image_size, config.labels) == ("timm/mobilenetv3_small_100", SIZE, ["0", "1", "4"])
    val = small_digits / "val"
    assert top1(by_class(evaluate(EvaluateConfig(run, val, device="cpu"))[0])) == accuracy
    deployed, *_ = evaluate(EvaluateConfig(run, val, deploy=True, tau_norm=1.0, device="cpu"))
    assert int(deployed.sum()) == 24
    results = attack_checkpoint(AttackConfig(run, val, ("fgsm",), count=4, device="cpu"))
    assert results[0].images == 4
    explaining = ExplainConfig(run, val, tmp_path / "maps", "layercam", "blocks.2", count=2, scores=True, device="cpu")
    table, scores = explain_images(explaining)
    assert table.row_count == 2
    assert {"ROAD", "rank correlation, random down to classifier"} <= scores.keys()
    with pytest.raises(ValueError, match="no class map is exact"):
        explain_images(ExplainConfig(run, val, tmp_path / "maps", device="cpu"))
    new = tiny(tmp_path / "head", arch="", weights=run, epochs=1, head_only=True, image_size=SIZE)
    train(new, QUIET)
    retrained, _ = load_checkpoint(tmp_path / "head")
    assert torch.equal(retrained.conv_stem.weight, model.conv_stem.weight), "the features stay"
    assert not torch.equal(retrained.classifier.weight, model.classifier.weight)


def test_layer_decay_is_timms_grouping() -> None:
    model = create_model("timm/resnet18", 3)
    holder = nn.Module()
    holder.model = model
    scales = {
        id(parameter): group["lr_scale"]
        for group in parameter_groups(holder, model, 0.05, 0.5)
        for parameter in group["params"]
    }
    assert len(scales) == len(list(model.parameters()))
    assert scales[id(model.fc.weight)] == 1.0
    layers = (model.conv1, model.layer1[0].conv1, model.layer4[1].conv2)
    assert [scales[id(layer.weight)] for layer in layers] == [0.5**9, 0.5**8, 0.5]
    with pytest.raises(SettingsError, match="layers of Linear are not known"):
        parameter_groups(holder, nn.Linear(2, 2), 0.05, 0.5)


POSITIONS = {  # the second one's by a pattern
    "timm/vit_tiny_patch16_224": "pos_embed",
    "timm/xcit_nano_12_p16_224": "pos_embed.token_projection.weight",
}


@pytest.mark.parametrize("layer_decay", [1.0, 0.9])
@pytest.mark.parametrize("arch", POSITIONS)
def test_position_embeddings_do_not_decay(arch: str, layer_decay: float) -> None:
    model = create_model(arch, 3, SIZE)
    holder = nn.Module()
    holder.model = model
    decay = {
        id(parameter): group["weight_decay"]
        for group in parameter_groups(holder, model, 0.05, layer_decay)
        for parameter in group["params"]
    }
    assert decay[id(model.get_parameter(POSITIONS[arch]))] == 0.0
    assert decay[id(model.head.weight)] == 0.05


def test_methods_find_the_head() -> None:
    images, targets = torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 0])
    network = create_model("timm/resnet18", 3)
    for learner in (CosineSupervised(network, CrossEntropy()), HeadOnly(network, CrossEntropy())):
        assert learner.train()(images, targets).isfinite()
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    served = CosineSupervised(network, CrossEntropy()).deployed(network)
    torch.testing.assert_close(served.fc.weight.norm(dim=1), torch.ones(3))
    paco = PaCo(create_model("timm/resnet18", 3), [4, 2, 1], queue_size=8, dim=8)
    assert paco(torch.randn(2, 2, 3, SIZE, SIZE), torch.tensor([0, 1])).isfinite()
    with pytest.raises(ValueError, match="ends in RepVitClassifier"):
        HeadOnly(create_model("timm/repvit_m0_9", 3), CrossEntropy())


def test_auxiliary_norms_keep_their_activation() -> None:
    """timm's norms may hold an activation; both norms of a pair keep theirs, and stripping gives the model back."""
    torch.manual_seed(0)
    network, images = create_model("timm/mobilenetv3_small_100", 3).eval(), torch.randn(2, 3, SIZE, SIZE)
    before = network(images)
    norms = [module for module in network.modules() if isinstance(module, BatchNormAct2d)]
    assert norms
    add_auxiliary(network)
    assert all(isinstance(norm.auxiliary, BatchNormAct2d) for norm in norms)
    with torch.no_grad():
        norms[0].auxiliary.bias += 1
    torch.testing.assert_close(network(images), before, rtol=0, atol=0)
    with use_auxiliary(network):
        assert not torch.equal(network(images), before)
    stripped = strip_auxiliary(network)
    assert all(type(m) is BatchNormAct2d for m in stripped.modules() if isinstance(m, BatchNormAct2d))
    torch.testing.assert_close(stripped(images), before, rtol=0, atol=0)


def test_sync_bn_on_cpus_is_refused_where_it_would_lose_activations() -> None:
    with pytest.raises(ValueError, match="MobileNetV3 has BatchNormAct2d"):
        distributed.convert_sync_batchnorm(create_model("timm/mobilenetv3_small_100", 3), "cpu")
    converted = distributed.convert_sync_batchnorm(create_model("timm/resnet18", 3), "cpu")
    assert isinstance(converted.bn1, distributed.CpuSyncBatchNorm)


def test_explanations_of_other_layouts() -> None:
    """Swin has [B,h,w,C] inside: the map is still over positions."""
    torch.manual_seed(0)
    swin = create_model("timm/swin_tiny_patch4_window7_224", 3, 224).eval()
    nn.init.normal_(swin.head.fc.weight)
    nn.init.zeros_(swin.head.fc.bias)
    images, targets = torch.randn(1, 3, 224, 224), torch.tensor([1])
    assert last_layer(swin) == "layers.3"
    assert explain(swin, images, targets, "cam").shape == (1, 224, 224)
    assert explain(swin, images, targets, "gradcam").shape == (1, 224, 224)
    resnet = create_model("timm/resnet18", 3).eval()
    small = torch.randn(2, 3, 96, 96)
    check = randomization_check(resnet, lambda m: explain(m, small, torch.tensor([0, 1]), "cam"))
    assert list(check) == ["fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    assert parts_from_the_head(create_model("timm/convnext_atto", 3)) == ("head.fc", "head", "stages", "stem")


def test_pretraining_is_for_replknets() -> None:
    with pytest.raises(SettingsError, match="timm/resnet18: choose one of replknet_31b"):
        pretrain.make_model(pretrain.Config(arch="timm/resnet18"))

"""Baselines of timm through the functions of our own models; nothing is downloaded."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import nn

from models import (
    ModelConfig,
    WeightsError,
    WithClassMap,
    class_maps,
    count_classes,
    count_macs,
    create_model,
    create_replknet,
    head_names,
    linear_head,
    load_checkpoint,
    load_weights,
    pooled_features,
    reparameterize,
    save_checkpoint,
)
from models.registry import input_defaults

SIZE = 64


def warmed(arch: str, num_classes: int = 5) -> nn.Module:
    """Return the model with the batch statistics of a few images."""
    torch.manual_seed(0)
    model = create_model(arch, num_classes, SIZE).train()
    for _ in range(2):
        model(torch.randn(4, 3, SIZE, SIZE))
    return model.eval()


def test_config_is_that_of_the_named_weights() -> None:
    config = ModelConfig("timm/vit_tiny_patch16_224", 5)
    assert (config.image_size, config.crop_pct, config.mean) == (224, 0.9, [0.5, 0.5, 0.5])
    assert ModelConfig("timm/resnet18").crop_pct == 0.95
    assert ModelConfig("timm/resnet18.tv_in1k").interpolation == "bilinear"
    assert ModelConfig("timm/resnet18.tv_in1k").crop_pct == 0.875
    assert ModelConfig("timm/resnet18").crop_mode == ModelConfig("replknet_31b").crop_mode == "center"
    config = ModelConfig("timm/convnext_tiny.fb_in22k_ft_in1k_384")
    assert (config.image_size, config.crop_mode) == (384, "squash")
    assert ModelConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm/resnt18", "did you mean .*resnet18"),
        ("timm/resnet18.tv_in2k", "resnet18 has no weights 'tv_in2k': did you mean tv_in1k"),
        ("resnet18", "choose one of replknet_31b, .* or timm/NAME, such as timm/resnet18"),
        ("ResNet18", "or timm/NAME, such as timm/resnet18"),
        ("timm/ResNet18", "timm has no model 'ResNet18': did you mean resnet18"),
        ("replknet_31B", r"'replknet_31B' is unknown: did you mean replknet_31b\?"),
        ("RepLKNet-XL", r"did you mean replknet_xl\?"),
    ],
)
def test_unknown_names_get_near_ones(arch: str, message: str) -> None:
    for ask in (ModelConfig, create_model):
        with pytest.raises(ValueError, match=message):
            ask(arch)


@pytest.mark.parametrize("arch", [None, 5, ["timm/resnet18"]])
def test_what_is_no_name_is_refused(arch: object) -> None:
    for ask in (ModelConfig, create_model, input_defaults):
        with pytest.raises(ValueError, match=re.escape(f"arch {arch!r} is not a name: choose one of replknet_31b")):
            ask(arch)


@pytest.mark.parametrize("arch", ["timm/resnet18", "replknet_nano"])
def test_channels_by_either_name(arch: str) -> None:
    for name in ("in_chans", "in_channels"):
        assert create_model(arch, 5, **{name: 1})(torch.randn(2, 1, SIZE, SIZE)).shape == (2, 5)
    create_model(arch, 5, pretrained=False)
    with pytest.raises(ValueError, match=f"{arch}: pretrained=True, but nothing is downloaded: use load_weights"):
        create_model(arch, 5, pretrained=True)
    with pytest.raises(ValueError, match="in_channels and in_chans mean the same"):
        create_model(arch, 5, in_chans=1, in_channels=1)


@pytest.mark.parametrize("arch", ["timm/vit_tiny_patch16_224", "timm/resnet18", "replknet_nano"])
def test_the_image_size_has_one_name(arch: str) -> None:
    """timm's own would be replaced by the architecture's."""
    with pytest.raises(ValueError, match=r"img_size=\(384, 384\): name it image_size, one number of pixels"):
        create_model(arch, 5, img_size=(384, 384))


def test_our_own_work_without_timm_being_imported() -> None:
    code = "import models, sys; models.create_model('replknet_nano', 2); print('timm' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("arch", ["timm/resnet18", "timm/mobilenetv3_small_100", "replknet_nano"])
def test_head_and_pooled_features_are_the_model(arch: str) -> None:
    model, images = warmed(arch), torch.randn(3, 3, SIZE, SIZE)
    torch.testing.assert_close(linear_head(model)(pooled_features(model, images)), model(images))
    (name,) = head_names(model)
    assert model.get_submodule(name) is linear_head(model)


def test_heads_that_are_more_than_a_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="RepVit ends in RepVitClassifier: this method needs a linear layer"):
        linear_head(create_model("timm/repvit_m0_9", 5))
    with pytest.raises(ValueError, match="VisionTransformerDistilled ends in Linear and Linear: this method needs"):
        linear_head(create_model("timm/deit_tiny_distilled_patch16_224", 5, SIZE))
    model = create_model("timm/resnet18", 5)
    model.fc = nn.Linear(512, 5, bias=False)
    with pytest.raises(ValueError, match="ResNet ends in Linear: this method needs a linear layer with a bias"):
        linear_head(model)


@pytest.mark.parametrize(
    ("arch", "heads"),
    [("timm/deit_tiny_distilled_patch16_224", ("head", "head_dist")), ("timm/volo_d1_224", ("head", "aux_head"))],
)
def test_both_heads_of_a_model_that_answers_with_two(arch: str, heads: tuple[str, str], tmp_path: Path) -> None:
    model = warmed(arch)
    assert head_names(model) == heads
    with pytest.raises(ValueError, match="ends in Linear and Linear: this method needs"):
        linear_head(model)
    save_checkpoint(tmp_path, model, ModelConfig(arch, 5, image_size=SIZE))
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(load_checkpoint(tmp_path)[0](images), model(images))
    torch.save(create_model(arch, 7).state_dict(), tmp_path / "seven.pth")
    assert count_classes(arch, tmp_path / "seven.pth") == 7
    other = create_model(arch, 3, SIZE)
    own = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    load_weights(other, tmp_path, skip_head=True)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, own[name] if name.startswith(heads) else model.state_dict()[name])


def test_images_are_square_and_no_crop_is_larger_than_they_are() -> None:
    assert ModelConfig("timm/volo_d4_448").crop_pct == 1.0
    with pytest.raises(ValueError, match="takes images of 768 x 1024 pixels: only square images"):
        ModelConfig("timm/vit_base_patch16_sapiens2")


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model, images = warmed("timm/mobilenetv3_small_100"), torch.randn(2, 3, SIZE, SIZE)
    config = ModelConfig("timm/mobilenetv3_small_100", 5, image_size=SIZE, labels=list("abcde"))
    save_checkpoint(tmp_path, model, config)
    loaded, loaded_config = load_checkpoint(tmp_path)
    assert loaded_config == config
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)


def test_local_weights_load_with_and_without_their_head(tmp_path: Path) -> None:
    published = timm.create_model("resnet18", num_classes=7)
    save_file(published.state_dict(), tmp_path / "resnet18.safetensors")
    model = create_model("timm/resnet18", 5)
    with pytest.raises(WeightsError, match=r"fc\.weight has 7 classes, the model has 5"):
        load_weights(model, tmp_path / "resnet18.safetensors")
    head = model.fc.weight.clone()
    load_weights(model, tmp_path / "resnet18.safetensors", skip_head=True)
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    with pytest.raises(WeightsError, match="belongs to another model"):
        load_weights(create_model("timm/convnext_atto", 7), tmp_path / "resnet18.safetensors")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_authors_files_are_translated(prefix: str, tmp_path: Path) -> None:
    """ConvNeXt's authors call the stem downsample_layers.0; timm's own filter knows, once DDP's prefix is gone."""
    model = create_model("timm/convnext_atto", 5)
    names = {"stem.0": "downsample_layers.0.0", "stem.1": "downsample_layers.0.1", "head.norm": "norm"}
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours + ".", theirs + ".") if name.startswith(ours + ".") else name
        for stage in range(1, 4):
            name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        state[prefix + name.replace("head.fc.", "head.")] = tensor.clone()
    save_file(state, tmp_path / "theirs.safetensors")
    other = create_model("timm/convnext_atto", 5)
    load_weights(other, tmp_path / "theirs.safetensors")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("average", ["model_ema", "state_dict_ema"])
def test_averaged_weights_are_preferred_as_timm_does(average: str, tmp_path: Path) -> None:
    """A file of timm's trainer holds both, and its published accuracy is that of the average."""
    model, averaged, plain = (create_model("timm/resnet18", classes) for classes in (5, 5, 3))
    torch.save({"state_dict": plain.state_dict(), average: averaged.state_dict()}, tmp_path / "last.pth.tar")
    assert count_classes("timm/resnet18", tmp_path / "last.pth.tar") == 5
    load_weights(model, tmp_path / "last.pth.tar")
    torch.testing.assert_close(model.state_dict(), averaged.state_dict(), rtol=0, atol=0)


def test_reparameterization_is_timms() -> None:
    model, images = warmed("timm/repvit_m0_9"), torch.randn(2, 3, SIZE, SIZE)
    deploy = reparameterize(model)
    norms = [
        sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()) for network in (model, deploy)
    ]
    assert norms[0] > 0
    assert norms[1] == 0
    torch.testing.assert_close(deploy(images), model(images), rtol=1e-3, atol=1e-4)
    plain = reparameterize(warmed("timm/mobilenetv3_small_100"))
    assert any(isinstance(m, BatchNormAct2d) for m in plain.modules()), "timm has nothing to merge there"


def test_sizes_and_drop_path_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="densenet121 has no drop path: set drop_path_rate to 0"):
        create_model("timm/densenet121", 5, drop_path_rate=0.1)
    create_model("timm/densenet121", 5, drop_path_rate=0.0)
    model = create_model("timm/vit_tiny_patch16_224", 5, 96, drop_path_rate=0.1)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 5)
    with pytest.raises(ValueError, match="nest_tiny cannot be made for 50 px: `patch_size` must divide `img_size`"):
        create_model("timm/nest_tiny", 5, 50)
    with pytest.raises(TypeError, match="an unexpected keyword argument 'depths'"):
        create_model("timm/densenet121", 5, depths=(1, 2))
    with pytest.raises(ValueError, match="is not a RepLKNet"):
        create_replknet("timm/resnet18")


def test_class_map_only_where_it_is_exact() -> None:
    images = torch.randn(2, 3, SIZE, SIZE)
    model = warmed("timm/resnet18")
    torch.testing.assert_close(class_maps(model, model.forward_features(images)).mean((2, 3)), model(images))
    assert class_maps(model, model.forward_features(images[:0])).shape[:2] == (0, model.num_classes)
    images[0, 0, 0, 0] = torch.nan  # one image says nothing of the others
    maps = class_maps(model, model.forward_features(images))
    assert maps[0].isnan().any()
    assert maps[1].isfinite().all()
    images[0, 0, 0, 0] = 0.0
    other = warmed("timm/mobilenetv3_small_100")
    with pytest.raises(ValueError, match=r"more than a mean and a linear layer .* gradcam"):
        class_maps(other, other.forward_features(images))
    other = warmed("timm/convnext_atto")  # a norm after the mean
    with pytest.raises(ValueError, match=r"more than a mean and a linear layer"):
        class_maps(other, other.forward_features(images))
    swin = create_model("timm/swin_tiny_patch4_window7_224", 5, 224).eval()  # [B,h,w,C] inside
    nn.init.normal_(swin.head.fc.weight)
    with torch.no_grad():
        one = torch.randn(1, 3, 224, 224)
        features = swin.forward_features(one)
        maps = class_maps(swin, features)
        assert maps.shape == (1, 5, 7, 7)
        torch.testing.assert_close(maps.mean((2, 3)), swin.forward_head(features), rtol=1e-3, atol=1e-3)
        logits, answer = WithClassMap(swin)(one)
        torch.testing.assert_close(answer[0], maps[0, logits.argmax()], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arch", "millions"),
    [("resnet50", 4089), ("mobilenetv3_large_100", 217), ("swin_tiny_patch4_window7_224", 4491)],
)
def test_macs_are_the_published_ones(arch: str, millions: int) -> None:
    """4.1 G, 0.22 G and 4.5 G in the papers; attention's two products of matrices are among them."""
    assert count_macs(create_model(f"timm/{arch}"), 224) == pytest.approx(millions * 1e6, rel=0.01)


def test_without_timm_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"'timm/resnet18' needs timm, which is not installed: pip install timm"):
        ModelConfig("timm/resnet18")
    with pytest.raises(ValueError, match=r"'resnet18' is unknown: .*, or timm/NAME$"):
        ModelConfig("resnet18")
    assert create_model("replknet_nano", 2) is not None

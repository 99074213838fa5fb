"""timm's models through the same build: TorchScript and ONNX Runtime answer as eager does, at any batch."""

import json
from pathlib import Path

import pytest
import torch

from export import torchscript
from export.build import BuildOptions, _OnnxBackbone, build
from export.onnx import export_onnx
from export.parity import real_pixels
from export.torchscript import ServedBackbone, trace_backbone
from models import ModelConfig, create_model, load_checkpoint, save_checkpoint

SIZE = 64


@pytest.mark.parametrize("arch", ["timm/mobilenetv3_small_100", "timm/resnet18"])
def test_exported_equals_eager(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(arch, 5, SIZE).train()
    for _ in range(2):
        model(torch.randn(4, 3, SIZE, SIZE))
    save_checkpoint(tmp_path / "checkpoint", model, ModelConfig(arch, 5, image_size=SIZE))
    output = tmp_path / "models"
    build(BuildOptions(weights=tmp_path / "checkpoint", output=output, formats=("torchscript", "onnx"), threads=1))
    loaded, config = load_checkpoint(tmp_path / "checkpoint")
    eager = ServedBackbone(loaded, config.mean, config.std)
    traced = torch.jit.load(str(output / "backbone/1/model.pt"))
    onnx = _OnnxBackbone(output / "backbone/1/model.onnx")
    pixels = real_pixels(None, SIZE, count=3)
    with torch.inference_mode():
        for batch in (pixels[:1], pixels):
            expected = eager(batch)
            scale = float(expected.abs().max())
            torch.testing.assert_close(traced(batch), expected, rtol=1e-4, atol=1e-4 * scale)
            torch.testing.assert_close(onnx(batch)[0], expected, rtol=1e-4, atol=1e-4 * scale)
    record = json.loads((output / "backbone/1/build.json").read_text())
    assert record["config"]["arch"] == arch


@pytest.mark.parametrize(
    ("arch", "formats", "needed"),
    [
        ("timm/convnext_atto", ("torchscript",), False),
        ("replknet_nano", ("onnx",), False),
        ("replknet_nano", ("torchscript", "onnx"), True),
    ],
)
def test_the_native_library_is_asked_for_where_a_trace_holds_our_operator(
    arch: str, formats: tuple[str, ...], needed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchscript, "native_library", lambda: None)
    options = BuildOptions(arch=arch, random_weights=True, formats=formats, output=tmp_path / "models", image_size=32)
    if needed:
        with pytest.raises(RuntimeError, match="the native library is not built: make native"):
            build(options)
        assert not (tmp_path / "models").exists()
    else:
        assert f"{arch}, version 1" in build(options)


def test_random_weights_of_an_arch(tmp_path: Path) -> None:
    summary = build(
        BuildOptions(arch="timm/convnext_atto", random_weights=True, image_size=SIZE, output=tmp_path / "models")
    )
    assert "timm/convnext_atto, version 1, 1000 classes, 64 px" in summary


class OnItsDevice(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + torch.zeros(images.shape[0], 1, device=images.device)


class OfItsBatch(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + torch.zeros(len(images), 1)


class Foreign(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inputs = (images.mean((2, 3)),)
        return torch.onnx.ops.symbolic("theirs::Op", inputs, dtype=torch.float32, shape=(images.shape[0], 3), version=1)


def test_an_operator_outside_the_onnx_standard_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"model\.onnx: operators outside the ONNX standard: theirs"):
        export_onnx(ServedBackbone(Foreign(), [0.5] * 3, [0.5] * 3), 32, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("network", "message"), [(OnItsDevice(), "OnItsDevice bakes in a device"), (OfItsBatch(), "bakes in a batch size")]
)
def test_a_trace_that_is_of_its_making_is_refused(network: torch.nn.Module, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        trace_backbone(ServedBackbone(network, [0.5] * 3, [0.5] * 3), 32)


def test_a_served_backbone_leaves_its_model_alone() -> None:
    model = torch.nn.Conv2d(3, 2, 1)
    ServedBackbone(model, [0.5] * 3, [0.5] * 3, "bf16")
    assert model.weight.dtype == torch.float32
    assert model.training

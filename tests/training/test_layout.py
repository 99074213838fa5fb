"""The memory format that a network is trained in."""

import pytest
import torch

from models import create_model
from training.layout import memory_format, place

FORMATS = {  # docs/kernels.md: on an H200 the operator took 2.7 to 4.6 times as long in channels_last
    ("replknet_nano", "cuda"): torch.contiguous_format,
    ("replknet_nano", "cpu"): torch.channels_last,
    ("timm/resnet18", "cuda"): torch.channels_last,
    ("timm/resnet18", "cpu"): torch.channels_last,
}


@pytest.mark.parametrize(("arch", "device"), FORMATS)
def test_the_operator_gets_its_own(arch: str, device: str) -> None:
    model = create_model(arch, 3)
    assert memory_format(model, device) == FORMATS[arch, device]
    assert memory_format(torch.nn.Sequential(model), torch.device(device, 0)) == FORMATS[arch, device]


def test_weights_bring_the_images_into_it() -> None:
    model = create_model("replknet_nano", 3)
    images = torch.randn(2, 3, 64, 64)
    for layout in (torch.contiguous_format, torch.channels_last):
        features = model.to(memory_format=layout).forward_features(images)  # type: ignore[call-overload]
        assert features.is_contiguous(memory_format=layout)
    place(model.to(memory_format=torch.contiguous_format), "cpu")  # type: ignore[call-overload]
    assert model.forward_features(images).is_contiguous(memory_format=torch.channels_last)

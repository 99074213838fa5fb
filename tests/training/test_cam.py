"""Class activation maps: exact where they say so, in the graph, and judged."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from models import create_model, reparameterize
from models.class_map import WithClassMap, class_maps
from models.replknet import RepLKNet
from training.cam import cam, explain, gradient_cam, upscale
from training.cam_scores import (
    area_under,
    deletion,
    insertion,
    randomization_check,
    rank_correlation,
    replacement_curve,
)
from training.settings import SettingsError

SIZE = 96


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_mean_of_the_map_is_the_logit(form: str, model: RepLKNet, images: Tensor) -> None:
    network = (model if form == "training" else reparameterize(model)).double()
    maps = class_maps(network, network.forward_features(images.double()))
    assert maps.shape == (3, 5, 3, 3)
    torch.testing.assert_close(maps.mean((2, 3)), network(images.double()))
    model.float()


def test_map_of_the_answer_is_in_the_graph(model: RepLKNet, images: Tensor) -> None:
    """Traced, at another batch size than it was made with; tests/export has it built, as ONNX too."""
    network = WithClassMap(reparameterize(model)).eval()
    with torch.inference_mode():
        logits, class_map = network(images)
        traced = torch.jit.trace(network, images[:2], check_trace=False)(images)
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(class_map, cam(model, images, logits.argmax(1)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(traced[1], class_map)


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_gradient_methods_are_cam_before_pooling(method: str, model: RepLKNet, images: Tensor) -> None:
    targets = torch.tensor([4, 0, 2])
    exact = cam(model, images, targets) - model.head.bias[targets][:, None, None]
    found = gradient_cam(model, images, targets, "norm", method)
    torch.testing.assert_close(found * 9, exact.relu(), rtol=1e-3, atol=1e-4)


def test_formulas_on_an_inner_layer(model: RepLKNet, images: Tensor) -> None:
    """Against activations and gradients taken by hand, with plain loops over the channels."""
    targets = torch.tensor([1, 1, 3])
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    hook = model.stages[2].register_forward_hook(keep)
    model(images.clone().requires_grad_(True)).gather(1, targets[:, None]).sum().backward()
    hook.remove()
    activation, gradient = kept[0].detach().double(), kept[0].grad.double()
    model.zero_grad()
    sums = {name: torch.zeros(3, 6, 6, dtype=torch.float64) for name in ("gradcam", "hirescam", "layercam")}
    for channel in range(activation.shape[1]):
        a, g = activation[:, channel], gradient[:, channel]
        sums["gradcam"] += g.mean((1, 2))[:, None, None] * a
        sums["hirescam"] += g * a
        sums["layercam"] += g.clamp_min(0) * a
    for name, expected in sums.items():
        found = gradient_cam(model, images, targets, "stages.2", name).double()
        torch.testing.assert_close(found, expected.clamp_min(0), rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_maps_are_scaled_to_the_image() -> None:
    maps = upscale(torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]]), (8, 6))
    assert maps.shape == (2, 8, 6)
    assert (maps[0].min(), maps[0].max()) == (0, 1)
    assert not maps[1].any(), "a flat map shows nothing"


@pytest.mark.parametrize("method", ["cam", "layercam"])
def test_a_few_images_at_a_time(method: str, model: RepLKNet, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The activations of a hundred images would fill a machine's memory."""
    targets = torch.arange(len(images))
    expected = explain(model, images, targets, method)
    monkeypatch.setattr("training.cam.AT_ONCE", 2)
    sizes: list[int] = []
    hook = model.stem[0].register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output)))
    torch.testing.assert_close(explain(model, images, targets, method), expected, rtol=0, atol=1e-3)
    hook.remove()
    assert sizes == [2, 1]


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_what_wraps_a_model_is_looked_through(method: str, model: RepLKNet, images: Tensor) -> None:
    targets = torch.zeros(len(images), dtype=torch.long)
    wrapped = torch.nn.DataParallel(model)
    torch.testing.assert_close(explain(wrapped, images, targets, method), explain(model, images, targets, method))


def test_bad_layers_are_named(model: RepLKNet, images: Tensor) -> None:
    targets = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(SettingsError, match=r"'stage' is not a module of the model: name one such as stem\.0, "):
        gradient_cam(model, images, targets, "stage", "gradcam")
    with pytest.raises(SettingsError, match=r"'head' gives \[3, 5\]"):
        gradient_cam(model, images, targets, "head", "gradcam")
    with pytest.raises(SettingsError, match=r"'stages' is a list or is not run as a whole: .* such as norm"):
        gradient_cam(model, images, targets, "stages", "gradcam")
    shared = deepcopy(model)
    shared.stem[2].activation = shared.stem[0].activation
    with pytest.raises(SettingsError, match=r"'stem\.0\.activation' runs 2 times in a pass: name one that runs once"):
        gradient_cam(shared, images, targets, "stem.0.activation", "gradcam")
    with pytest.raises(SettingsError, match="'scorecam'"):
        gradient_cam(model, images, targets, "norm", "scorecam")
    with pytest.raises(SettingsError, match=r"at 32 px the map of cam is 1 x 1"):
        explain(model, images[:, :, :32, :32], targets, "cam")


class BrightCorner(nn.Module):
    """Class 0 if the upper left quarter is bright: the right map is known."""

    def forward(self, images: Tensor) -> Tensor:
        evidence = images[:, :, : images.shape[2] // 2, : images.shape[3] // 2].mean((1, 2, 3))
        return torch.stack([4 * evidence, torch.zeros_like(evidence)], 1)


def test_scores_tell_a_right_map_from_a_wrong_one() -> None:
    images, targets = torch.rand(2, 3, 16, 16) + 0.5, torch.zeros(2, dtype=torch.int64)
    right = torch.zeros(2, 16, 16)
    right[:, :8, :8] = 1
    scores = {
        name: (insertion(BrightCorner(), images, maps, targets), deletion(BrightCorner(), images, maps, targets))
        for name, maps in (("right", right), ("wrong", right.flip(1, 2)))
    }
    assert (scores["right"][1] < scores["wrong"][1]).all()
    curve = torch.tensor([[1.0, 0.5, 0.0]])
    assert area_under(curve).item() == pytest.approx(0.5)
    sharp = torch.zeros(2, 3, 16, 16)
    sharp[:, :, 2:5, 2:5] = 6
    assert (insertion(BrightCorner(), sharp, right, targets) >= deletion(BrightCorner(), sharp, right, targets)).all()


def test_insertion_begins_with_the_papers_blur() -> None:
    """11 pixels wide, of deviation 5: five pixels from a bright one exp(-1/2) of what is left there."""
    seen: list[Tensor] = []
    model = BrightCorner()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.zeros(1, 3, 25, 25)
    image[:, :, 12, 12] = 1
    insertion(model, image, torch.zeros(1, 25, 25), torch.tensor([0]))
    row = seen[0][0, 0, 12] / seen[0][0, 0, 12, 12]
    assert row[[7, 17]].tolist() == pytest.approx([math.exp(-0.5)] * 2)
    assert row[[6, 18]].tolist() == [0, 0]


def test_pixels_that_are_equally_bright_are_replaced_in_their_order() -> None:
    """On every processor: an unstable sort may order ties, which maps are full of, differently."""

    class Top(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images[:, :, :4].mean((1, 2, 3)), torch.zeros(len(images))], 1)

    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    curve = replacement_curve(Top(), black, white, torch.zeros(1, 16, 16), torch.tensor([0]), steps=8)
    assert curve[0, :3].logit().tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)
    assert (curve[0, 2:] == curve[0, 2]).all()


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    first, second = torch.randint(0, 5, (2, 4, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)]
    assert rank_correlation(first, second).tolist() == pytest.approx(expected)


def test_randomisation_changes_the_map_and_not_the_model(model: RepLKNet, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = torch.zeros(3, dtype=torch.int64)
    check = randomization_check(model, lambda m: explain(m, images, targets, "cam"))
    stages = ["stages.3", "transitions.2", "stages.2", "transitions.1", "stages.1", "transitions.0", "stages.0"]
    assert list(check) == ["head", "norm", *stages, "stem"]
    assert all(abs(value) < 0.9 for value in check.values())
    image_only = randomization_check(model, lambda _: upscale(images.mean(1), images.shape[-2:]))
    assert all(value == pytest.approx(1.0) for value in image_only.values()), "a map of the image alone is found out"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_randomisation_reaches_the_explained_layer(model: RepLKNet, images: Tensor) -> None:
    """A map of the stem's output changes when the stem does, and not before."""
    check = randomization_check(model, lambda m: upscale(m.forward_stem(images).mean(1), images.shape[-2:]))
    assert check.pop("stem") < 0.9
    assert all(value == pytest.approx(1.0) for value in check.values())


def test_a_convolution_in_a_network_with_channels_last_features() -> None:
    """Swin has [B,h,w,C] inside, but its first convolution gives [B,C,h,w]."""
    model = create_model("timm/swin_tiny_patch4_window7_224", num_classes=3, image_size=64).eval()
    images, targets = torch.rand(2, 3, 64, 64), torch.tensor([0, 2])
    kept = []
    model.get_submodule("patch_embed.proj").register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    score = model(images).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, kept[0])
    expected = (gradient * kept[0]).sum(1).relu()  # [B,16,16]
    assert expected.shape == (2, 16, 16)
    torch.testing.assert_close(gradient_cam(model, images, targets, "patch_embed.proj", "hirescam"), expected)
    assert gradient_cam(model, images, targets, "layers.0", "hirescam").shape == (2, 16, 16)

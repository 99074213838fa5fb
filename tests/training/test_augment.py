"""RandAugment's fourteen operations, timm's recipes, mixing."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torch._dynamo.testing import CompileCounter
from torchvision.transforms import v2

from models import ModelConfig
from training.augment import (
    AugmentConfig,
    MixBatch,
    TwoViews,
    eval_transform,
    rand_augment,
    to_picture,
    train_transform,
)
from training.learners import Supervised
from training.losses import CrossEntropy
from training.presets import PRESETS
from training.settings import SettingsError

CONFIG = ModelConfig("replknet_nano", 10, image_size=32)
PAPERS = [
    "Identity",
    "AutoContrast",
    "Equalize",
    "Rotate",
    "Solarize",
    "Color",
    "Posterize",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
]


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def applied(policy: str, image: Image.Image, monkeypatch: pytest.MonkeyPatch, times: int) -> list[tuple[str, float]]:
    calls: list[tuple[str, float]] = []
    original = v2.RandAugment._apply_image_or_video_transform

    def spy(self: v2.RandAugment, picture: object, name: str, magnitude: float, **options: object) -> object:
        calls.append((name, magnitude))
        return original(self, picture, name, magnitude, **options)

    monkeypatch.setattr(v2.RandAugment, "_apply_image_or_video_transform", spy)
    transform = rand_augment(policy, CONFIG)
    torch.manual_seed(0)
    for _ in range(times):
        assert transform(image).size == image.size
    return calls


def test_the_papers_fourteen_at_their_magnitudes(image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = applied("n2-m9", image, monkeypatch, 300)
    assert len(calls) == 600
    assert {name for name, _ in calls} == set(PAPERS)
    counts = [sum(name == operation for name, _ in calls) for operation in PAPERS]
    assert min(counts) > 0.4 * 600 / 14, "drawn evenly, with replacement"
    assert any(calls[i][0] == calls[i + 1][0] for i in range(0, 600, 2)), "the same one may come twice"
    magnitudes = {operation: {round(abs(m), 4) for name, m in calls if name == operation} for operation in PAPERS}
    expected = {
        "Identity": 0,
        "AutoContrast": 0,
        "Equalize": 0,
        "ShearX": 0.3 * 9 / 30,
        "ShearY": 0.3 * 9 / 30,
        "TranslateX": 150 / 331 * 40 * 9 / 30,
        "TranslateY": 150 / 331 * 40 * 9 / 30,
        "Rotate": 30 * 9 / 30,
        **dict.fromkeys(["Brightness", "Color", "Contrast", "Sharpness"], 0.9 * 9 / 30),
        "Posterize": 8 - round(9 / (30 / 4)),
        "Solarize": 1 - 9 / 30,
    }
    for operation, value in expected.items():
        (found,) = magnitudes[operation]
        assert found == pytest.approx(value, abs=1e-4), operation
    for operation in ("Rotate", "ShearX", "TranslateY", "Color"):
        assert {np.sign(m) for name, m in calls if name == operation} == {-1, 1}


def test_number_and_magnitude_are_the_policys(image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rand_augment("n3-m30", CONFIG).fill == [124, 116, 104], "the mean colour"
    assert rand_augment("m9", CONFIG).num_ops == 2, "the paper's"
    calls = applied("n3-m30", image, monkeypatch, 20)
    assert len(calls) == 60
    assert {round(abs(m), 3) for name, m in calls if name == "Rotate"} == {30.0}


def test_timms_recipe(image: Image.Image) -> None:
    transform = rand_augment("rand-m9-mstd0.5-inc1", CONFIG)
    assert len(transform.ops) == 15
    assert {op.magnitude for op in transform.ops} == {9}
    assert {op.magnitude_std for op in transform.ops} == {0.5}
    recipe = create_transform(
        CONFIG.image_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation=CONFIG.interpolation,
        mean=CONFIG.mean,
        std=CONFIG.std,
    )
    (theirs,) = (step for step in recipe.transforms if isinstance(step, auto_augment.RandAugment))
    for ours, published in zip(transform.ops, theirs.ops, strict=True):
        assert (ours.name, ours.hparams) == (published.name, published.hparams)
    random.seed(0)
    np.random.seed(0)
    assert len({transform(image).tobytes() for _ in range(20)}) > 10


def test_posterize_to_nothing_is_black(image: Image.Image) -> None:
    (posterize,) = (op for op in rand_augment("rand-m10-inc1", CONFIG).ops if op.name.startswith("Posterize"))
    assert not np.asarray(posterize.aug_fn(image, 0)).any()
    assert posterize.aug_fn(image, 8) is image
    assert set(np.unique(np.asarray(posterize.aug_fn(image, 1)))) == {0, 128}


@pytest.mark.parametrize(
    "policy",
    ["n0-m9", "n2-m31", "augmix-m3", "rand-m9-inc0", "rand-x5", "2-9", "rand-m9-n0", "rand-m27", "rand-m31-mmax30"],
)
def test_bad_policies_are_named(policy: str) -> None:
    with pytest.raises(SettingsError, match=f"--rand-augment {policy}"):
        rand_augment(policy, CONFIG)


def test_transform_goes_through_all_its_steps(image: Image.Image) -> None:
    everything = AugmentConfig("crop", min_crop_area=0.5, rand_augment="n2-m9", random_erasing=1.0)
    steps = train_transform(CONFIG, everything).transforms
    assert (steps[-1].probability, steps[-1].per_pixel) == (1.0, True)
    assert (tuple(steps[0].scale), steps[0].interpolation) == ((0.5, 1.0), v2.InterpolationMode.BICUBIC)
    assert steps[1].p == 0.5
    assert [getattr(step, "__name__", type(step).__name__) for step in steps] == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "RandAugment",
        "PILToTensor",
        "contiguous",
        "ToDtype",
        "Normalize",
        "RandomErasing",
    ]
    plain = train_transform(CONFIG, AugmentConfig("none"))
    assert torch.equal(plain(image), plain(image))
    views = TwoViews(train_transform(CONFIG, everything))(image)
    assert views.shape == (2, 3, 32, 32)
    assert not torch.equal(views[0], views[1])
    small = train_transform(replace(CONFIG, crop_pct=1.0), AugmentConfig("none"))(image.resize((32, 32)))
    assert np.abs(to_picture(small, CONFIG).astype(int) - np.asarray(image.resize((32, 32)))).max() <= 1


def test_the_corners_of_affine_have_the_mean_colour_or_are_black() -> None:
    """White all over but for the corners, and for bilinear steps between the two."""
    white = Image.new("RGB", (32, 32), "white")
    black = -torch.tensor(CONFIG.mean) / torch.tensor(CONFIG.std)
    for fill, colour in (("mean", torch.zeros(3)), ("black", black)):
        transform = train_transform(CONFIG, AugmentConfig("affine", affine_fill=fill))
        torch.manual_seed(0)
        darkest = torch.stack([transform(white) for _ in range(20)]).amin((0, 2, 3))
        torch.testing.assert_close(darkest, colour, rtol=1e-4, atol=0.01)
    assert AugmentConfig("affine").affine_fill == "mean"
    assert PRESETS["digits"].affine_fill == "black", "their ground"


def test_affine_neither_mirrors_nor_moves_far() -> None:
    """A mark in the upper left stays there."""
    corner = np.zeros((32, 32, 3), np.uint8)
    corner[7:9, 7:9] = 255
    transform = train_transform(CONFIG, AugmentConfig("affine", affine_fill="black"))
    torch.manual_seed(0)
    varied = torch.stack([transform(Image.fromarray(corner)) for _ in range(100)])
    shown = (varied - varied.amin((0, 2, 3), keepdim=True)).amax(1) > 0  # [B,32,32]
    assert shown.any((1, 2)).all()
    assert not shown[:, 16:].any()
    assert not shown[:, :, 16:].any()
    assert len({tuple(image.nonzero()[0].tolist()) for image in shown}) > 10


@pytest.mark.parametrize("flip", [True, False])
def test_crops_are_mirrored_only_where_asked(flip: bool) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    transform = train_transform(CONFIG, AugmentConfig("crop", min_crop_area=0.9, flip=flip))
    torch.manual_seed(0)
    images = [transform(Image.fromarray(pixels)) for _ in range(30)]
    assert len({bool(image[:, :, :16].mean() > image[:, :, 16:].mean()) for image in images}) == 1 + flip


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_an_image_that_is_not_varied_is_the_evaluated_one(image: Image.Image, crop_mode: str, crop_pct: float) -> None:
    config, wide = replace(CONFIG, crop_mode=crop_mode, crop_pct=crop_pct), image.resize((70, 40))
    plain, evaluated = train_transform(config, AugmentConfig("none")), eval_transform(config)
    assert torch.equal(plain(wide), evaluated(wide))
    assert plain.short_side == evaluated.short_side


def test_mixing() -> None:
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    np.random.seed(0)
    before = images.clone()
    mixed, soft = MixBatch(AugmentConfig(mixup=0.8), 0.1, 3, 4)(images, targets)
    assert torch.equal(images, before)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    share = (mixed[1] - images[2]).flatten() @ (images[1] - images[2]).flatten()
    share = share / (images[1] - images[2]).square().sum()
    torch.testing.assert_close(mixed[1], share * images[1] + (1 - share) * images[2])
    torch.testing.assert_close(soft[1], 0.1 / 3 + 0.9 * torch.tensor([0.0, share, 1 - share]))
    cut, soft = MixBatch(AugmentConfig(cutmix=1.0), 0.0, 3, 4)(images, targets)
    own = (cut[1] == images[1]).all(0)  # [8,8]
    assert torch.equal(cut[1], torch.where(own, images[1], images[2]))
    share = own.float().mean()
    assert 0 < share < 1
    torch.testing.assert_close(soft[1], torch.tensor([0.0, share, 1 - share]))
    with pytest.raises(SettingsError, match="--batch-size 5"):
        MixBatch(AugmentConfig(mixup=0.8), 0.1, 3, 5)


def test_a_compiled_learner_mixes_outside_its_graph() -> None:
    """Else each share and rectangle that is drawn would be a constant, and compile a new graph."""

    def losses(compiled: bool) -> list[float]:
        mix = MixBatch(AugmentConfig(mixup=0.8, cutmix=1.0), 0.1, 3, 4)
        learner = Supervised(torch.nn.Sequential(torch.nn.Flatten(), head), CrossEntropy(), mix).train()
        network = torch.compile(learner, backend=graphs) if compiled else learner
        np.random.seed(0)
        return [network(images, targets).item() for _ in range(8)]

    images, targets, head = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), torch.nn.Linear(192, 3)
    graphs = CompileCounter()
    torch.compiler.reset()
    assert losses(compiled=True) == losses(compiled=False)
    assert graphs.frame_count == 1

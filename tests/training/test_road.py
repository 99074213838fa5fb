"""ROAD against its definition, solved densely in float64, pixel by pixel."""

import numpy as np
import pytest
import torch

from tests.training.test_cam import BrightCorner
from training.road import PERCENTILES, impute, road

HEIGHT, WIDTH = 7, 5


def dense_imputation(channel: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """[H,W]: kept pixels are themselves, a removed one is the weighted mean of the neighbours that it has."""
    height, width = channel.shape
    matrix, right = np.eye(height * width), channel.flatten().astype(np.float64)
    for y, x in zip(*np.nonzero(removed), strict=True):
        row = y * width + x
        right[row] = 0
        weights = {}
        for j in range(max(0, y - 1), min(height, y + 2)):
            for i in range(max(0, x - 1), min(width, x + 2)):
                if (j, i) != (y, x):
                    weights[j * width + i] = 1 / 6 if j == y or i == x else 1 / 12
        for column, weight in weights.items():
            matrix[row, column] = -weight / sum(weights.values())
    return np.linalg.solve(matrix, right).reshape(height, width)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
def test_imputation_is_its_linear_system(share: float) -> None:
    generator = torch.Generator().manual_seed(int(100 * share))
    image = torch.randn(3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    removed = torch.rand(HEIGHT, WIDTH, generator=generator) < share
    removed[0, 0], removed[HEIGHT - 1, WIDTH - 1] = True, False  # a corner has three neighbours
    poisoned = torch.where(removed, torch.nan, image)
    filled = impute(torch.where(removed, 1e6, image), removed, 0.0, generator)
    for channel in range(3):
        expected = dense_imputation(np.nan_to_num(poisoned[channel].numpy()), removed.numpy())
        np.testing.assert_allclose(filled[channel].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_noise_is_of_the_removed_pixels_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    image, removed = torch.zeros(3, 64, 64), torch.zeros(64, 64, dtype=torch.bool)
    removed[:, 10:50] = True
    filled = impute(image, removed, 0.01, generator)
    assert filled[:, removed].std().item() == pytest.approx(0.01, rel=0.05)
    assert not filled[:, ~removed].any()
    untouched = impute(image, torch.zeros_like(removed), 0.01, generator)
    assert torch.equal(untouched, image)
    assert untouched is not image


def test_combined_score_is_its_definition() -> None:
    """(without the least relevant - without the most relevant) / 2, the mean over the percentiles."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    maps = torch.rand(2, HEIGHT, WIDTH, generator=generator)
    targets, model = torch.tensor([0, 1]), BrightCorner()
    expected = np.zeros(2)
    for index in range(2):
        order = np.argsort(-maps[index].numpy().flatten())  # most relevant first
        for percentile in PERCENTILES:
            count = round(percentile / 100 * HEIGHT * WIDTH)
            for sign, chosen in ((-1, order[:count]), (1, order[len(order) - count :])):
                removed = np.zeros(HEIGHT * WIDTH, dtype=bool)
                removed[chosen] = True
                removed = removed.reshape(HEIGHT, WIDTH)
                kept = np.where(removed, 0, images[index].numpy())
                filled = torch.from_numpy(np.stack([dense_imputation(channel, removed) for channel in kept]))
                expected[index] += sign * model(filled[None]).softmax(1)[0, targets[index]].item() / 8
    np.testing.assert_allclose(road(model, images, maps, targets, noise=0.0).numpy(), expected, rtol=1e-9)


def test_right_maps_score_above_wrong_ones() -> None:
    images, targets = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2).long()
    images[:, :, :8, :8] += 1.5
    right = torch.zeros(2, 16, 16)
    right[:, :8, :8] = 1
    good, bad = road(BrightCorner(), images, right, targets), road(BrightCorner(), images, 1 - right, targets)
    assert (good > 0.02).all()
    assert (bad < -0.02).all()
    all_of_it = road(BrightCorner(), images, right, targets, percentiles=(100,))
    assert (all_of_it > 0.02).all(), "one pixel stays to fill in from: the most relevant one, or the least"

"""What is counted of a classifier's answers: the confusion matrix, top-1 and top-5, the calibration error."""

import itertools

import numpy as np
import pytest
import torch

from training.accuracy import Calibration, accuracies, by_class, count_answers, top1
from training.tables import per_class_table


def test_confusion_matrix_counts_rows_as_truth() -> None:
    class Answers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = torch.nn.Dropout(1.0)  # nothing is left in training mode

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(self.dropout(images)[:, 0, 0, 0].long(), 3).float()

    images = torch.tensor([0, 1, 1, 2, 0]).view(5, 1, 1, 1).expand(-1, 3, 2, 2).float()
    targets = torch.tensor([0, 0, 1, 2, 2])
    model = Answers().train()
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    counts, _ = count_answers(model, [(images[:3], targets[:3]), (images[3:], targets[3:])], 3, confusion=confusion)
    assert counts.equal(by_class(confusion))
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert top1(counts) == pytest.approx(3 / 5)
    assert model.training
    table = per_class_table(confusion, ["a", "b", "c"])
    assert [str(cell) for cell in table.columns[5].cells] == ["b (1)", "", "a (1)"]
    assert list(table.columns[3].cells) == ["50.00%", "100.00%", "50.00%"]
    assert list(table.columns[4].cells) == ["50.00%", "50.00%", "100.00%"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_no_answers(bad: float) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(images), 3)
            logits[1, 2] = bad
            return logits

    with pytest.raises(ValueError, match="1 of 4 images have logits that are NaN or infinite"):
        count_answers(Broken(), [(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))], 3)


def test_top5_is_counted_and_reported_of_more_than_five_classes() -> None:
    class Ranked(torch.nn.Module):
        """Classes 0, 1, 2, ... in this order, whatever the image."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return -torch.arange(7.0).expand(len(images), -1)

    targets = torch.tensor([0, 4, 5, 6, 3])
    images = torch.zeros(5, 3, 2, 2)
    counts, in_top5 = count_answers(Ranked(), [(images[:3], targets[:3]), (images[3:], targets[3:])], 7)
    assert accuracies(counts, in_top5) == {"top1": 1 / 5, "top5": 3 / 5}
    assert accuracies(torch.ones(2, 5), torch.tensor(5)) == {"top1": 1.0}, "it says nothing"


def expected_calibration_error(logits: np.ndarray, targets: np.ndarray) -> float:
    """As Guo et al. (ICML 2017) define it: bins (0, 1/15], (1/15, 2/15], ..., each weighted by its images."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    confidence, right = (shares / shares.sum(1, keepdims=True)).max(1), logits.argmax(1) == targets
    edges, error = np.linspace(0, 1, 16, dtype=np.float32), 0.0
    for lower, upper in itertools.pairwise(edges):
        inside = (confidence > lower) & (confidence <= upper)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def error_of(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The calibration error of a model that has these logits, counted in batches of 7."""
    model, calibration = torch.nn.Module(), Calibration()
    model.forward = lambda images: images  # type: ignore[method-assign]
    batches = list(zip(logits.split(7), targets.split(7), strict=True))
    count_answers(model, batches, logits.shape[1], calibration=calibration)
    expected = torch.nn.functional.cross_entropy(logits.double(), targets).item()
    assert calibration.nll == pytest.approx(expected, rel=1e-5)
    return calibration.error


def test_the_calibration_error_is_that_of_the_paper() -> None:
    by_hand = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2).log()  # 3 of 4 right of 0.9 each, 1 of 2 of 0.6
    expected = 4 / 6 * (0.9 - 0.75) + 2 / 6 * (0.6 - 0.5)
    assert error_of(by_hand, torch.tensor([0, 0, 0, 1, 0, 1])) == pytest.approx(expected, abs=1e-6)
    assert error_of(torch.tensor([[99.0, 0.0]] * 2), torch.tensor([0, 0])) == 0.0
    assert error_of(torch.tensor([[99.0, 0.0]] * 2), torch.tensor([1, 1])) == 1.0
    generator = torch.Generator().manual_seed(0)
    for classes, scale in ((2, 1.0), (5, 0.0), (10, 3.0), (300, 6.0)):  # scale 0: 0.2 each, the edge of two bins
        logits = scale * torch.randn(500, classes, generator=generator)
        targets = torch.where(torch.rand(500, generator=generator) < 0.5, logits.argmax(1), 0)
        if scale == 0.0:
            logits[::2, 0] = 1e-3  # just above the edge, and always right
            targets[1::2] = 1
        reference = expected_calibration_error(logits.numpy(), targets.numpy())
        assert reference > 0.05
        assert error_of(logits, targets) == pytest.approx(reference, abs=1e-6)


def test_equal_logits_are_answered_and_ranked_alike() -> None:
    class Undecided(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 200, dtype=torch.bfloat16)  # as under autocast

    ranked: list[tuple[torch.Tensor, torch.Tensor]] = []
    counts, _ = count_answers(Undecided(), [(torch.zeros(2, 3, 2, 2), torch.tensor([0, 1]))], 200, ranked=ranked)
    assert counts[:, :3].tolist() == [[1, 1, 0], [1, 0, 0]], "the first of them is the answer"
    assert ranked[0][0].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert ranked[0][1].tolist() == pytest.approx([1 / 200] * 2), "not rounded as the logits are"

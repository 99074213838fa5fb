"""PaCo and GPaCo against the papers' sums in float64, and the places where common code goes wrong."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import create_model
from training.paco import EMPTY, FeatureQueue, PaCo, paco_loss
from training.settings import SettingsError

COUNTS = [50, 9, 3]


def from_the_paper(
    logits: Tensor,
    anchors: Tensor,
    contrasts: Tensor,
    targets: Tensor,
    contrast_targets: Tensor,
    *,
    temperature: float,
    alpha: float,
    smoothing: float,
) -> float:
    priors, classes, total = [n / sum(COUNTS) for n in COUNTS], len(COUNTS), 0.0
    for i in range(len(anchors)):
        terms = []  # (weight in the numerator, logit)
        for c in range(classes):
            share = 1 - smoothing if c == targets[i] else smoothing / (classes - 1)
            terms.append((share, logits[i, c].item() + math.log(priors[c])))
        for j in range(len(contrasts)):
            if j == i or contrast_targets[j] == EMPTY:
                continue
            same = alpha if contrast_targets[j] == targets[i] else 0.0
            terms.append((same, torch.dot(anchors[i], contrasts[j]).item() / temperature))
        denominator = math.log(sum(math.exp(value) for _, value in terms))
        total -= sum(w * (value - denominator) for w, value in terms) / sum(w for w, _ in terms)
    return total / len(anchors)


@pytest.mark.parametrize("generalized", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_papers(generalized: bool, smoothing: float) -> None:
    torch.manual_seed(0)
    batch, dim, queue = 5, 8, 7
    targets = torch.tensor([0, 1, 1, 2, 0])
    features = F.normalize(torch.randn(2 * batch + queue, dim, dtype=torch.float64), dim=1)
    queue_labels = torch.tensor([0, 1, EMPTY, 2, EMPTY, 1, 0])
    contrast_targets = torch.cat([targets, targets, queue_labels])
    anchors = features[: 2 * batch] if generalized else features[:batch]
    anchor_targets = torch.cat([targets, targets])[: len(anchors)]
    logits = torch.randn(len(anchors), 3, dtype=torch.float64)
    prior = torch.tensor([n / sum(COUNTS) for n in COUNTS], dtype=torch.float64).log()
    settings = {"alpha": 0.05, "smoothing": smoothing}
    similarities = anchors @ features.T / 0.2
    loss = paco_loss(logits, similarities, anchor_targets, contrast_targets, prior=prior, **settings)
    expected = from_the_paper(logits, anchors, features, anchor_targets, contrast_targets, temperature=0.2, **settings)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_an_empty_queue_is_no_queue() -> None:
    """Places that hold nothing are neither positives nor negatives."""
    torch.manual_seed(0)
    targets, logits = torch.tensor([0, 1]), torch.randn(2, 3)
    similarities, prior = torch.randn(2, 4), torch.zeros(3)
    labels = torch.cat([targets, targets])
    without = paco_loss(logits, similarities, targets, labels, prior=prior, alpha=0.05)
    padded = torch.cat([similarities, 50 * torch.ones(2, 6)], 1)
    with_empty = paco_loss(
        logits, padded, targets, torch.cat([labels, torch.full((6,), EMPTY)]), prior=prior, alpha=0.05
    )
    torch.testing.assert_close(with_empty, without)


def test_queue_takes_any_number_and_keeps_the_newest() -> None:
    queue, added = FeatureQueue(5, 2), []
    for count in (2, 2, 3, 1, 8):
        new = torch.arange(len(added), len(added) + count)
        queue.add(torch.stack([new, -new], 1).float(), new)
        added += new.tolist()
        held = {int(label) for label in queue.labels if label != EMPTY}
        assert held == set(added[-5:])
        for label, feature in zip(queue.labels.tolist(), queue.features.tolist(), strict=True):
            assert label == EMPTY or feature == [label, -label]


@pytest.mark.parametrize("generalized", [False, True])
def test_learner(generalized: bool) -> None:
    """Features in the queue have length 1 each; keys carry gradient only in GPaCo; the momentum encoder follows."""
    torch.manual_seed(0)
    model = create_model("replknet_nano", 3)
    learner = PaCo(model, COUNTS, generalized=generalized, queue_size=7, dim=6, momentum=0.9).train()
    images, targets = torch.randn(3, 2, 3, 32, 32), torch.tensor([0, 2, 1])
    for _ in range(3):
        loss = learner(images, targets)
    loss.backward()
    torch.testing.assert_close(learner.queue.features.norm(dim=1), torch.ones(7))
    assert sorted(learner.queue.labels.unique().tolist()) == [0, 1, 2]
    assert model.head.weight.grad.abs().sum() > 0, "the centres learn"
    assert learner.projection[0].weight.grad.abs().sum() > 0
    assert len([m for m in learner.projection if isinstance(m, torch.nn.Linear)]) == (3 if generalized else 2)
    if generalized:
        assert learner.key_model is None
        return
    trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("key_") for name in trained)
    pairs = [(learner.key_model.head, model.head), (learner.key_projection[0], learner.projection[0])]
    before = [key.weight.clone() for key, _ in pairs]
    with torch.no_grad():
        for _, query in pairs:
            query.weight.add_(1.0)
    learner.after_step()
    for (key, query), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(key.weight, 0.9 * old + 0.1 * query.weight)


@pytest.mark.parametrize("generalized", [False, True])
def test_the_learners_loss_is_the_papers(generalized: bool) -> None:
    """Of both views, each by its own encoder, and of the keys that the queue has kept."""
    torch.manual_seed(0)
    settings = {"temperature": 0.3, "alpha": 0.4, "smoothing": 0.2}
    model = create_model("replknet_nano", 3)
    learner = PaCo(model, COUNTS, generalized=generalized, queue_size=4, dim=6, **settings).train()
    for network in (learner.key_model, learner.key_projection):
        for parameter in () if network is None else network.parameters():
            parameter.mul_(1.1)
    key_model, key_projection = (
        (model, learner.projection) if generalized else (learner.key_model, learner.key_projection)
    )
    kept, kept_targets = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    for targets in (torch.tensor([0, 2]), torch.tensor([1, 0])):
        images = torch.randn(2, 2, 3, 64, 64)
        with torch.no_grad():
            loss = learner(images, targets)
            logits, queries = PaCo._encode(model, learner.projection, images[:, 0])
            key_logits, keys = PaCo._encode(key_model, key_projection, images[:, 1])
        anchors = torch.cat([queries, keys]) if generalized else queries
        expected = from_the_paper(
            torch.cat([logits, key_logits])[: len(anchors)],
            anchors,
            torch.cat([queries, keys, kept]),
            torch.cat([targets, targets])[: len(anchors)],
            torch.cat([targets, targets, kept_targets]),
            **settings,
        )
        assert (queries - keys).abs().max() > 0.01
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        kept, kept_targets = torch.cat([kept, keys]), torch.cat([kept_targets, targets])


def test_similarities_are_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    learner = PaCo(create_model("replknet_nano", 3), COUNTS, queue_size=4, dim=6, temperature=0.02)
    logits, features = torch.randn(5, 3), F.normalize(torch.randn(5, 6), dim=1)
    monkeypatch.setattr(PaCo, "_encode", staticmethod(lambda *_: (logits, features)))
    images, targets = torch.zeros(5, 2, 3, 32, 32), torch.tensor([0, 2, 1, 0, 0])
    state = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    exact = learner(images, targets)
    learner.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(learner(images, targets), exact, rtol=1e-6, atol=1e-6)


def test_impossible_sizes() -> None:
    with pytest.raises(SettingsError, match="--paco-queue 0, --paco-dim"):
        PaCo(create_model("replknet_nano", 3), COUNTS, queue_size=0)
    with pytest.raises(SettingsError, match="class index 2 has no training image"):
        PaCo(create_model("replknet_nano", 3), [3, 2, 0])

"""Attacks stay in the ball, raise the loss and do not change the model."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import create_model
from training import attacks
from training.attacks import Attack, PixelModel, apgd_ce, apgd_checkpoints, fgsm, losses_and_gradient, pgd
from training.settings import SettingsError

MEAN, STD = [0.1, 0.5, 0.6], [0.2, 0.3, 0.4]
EPSILON = 8 / 255
ATTACKS = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, EPSILON),
    "pgd": lambda model, x, y: pgd(model, x, y, EPSILON, steps=5, restarts=2),
    "apgd": lambda model, x, y: apgd_ce(model, x, y, EPSILON, steps=12),
}


@pytest.fixture(scope="module")
def model() -> PixelModel:
    torch.manual_seed(0)
    network = create_model("replknet_nano", 4).train()
    for _ in range(3):
        network(torch.randn(16, 3, 32, 32))
    return PixelModel(network, MEAN, STD).eval()


@pytest.fixture(scope="module")
def batch(model: PixelModel) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    pixels = torch.rand(6, 3, 32, 32)
    pixels[:2] = pixels[:2].round()  # at the border of what a pixel can be
    return pixels, model(pixels).argmax(1)


def cross_entropy(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(pixels), targets, reduction="none")


@pytest.mark.parametrize("name", ATTACKS)
def test_in_the_ball_and_stronger(name: str, model: PixelModel, batch: tuple[Tensor, Tensor]) -> None:
    pixels, targets = batch
    adversarial = ATTACKS[name](model, pixels, targets)
    assert (adversarial - pixels).abs().max() <= EPSILON + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad
    assert (cross_entropy(model, adversarial, targets) > cross_entropy(model, pixels, targets)).all()
    assert torch.equal(pixels, batch[0]), "the images themselves are not touched"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fgsm_is_its_formula(batch: tuple[Tensor, Tensor]) -> None:
    """On a linear model the gradient is known: sum over classes of (p - onehot) W, divided by std."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).double()
    model, pixels, targets = PixelModel(linear, MEAN, STD).double(), batch[0].double(), batch[1]
    error = model(pixels).softmax(1) - F.one_hot(targets, 4)
    gradient = (error @ linear[1].weight).view_as(pixels) / model.std
    losses, found, _ = losses_and_gradient(model, pixels, targets)
    torch.testing.assert_close(found, gradient)
    torch.testing.assert_close(losses, F.cross_entropy(model(pixels), targets, reduction="none"))
    expected = (pixels + EPSILON * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, pixels, targets, EPSILON), expected)
    torch.testing.assert_close(pgd(model, pixels, targets, EPSILON, 1, EPSILON, from_random=False), expected)


def test_pgds_steps_are_two_and_a_half_radii_together(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    linear, pixels = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), torch.full_like(batch[0], 0.5)
    visited: list[Tensor] = []
    linear.register_forward_pre_hook(lambda _, inputs: visited.append(inputs[0].detach()))
    pgd(PixelModel(linear, [0.0] * 3, [1.0] * 3), pixels, batch[1], EPSILON, steps=10, from_random=False)
    torch.testing.assert_close((visited[1] - visited[0]).abs(), torch.full_like(pixels, 2.5 * EPSILON / 10))


def test_sign_of_a_tiny_gradient_survives_float16(batch: tuple[Tensor, Tensor]) -> None:
    """The answer is so sure that the gradient is about 1e-10; float16's least number is 6e-8."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with torch.no_grad():
        linear[1].weight[0] = -linear[1].weight[1]
        linear[1].bias.copy_(torch.tensor([20.0, 0.0]))
    model, pixels, targets = PixelModel(linear, MEAN, STD), batch[0], torch.zeros(6, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        losses, gradient, logits = losses_and_gradient(model, pixels, targets)
        assert model(pixels).dtype == torch.float16, "the caller's own passes are as before"
    assert 0 < gradient.abs().max() < 6e-8
    assert (losses.dtype, logits.dtype) == (torch.float32, torch.float32)
    assert torch.equal(gradient.sign(), linear[1].weight[1].sign().view(1, 3, 32, 32).expand(6, -1, -1, -1))
    with torch.autocast("cpu", torch.bfloat16):
        assert losses_and_gradient(model, pixels, targets)[2].dtype == torch.bfloat16, "has float32's range"


@pytest.mark.parametrize(("restarts", "passes"), [(1, 5), (2, 12)])
def test_one_restart_needs_no_judge(restarts: int, passes: int, batch: tuple[Tensor, Tensor]) -> None:
    calls: list[int] = []
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    linear.register_forward_hook(lambda *_: calls.append(1))
    pgd(PixelModel(linear, MEAN, STD), *batch, EPSILON, steps=5, restarts=restarts)
    assert len(calls) == passes


def test_stronger_attacks_are_stronger(model: PixelModel, batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    mean = {name: cross_entropy(model, attack(model, *batch), batch[1]).mean() for name, attack in ATTACKS.items()}
    assert mean["apgd"] >= mean["fgsm"]
    assert mean["pgd"] >= mean["fgsm"]


class TwoPixels(nn.Module):
    """Class 0 unless one of two pixels is above 1/2."""

    def forward(self, pixels: Tensor) -> Tensor:
        evidence = 4 * pixels[:, :2, 0, 0] - 2  # [B,2]
        return torch.cat([torch.zeros(len(pixels), 1), evidence], 1)


def test_restarts_keep_the_best_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart that misclassifies is kept whatever the loss of the others. Each starts at a point and stays there."""
    points = {"low": (0.1, 0.1, 0.0), "mid": (0.3, 0.3, 0.0), "high": (0.49, 0.49, 0.0), "wrong": (0.55, 0.0, 0.0)}
    restarts = [  # a column an image, the last row what is to be kept
        ("low", "high", "high", "wrong", "low"),
        ("high", "low", "wrong", "high", "wrong"),
        ("mid", "mid", "high", "high", "high"),
        ("high", "high", "wrong", "wrong", "wrong"),
    ]
    *starts, expected = (torch.tensor([points[name] for name in row]).view(-1, 3, 1, 1) for row in restarts)
    targets, model, left = torch.zeros(5, dtype=torch.int64), TwoPixels(), iter(starts)
    high, wrong = cross_entropy(model, starts[0][[1, 3]], targets[:2])
    assert high > wrong
    monkeypatch.setattr(attacks, "random_start", lambda *_: next(left))
    kept = pgd(model, torch.zeros(5, 3, 1, 1), targets, 1.0, steps=1, step=0.0, restarts=3)
    assert torch.equal(kept, expected)


def test_apgd_looks_back_where_the_paper_does() -> None:
    assert apgd_checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert apgd_checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]


def test_apgd_finds_the_corner_of_a_linear_model(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    linear = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), MEAN, STD)
    pixels, targets = batch[0], torch.zeros(6, dtype=torch.int64)
    best = cross_entropy(linear, fgsm(linear, pixels, targets, EPSILON), targets)  # two classes: exactly optimal
    found = cross_entropy(linear, apgd_ce(linear, pixels, targets, EPSILON, steps=30), targets)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)


def points_of_the_paper(model: nn.Module, pixels: Tensor, target: Tensor, start: Tensor, steps: int) -> list[Tensor]:
    """Algorithm 1 of Croce & Hein (ICML 2020) for one image: every point at which the loss is computed."""

    def at(x: Tensor) -> tuple[float, Tensor]:
        x = x.clone().requires_grad_(True)
        loss = F.cross_entropy(model(x), target)
        return loss.item(), torch.autograd.grad(loss, x)[0].sign()

    def inside(x: Tensor) -> Tensor:
        return x.clamp(pixels - EPSILON, pixels + EPSILON).clamp(0, 1)

    size, points, raised, since, halved, best_then = 2 * EPSILON, [start], 0, 0, False, at(start)[0]
    best, previous, x = start, start, start
    for k in range(1, steps + 1):
        loss, sign = at(x)
        z = inside(x + size * sign)
        new = z if k == 1 else inside(x + 0.75 * (z - x) + 0.25 * (x - previous))
        points.append(new)
        raised, since = raised + (at(new)[0] > loss), since + 1
        best = new if at(new)[0] > at(best)[0] else best
        previous, x = x, new
        if k in apgd_checkpoints(steps):
            halved = raised < 0.75 * since or (not halved and at(best)[0] == best_then)
            raised, since, best_then = 0, 0, at(best)[0]
            if halved:
                size, x = size / 2, best
    return points


def test_apgd_goes_where_the_papers_algorithm_goes(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    model, pixels, steps = PixelModel(network, MEAN, STD).double(), batch[0].double(), 30
    targets, visited = model(pixels).argmax(1), []
    hook = model.register_forward_pre_hook(lambda _, inputs: visited.append(inputs[0].detach()))
    apgd_ce(model, pixels, targets, EPSILON, steps=steps)
    hook.remove()
    for image, points in enumerate(torch.stack(visited, 1)):
        one = slice(image, image + 1)
        expected = points_of_the_paper(model, pixels[one], targets[one], points[:1], steps)
        torch.testing.assert_close(points, torch.cat(expected))


class Peak(nn.Module):
    """The loss is highest at u = -0.99, the mean pixel in epsilons above 1/2, and rises slowly beside that peak."""

    def forward(self, pixels: Tensor) -> Tensor:
        u = (pixels.mean((1, 2, 3)) - 0.5) / EPSILON
        return torch.stack([torch.zeros_like(u), u / 10 + 100 * (0.01 - (u + 0.99).abs()).relu()], 1)


def test_apgd_gives_a_step_that_was_halved_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is at the peak: each step but the first raises the loss, and none reaches the best one."""
    pixels, steps, visited = torch.full((1, 3, 1, 1), 0.5).double(), 100, []
    targets, model = torch.zeros(1, dtype=torch.int64), Peak()
    start = pixels - 0.991 * EPSILON
    monkeypatch.setattr(attacks, "random_start", lambda *_: start)
    model.register_forward_pre_hook(lambda _, inputs: visited.append(inputs[0].detach()))
    apgd_ce(model, pixels, targets, EPSILON, steps=steps)
    torch.testing.assert_close(
        torch.cat(visited), torch.cat(points_of_the_paper(Peak(), pixels, targets, start, steps))
    )


class Between(nn.Module):
    """Four classes by the mean pixel u, in epsilons above 1/2: class 1 is the answer from u = 0.55 on, class 0 below,
    with the highest loss at 0.5."""

    def forward(self, pixels: Tensor) -> Tensor:
        u = (pixels.mean((1, 2, 3)) - 0.5) / EPSILON
        all_but_0, beyond = -1.5 + 2.8 * u, (u - 0.5).relu()
        first = all_but_0 - 0.8 * beyond - 2.0 * (u - 0.6).relu()  # 0.1 from u = 0.6 on
        others = all_but_0 - 12.6 * beyond
        return torch.stack([torch.zeros_like(u), first, others, others], 1)


@pytest.mark.parametrize("restarts", [1, 2])
def test_apgd_keeps_a_misclassified_point_of_lower_loss(restarts: int) -> None:
    pixels, targets, model = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64), Between()
    losses = cross_entropy(model, torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1) * EPSILON + 0.5, targets.new_zeros(3))
    assert losses[1] > losses[2] > losses[0]
    adversarial = apgd_ce(model, pixels, targets, EPSILON, steps=30, restarts=restarts)
    assert (model(adversarial).argmax(1) == 1).all()


@pytest.mark.parametrize("attack", [pgd, apgd_ce])
@pytest.mark.parametrize(("name", "value"), [("epsilon", 1.5), ("steps", 0), ("restarts", 0)])
def test_impossible_attacks(
    attack: Attack, name: str, value: float, model: PixelModel, batch: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(SettingsError, match=f"{name} {value}"):
        attack(model, *batch, **{"epsilon": 0.1, name: value})


@pytest.mark.parametrize("step", [-0.1, float("nan")])
def test_impossible_steps(step: float, model: PixelModel, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(SettingsError, match=f"step {step}: pixel units"):
        pgd(model, *batch, 0.1, step=step)

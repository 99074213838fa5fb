"""Scores of maps: insertion and deletion (Petsiuk et al., BMVC 2018); randomisation (Adebayo et al., NeurIPS 2018)."""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from models import RepLKNet, head_names


def brightness_rank(maps: Tensor) -> Tensor:
    """Rank the pixels of each map, 0 for the brightest; equal ones in their order. [B,H,W] -> [B,H,W]."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(1).view_as(maps)


@torch.no_grad()
def replacement_curve(
    model: nn.Module, start: Tensor, end: Tensor, maps: Tensor, targets: Tensor, steps: int = 20
) -> Tensor:
    """Probability [B,steps+1] of the target while `start` [B,3,H,W] becomes `end`, the map's brightest pixels first."""
    rank = brightness_rank(maps)[:, None]  # [B,1,H,W]
    probabilities = []
    for step in range(steps + 1):
        replaced = rank < round(step / steps * rank[0].numel())
        logits = model(torch.where(replaced, end, start))
        probabilities.append(logits.softmax(1).gather(1, targets[:, None])[:, 0])
    return torch.stack(probabilities, 1)


def area_under(curve: Tensor) -> Tensor:
    """Integrate curves [B,steps+1] over 0..1 by trapezoids -> [B]."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def deletion(model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    """Area [B] under the target's probability while the brightest pixels become the mean: lower is better."""
    return area_under(replacement_curve(model, images, torch.zeros_like(images), maps, targets))


def insertion(model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    """Area [B] under the target's probability while a blurred image gets its pixels back: higher is better."""
    blurred = gaussian_blur(images, [11, 11], [5.0, 5.0])  # the paper's
    return area_under(replacement_curve(model, blurred, images, maps, targets))


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation [B] of maps [B,H,W]; ties get their mean rank."""
    from scipy.stats import rankdata  # the import takes half a second

    a, b = (torch.from_numpy(rankdata(maps.flatten(1).cpu(), axis=1)) for maps in (first, second))
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)


def parts_from_the_head(model: nn.Module) -> tuple[str, ...]:
    """The names of all parts with weights, from the head to the stem."""
    if isinstance(model, RepLKNet):
        parts = ["stem", "stages.0"]
        for i in range(len(model.transitions)):
            parts += [f"transitions.{i}", f"stages.{i + 1}"]
        parts.append("norm")
    else:
        parts = [name for name, _ in model.named_children()]
    parts = [name for name in parts if any(True for _ in model.get_submodule(name).parameters())]
    heads = head_names(model)
    return *heads, *[name for name in reversed(parts) if name not in heads]


@torch.no_grad()
def randomization_check(model: nn.Module, explain: Callable[[nn.Module], Tensor]) -> dict[str, float]:
    """Return, by part, the mean rank correlation of the maps of `model` with those after the part is randomised.

    Parts are randomised one after the other from the head down, and stay so. A map that explains the model must change:
    a correlation near 1 means that it shows the image and not the model. The weights of a part are permuted, so that
    their distribution does not change.
    """
    before, changed = explain(model), deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    result = {}
    for part in parts_from_the_head(model):
        for parameter in changed.get_submodule(part).parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
        result[part] = rank_correlation(before, explain(changed)).mean().item()
    return result

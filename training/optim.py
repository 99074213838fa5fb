"""The optimiser, its parameter groups and the learning rate of every step."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from models import RepLKNet
from training.settings import LoopConfig, SettingsError

PAIRS_A_GROUP = 2  # RepLKNet's published layer decay: two RepLKBlocks and two ConvFFNs share a learning rate


def layer_index(name: str, layers: Iterable[int]) -> int:
    """The layer-decay group of a RepLKNet parameter: 0 the stem, the largest the norm and the head.

    A transition goes with the blocks before it. For 2,2,18,2 layers these are the 14 groups of the authors' code.
    """
    groups = [-(-depth // PAIRS_A_GROUP) for depth in layers]
    if name.startswith("stem."):
        return 0
    if found := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
        stage, block = int(found[1]), int(found[2])
        return 1 + sum(groups[:stage]) + block // (2 * PAIRS_A_GROUP)
    if found := re.match(r"transitions\.(\d+)\.", name):
        return sum(groups[: int(found[1]) + 1])
    return 1 + sum(groups)


def layer_indices(model: nn.Module) -> dict[str, int]:
    """The layer-decay group of every parameter by name: RepLKNet's as published, timm's as timm has them.

    Raises `SettingsError` for a model whose layers are not known.
    """
    if isinstance(model, RepLKNet):
        layers = [len(stage.blocks) // 2 for stage in model.stages]  # type: ignore[arg-type]
        return {name: layer_index(name, layers) for name, _ in model.named_parameters()}
    if not hasattr(model, "group_matcher"):
        raise SettingsError(f"--layer-decay: the layers of {type(model).__name__} are not known; use 1")
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]


def undecayed_names(model: nn.Module) -> set[str]:
    """Parameters of more than one dimension that their authors train without weight decay, such as position biases.

    timm's models name them, some by patterns such as pos_embed.*
    """
    patterns: Iterable[str] = getattr(model, "no_weight_decay", set)()
    return {name for name, _ in model.named_parameters() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def parameter_groups(learner: nn.Module, model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict]:
    """Groups with `weight_decay` (none for biases, norms and other vectors) and, under layer decay, `lr_scale`.

    What `learner` holds besides `model` (projections, tokens) learns at the full rate. Raises `SettingsError` for a
    layer decay outside 0..1, or on a model whose layers are not known.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise SettingsError(f"--layer-decay {layer_decay}: it must be above 0 and at most 1")
    free = undecayed_names(model)
    if layer_decay == 1.0:
        return param_groups_weight_decay(learner, weight_decay, no_weight_decay_list=[f"model.{name}" for name in free])
    by_name = layer_indices(model)
    index = {parameter: by_name[name] for name, parameter in model.named_parameters()}
    undecayed = {parameter for name, parameter in model.named_parameters() if name in free}
    top = max(by_name.values())
    groups: dict[tuple[int, bool], dict] = {}
    for parameter in learner.parameters():
        if not parameter.requires_grad:
            continue
        layer, decays = index.get(parameter, top), parameter.dim() > 1 and parameter not in undecayed
        entry = {"params": [], "weight_decay": weight_decay * decays, "lr_scale": layer_decay ** (top - layer)}
        groups.setdefault((layer, decays), entry)["params"].append(parameter)
    return list(groups.values())


def make_optimizer(learner: nn.Module, model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(learner, model, config.weight_decay, config.layer_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def make_scheduler(optimizer: torch.optim.Optimizer, config: LoopConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine, by optimiser step; a function of the step alone, so it has no state to save.

    The first step has 1 % of the peak, the first one after the warm-up the peak. RepLKNet's authors begin at 0 and have
    the peak one step earlier, with the same cosine; SimMIM's begin at 0.5 % and let the cosine run from the first step.
    """
    steps = config.epochs * steps_per_epoch
    warmup = min(steps - 1, int(config.warmup_epochs * steps_per_epoch))
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps - warmup),  # a single step is the peak either way; of 1 timm warns
        lr_min=config.lr / 100 if config.min_lr is None else config.min_lr,
        warmup_t=warmup,
        warmup_prefix=True,
        warmup_lr_init=config.lr / 100,
        t_in_epochs=False,
    )

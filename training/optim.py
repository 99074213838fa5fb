"""The optimiser, its parameter groups, the learning rate of every step, and the average of the weights."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import compress

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from training.settings import LoopConfig, SettingsError


class Average(ModelEmaV3):
    """timm's average of all of `model`'s state. The tensors are listed once: to make two state dicts in each step takes
    longer than to launch the kernels, and the GPU would wait.
    """

    def __init__(self, model: nn.Module, decay: float, use_warmup: bool) -> None:
        super().__init__(model, decay, use_warmup=use_warmup)
        ours, models = (list(each.state_dict(keep_vars=True).values()) for each in (self.module, model))
        floating = [tensor.is_floating_point() for tensor in ours]
        counts = [not each for each in floating]  # of batches
        self.values, self.model_values = (list(compress(each, floating)) for each in (ours, models))
        self.counts, self.model_counts = (list(compress(each, counts)) for each in (ours, models))

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        torch._foreach_lerp_(self.values, self.model_values, weight=1.0 - decay)
        if self.counts:
            torch._foreach_copy_(self.counts, self.model_counts)


def undecayed_names(model: nn.Module) -> set[str]:
    """Parameters of more than one dimension that their authors train without weight decay, such as position biases.

    timm's models name them, some by patterns such as pos_embed.*
    """
    patterns: Iterable[str] = getattr(model, "no_weight_decay", set)()
    return {name for name, _ in model.named_parameters() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def parameter_groups(learner: nn.Module, model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict]:
    """Groups with `weight_decay` (none for biases, norms and other vectors) and, under layer decay, timm's `lr_scale`.

    Parameters of `learner` outside `model` (projections, tokens) learn at the full rate. Raises `SettingsError` for a
    layer decay outside 0..1, or on a model whose layers are not known.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise SettingsError(f"--layer-decay {layer_decay}: it must be above 0 and at most 1")
    free = undecayed_names(model)
    if layer_decay == 1.0:
        return param_groups_weight_decay(learner, weight_decay, no_weight_decay_list=[f"model.{name}" for name in free])
    if not hasattr(model, "group_matcher"):
        raise SettingsError(
            f"--layer-decay: the layers of {type(model).__name__} are not known: use 1, the same rate for all"
        )
    rest = nn.ParameterList(each for name, each in learner.named_parameters() if not name.startswith("model."))
    return [
        *param_groups_layer_decay(model, weight_decay, free, layer_decay=layer_decay),
        *param_groups_weight_decay(rest, weight_decay),
    ]


def make_optimizer(learner: nn.Module, model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(learner, model, config.weight_decay, config.layer_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def make_scheduler(optimizer: torch.optim.Optimizer, config: LoopConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine, by optimiser step; it depends only on the step, so it has no state to save.

    The rate is 1 % of the peak in the first step, and the peak in the first step after the warm-up. RepLKNet's authors
    begin at 0 and reach the peak one step earlier, with the same cosine; SimMIM's begin at 0.5 % and let the cosine run
    from the first step.
    """
    steps = config.epochs * steps_per_epoch
    warmup = min(steps - 1, int(config.warmup_epochs * steps_per_epoch))
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps - warmup),  # timm warns of 1; a single step is the peak anyway
        lr_min=config.lr / 100 if config.min_lr is None else config.min_lr,
        warmup_t=warmup,
        warmup_prefix=True,
        warmup_lr_init=config.lr / 100,
        t_in_epochs=False,
    )

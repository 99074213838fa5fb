"""Load weights into a model: from a checkpoint folder, or from a file that others publish."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from models.classifier import head_names
from models.registry import create_skeleton
from models.replknet import RepLKNet
from models.timm_models import of_timm, renamed_keys
from models.weight_files import WeightsError, first_line, read_state
from models.wrappers import bare_model, sharded_name

WEIGHTS_FILE = "model.safetensors"
POSITIONS = ("pos_embed", "position", "attention_biases")  # in the names of parameters that have a value per position


def load_weights(model: nn.Module, path: str | Path, *, skip_head: bool = False, arch: str = "") -> None:
    """Load a file of safetensors or torch.save, or a checkpoint folder, into `model`: all or, on any error, nothing.

    Files, whatever their suffix: a plain state dict, or one under "model", "state_dict" or "model_state_dict", or else
    under "model_ema" or "state_dict_ema" (a timm model prefers these two, as timm's own loader does). Keys may begin
    with "module." (DDP), "_orig_mod." (torch.compile), "model." (Lightning) or "backbone." (OpenMMLab): keys without it
    are then left out, unless they fit the model. A file in the published deploy form turns `model` into that form. A
    timm model takes what timm publishes as a file and, where timm can translate them, its authors' files. `skip_head`
    keeps the model's own classifier. Code in a pickle is never run. `arch` names the model in errors.

    Raises `FileNotFoundError`, and `WeightsError` for a file that cannot be read, a key that is missing, unexpected or
    of another shape, another number of classes, NaN or infinity; and for a model without memory, or that is sharded.
    """
    path, model = weights_file(Path(path)), bare_model(model)
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):  # PyTorch would load nothing, with warnings
        raise WeightsError(
            'the model is on the device "meta", without memory: model.to_empty(device="cpu") gives it some'
        )
    if name := sharded_name(own):
        raise WeightsError(f"{name!r} of the model is sharded: load the weights first, and call fully_shard after")
    state = read_state(path, own.keys(), prefer_average=of_timm(model))
    names = head_names(model) if hasattr(model, "get_classifier") else ()  # a model of one's own may have none
    target, heads = model, tuple(f"{name}." for name in names)
    if isinstance(model, RepLKNet) and any(".lkb_reparam." in name for name in state):
        target = deepcopy(model)
        target.merge_branches()
    expected = target.state_dict()
    if of_timm(model) and state.keys() != expected.keys():
        state = _translated(state, model, path)
    if skip_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
        state |= {name: tensor for name, tensor in expected.items() if name.startswith(heads)}
    for name in expected.keys() - state.keys():
        if name.endswith(".num_batches_tracked"):  # a counter that evaluation and momentum 0.1 never read
            state[name] = expected[name]
    other = f"it belongs to another model{f', not to {arch}' if arch else ''}"
    state = _checked(state, expected, path, heads, other)
    if isinstance(model, RepLKNet) and target is not model:
        model.merge_branches()
    model.load_state_dict(state)


def weights_file(path: Path) -> Path:
    """Return the file itself, or the one in a checkpoint folder."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def count_classes(arch: str, path: str | Path) -> int | None:
    """Return the number of classes in a weights file of `arch`; None without a head. Raises as `load_weights`."""
    path = Path(path)
    model = create_skeleton(arch)
    state = read_state(path, model.state_dict().keys(), prefer_average=of_timm(model))
    if of_timm(model) and state.keys() != model.state_dict().keys():
        state = _translated(state, model, path)
    head = state.get(head_names(model)[0] + ".weight")
    return None if head is None or head.dim() == 0 else len(head)


def _translated(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    try:
        return renamed_keys(state, model)
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path} belongs to another model: timm cannot read it ({first_line(error)})") from error


def _checked(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, heads: tuple[str, ...], other: str
) -> dict[str, Tensor]:
    """Return `state` in the model's dtypes, or raise `WeightsError` for the first key, in order, that does not fit."""
    head = f"{heads[0]}weight" if heads else ""
    if head in state and head in expected and state[head].dim() == 2 and len(state[head]) != len(expected[head]):
        raise WeightsError(
            f"{path}: {head} has {len(state[head])} classes, the model has {len(expected[head])}: "
            f"create the model with num_classes={len(state[head])}, or skip the head to train a new one"
        )
    folded = "stem.0.conv.bias" in state and "stem.0.conv.bias" not in expected
    hint = ": it is a re-parameterised model, load the training form" if folded else f": {other}"
    for name in expected:
        if name not in state:
            if all(missing.startswith(heads) for missing in expected.keys() - state.keys()):
                hint = ": it has no head, skip_head=True keeps the model's own"
            raise WeightsError(f"{path} has no {name!r}{hint}")
    if (surplus := state.keys() - expected.keys()) and all(name.startswith(heads) for name in surplus):
        hint = ": the model has no head, skip_head=True leaves it out"
    for name in state:
        if name not in expected:
            raise WeightsError(f"{path} has {name!r}, which the model does not have{hint}")
    misshapen = [name for name, own in expected.items() if state[name].shape != own.shape]
    if misshapen and all(any(part in name for part in POSITIONS) for name in misshapen):
        hint = ": it was made for another image size (give its own, --image-size) or belongs to another model"
    checked = {}
    for name, own in expected.items():
        if state[name].shape != own.shape:
            raise WeightsError(f"{path}: {name!r} is {list(state[name].shape)}, the model's is {list(own.shape)}{hint}")
        if state[name].is_floating_point() != own.is_floating_point():
            raise WeightsError(f"{path}: {name!r} is {state[name].dtype}, the model's is {own.dtype}{hint}")
        if state[name].is_meta or state[name].layout != torch.strided:
            raise WeightsError(f"{path}: {name!r} is sparse or has no memory: save the dense tensor")
        checked[name] = state[name].to(own.dtype)
        if not torch.isfinite(checked[name]).all():
            if torch.isfinite(state[name].double()).all():
                raise WeightsError(
                    f"{path}: {name!r} has numbers beyond {own.dtype}, the model's: float() the model first"
                )
            raise WeightsError(f"{path}: {name!r} holds NaN or infinity: the run that wrote it diverged")
    return checked

"""Checkpoints: a folder of model.safetensors and config.json, and the weight files that others publish."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.classifier import head_names
from models.config import ModelConfig
from models.files import replace_file
from models.layers import ConvBN
from models.registry import create_model
from models.replknet import RepLKNet
from models.timm_models import of_timm, renamed_keys
from models.weight_files import WeightsError, first_line, read_state
from models.wrappers import bare_model

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
POSITIONS = ("pos_embed", "position", "attention_biases")  # in the names of parameters that have a value per position


def save_checkpoint(folder: str | Path, model: nn.Module, config: ModelConfig) -> None:
    """Write `folder`/model.safetensors and config.json; each is replaced in one step, so a crash leaves the old one.

    Raises `ValueError` for a model that `load_checkpoint` could not load again: one whose batch norms are folded away,
    whose head is not of `config.num_classes`, or a RepLKNet that is not of `config.arch`, and for one that is sharded
    (fully_shard); `OSError` for a file that cannot be written, such as on a full disk.
    """
    model = bare_model(model)
    convolutions = [module for module in model.modules() if isinstance(module, ConvBN)]
    if getattr(model, "deploy_form", False) or any(isinstance(module.bn, nn.Identity) for module in convolutions):
        raise ValueError("a re-parameterised model has no batch norms left: save the training form it was made from")
    classes = getattr(model, "num_classes", config.num_classes)
    if classes != config.num_classes:
        raise ValueError(f"the model has {classes} classes, config.num_classes is {config.num_classes}: make them one")
    state = model.state_dict()
    if name := _sharded(state):
        raise ValueError(
            f"{name!r} is sharded: gather the weights (torch.distributed.checkpoint.state_dict.get_model_state_dict, "
            "full_state_dict=True) into a model of its own, and save that"
        )
    if isinstance(model, RepLKNet):
        _check_sizes(state, config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    replace_file(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    text = json.dumps(asdict(config), indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _check_sizes(state: Mapping[str, Tensor], config: ModelConfig) -> None:
    with torch.device("meta"):
        expected = create_model(config.arch, config.num_classes, config.image_size).state_dict()
    shapes, own = ({name: list(tensor.shape) for name, tensor in each.items()} for each in (expected, state))
    if different := [name for name in {**own, **shapes} if own.get(name) != shapes.get(name)]:
        name = different[0]
        raise ValueError(
            f"the model's {name!r} is {own.get(name, 'not there')}, {config.arch}'s {shapes.get(name, 'not there')}, "
            "which is what config.json would have loaded: keep weights of a model of your own by torch.save("
            "model.state_dict(), FILE), and load them with models.load_weights into one that was made alike"
        )


def _sharded(state: Mapping[str, Tensor]) -> str:
    """Return the name of the first weight that is a DTensor, of which this process has only a part, else ""."""
    return next((name for name, tensor in state.items() if hasattr(tensor, "full_tensor")), "")


def load_checkpoint(path: str | Path, config: ModelConfig | None = None) -> tuple[nn.Module, ModelConfig]:
    """Load a checkpoint folder, or the file in it: the model in evaluation mode, on the CPU, and its config.

    With `config`, config.json is not read, and `path` may be a published file. Raises as `load_config`, `create_model`
    and `load_weights`.
    """
    path = Path(path)
    config = config or load_config(path.parent if path.is_file() else path)
    model = create_model(config.arch, config.num_classes, config.image_size)
    load_weights(model, path, arch=config.arch)
    return model.eval(), config


def load_config(folder: str | Path) -> ModelConfig:
    """Read config.json of a checkpoint folder. Raises `WeightsError` for invalid content, `FileNotFoundError`."""
    path = Path(folder) / CONFIG_FILE
    if not path.exists():
        if path.with_name("last").is_dir():
            raise FileNotFoundError(f"{path} does not exist: the run has not finished, its command again resumes it")
        raise FileNotFoundError(f"{path} does not exist: a checkpoint folder holds {WEIGHTS_FILE} and {CONFIG_FILE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds a {type(values).__name__}: an object is needed")
    values.setdefault("crop_mode", "center")  # older checkpoints lack it: all were cropped this way
    known = [entry.name for entry in fields(ModelConfig)]
    for name in [*(n for n in values if n not in known), *(n for n in known if n not in values)]:
        raise WeightsError(f"{path}: {name!r} is {'unknown' if name in values else 'missing'}")
    try:
        return ModelConfig(**values)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: {error}") from error


def checkpoint_config(weights: Path | None, arch: str) -> ModelConfig | None:
    """Return the config in the checkpoint folder `weights`, or beside the file `weights`; None if there is none.

    Raises `WeightsError` if `arch` is given and is not the config's, for a file whose architecture is unknown, and as
    `load_config`.
    """
    folder = checkpoint_folder(weights)
    if folder is None:
        if weights is not None and weights.is_file() and not arch:
            raise WeightsError(f"--arch is needed: no {CONFIG_FILE} that training has written lies beside {weights}")
        return None
    config = load_config(folder)
    if arch not in ("", config.arch):
        raise WeightsError(f"--arch {arch}, but {folder} holds {config.arch}: leave --arch out")
    return config


def classifier_config(weights: Path, arch: str) -> ModelConfig:
    """Return the `checkpoint_config`, else that of a published file of `arch`, with its head's classes, or 1000.

    Raises `WeightsError` for a pre-trained encoder, and as `checkpoint_config`.
    """
    config = checkpoint_config(weights, arch)
    if config is None:
        if not weights.is_file():
            return load_config(weights)  # raises FileNotFoundError
        config = ModelConfig(arch, count_classes(arch, weights) or 1000)
    if config.num_classes == 1:
        raise WeightsError(
            f"{weights} is a pre-trained encoder and cannot classify: fine-tune it (training.finetune) first"
        )
    return config


def checkpoint_folder(weights: Path | None) -> Path | None:
    """Return the folder whose config.json describes `weights`; a published file has none, or another library's."""
    if weights is None or weights.is_dir():
        return weights
    return weights.parent if _is_own_config(weights.parent / CONFIG_FILE) else None


def _is_own_config(path: Path) -> bool:
    """Whether `path` is a config.json of ours: Hugging Face also puts one beside weights."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return True  # damaged: `load_config` says so
    return not isinstance(values, dict) or "arch" in values


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
    if name := _sharded(own):
        raise WeightsError(f"{name!r} of the model is sharded: load the weights first, and call fully_shard after")
    state = read_state(path, own.keys(), prefer_average=of_timm(model))
    target, heads = model, tuple(f"{name}." for name in head_names(model))
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
    with torch.device("meta"):
        model = create_model(arch)
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
    head = f"{heads[0]}weight"
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

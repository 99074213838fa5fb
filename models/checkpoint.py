"""Checkpoints: a folder of model.safetensors and config.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from models.config import ModelConfig
from models.errors import SettingsError
from models.files import replace_file
from models.layers import ConvBN
from models.registry import create_model, create_skeleton
from models.weight_files import WeightsError
from models.weights import WEIGHTS_FILE, count_classes, load_weights
from models.wrappers import bare_model, sharded_name

CONFIG_FILE = "config.json"


def save_checkpoint(folder: str | Path, model: nn.Module, config: ModelConfig) -> None:
    """Write `folder`/model.safetensors and config.json; each is replaced in one step, so a crash leaves the old one.

    Raises `ValueError` for a model that `load_checkpoint` could not load again: one whose batch norms are folded away,
    whose head is not of `config.num_classes`, or that is not of `config.arch`, and for one that is sharded
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
    if name := sharded_name(state):
        raise ValueError(
            f"{name!r} is sharded: gather the weights (torch.distributed.checkpoint.state_dict.get_model_state_dict, "
            "full_state_dict=True) into a model of its own, and save that"
        )
    _check_sizes(state, config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    replace_file(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    text = json.dumps(asdict(config), indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _check_sizes(state: Mapping[str, Tensor], config: ModelConfig) -> None:
    expected = create_skeleton(config.arch, config.num_classes, config.image_size).state_dict()
    shapes, own = ({name: list(tensor.shape) for name, tensor in each.items()} for each in (expected, state))
    counters = {name: shape for name, shape in shapes.items() if name.endswith(".num_batches_tracked")}
    own = counters | own  # of frozen batch norms there are none, and `load_weights` needs none
    if different := [name for name in {**own, **shapes} if own.get(name) != shapes.get(name)]:
        name = different[0]
        raise ValueError(
            f"the model's {name!r} is {own.get(name, 'not there')}, {config.arch}'s {shapes.get(name, 'not there')}, "
            "which is what config.json would have loaded: keep weights of a model of your own by torch.save("
            "model.state_dict(), FILE), and load them with models.load_weights into one that was made alike"
        )


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

    Raises `SettingsError` if `arch` is given and is not the config's, and for a file whose architecture is unknown, and
    as `load_config`.
    """
    folder = checkpoint_folder(weights)
    if folder is None:
        if weights is not None and weights.is_file() and not arch:
            raise SettingsError(f"--arch is needed: no {CONFIG_FILE} that training has written lies beside {weights}")
        return None
    config = load_config(folder)
    if arch not in ("", config.arch):
        raise SettingsError(f"--arch {arch}, but {folder} holds {config.arch}: leave --arch out")
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

"""Baselines: any model of timm by name, `timm/NAME`, through the same functions as our own.

timm is imported only when one of its models is asked for. Its models and RepLKNet have `forward_features(images)`,
`forward_head(features, pre_logits)` and `get_classifier()` in common, which training, explanation and export rely on.
"""

import difflib
import importlib
import os
import sys
from typing import Any

from torch import Tensor, nn

from models.errors import SettingsError

PREFIX = "timm/"
IMPORT = "WIDEFIELD_IMPORT"  # modules, separated by commas, that register networks of one's own with timm
INTERFACE = ("forward_features", "forward_head", "get_classifier")


def is_timm(arch: str) -> bool:
    return arch.startswith(PREFIX)


def _timm(arch: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(f"arch {arch!r} needs timm, which is not installed: pip install timm") from None
    for module in filter(None, os.environ.get(IMPORT, "").split(",")):
        try:
            importlib.import_module(module.strip())
        except Exception as error:
            raise SettingsError(
                f"{IMPORT}={module}: {type(error).__name__}: {error}; a module is imported by its name, from the "
                "folder of the script or one of PYTHONPATH"
            ) from error
    return timm


def timm_config(arch: str) -> dict[str, Any]:
    """Return timm's config of "timm/NAME" or "timm/NAME.TAG": input size, crop, normalisation, interpolation.

    Raises `SettingsError` for a name or a tag that timm does not know, with similar ones; `ValueError` without timm.
    """
    timm = _timm(arch)
    name = arch.removeprefix(PREFIX)
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = _near(base, timm.list_models()) or f" ({IMPORT} names a module of yours)"
        raise SettingsError(f"arch {arch!r}: timm has no model {base!r}{near}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(base + ".*")]
    if tag and tag not in tags:
        raise SettingsError(f"arch {arch!r}: timm's {base} has no weights {tag!r}{_near(tag, tags, least=0.0)}")
    config = timm.get_pretrained_cfg(name)
    return {} if config is None else config.to_dict()


def near_timm_names(arch: str) -> list[str]:
    """Return timm's names similar to `arch`, to suggest; empty if timm is not installed."""
    try:
        timm = _timm(arch)
    except ValueError:
        return []
    return [PREFIX + name for name in near_names(arch, timm.list_models(), 3)]


def near_names(name: str, known: list[str], most: int = 5, least: float = 0.6) -> list[str]:
    """Return the names in `known`, all lower-case, that are closest to `name`, ignoring its case."""
    return difflib.get_close_matches(name.lower(), known, most, least)


def create_timm_model(arch: str, num_classes: int, image_size: int, **kwargs: Any) -> nn.Module:
    """timm's model with random weights: nothing is downloaded.

    Architectures whose layers depend on the image size (Swin, ViT) are made for `image_size` pixels. Raises
    `ValueError` for unknown names and for a `drop_path_rate` or size that the architecture cannot have.
    """
    timm, config = _timm(arch), timm_config(arch)
    if config.get("fixed_input_size"):
        kwargs["img_size"] = image_size
    if not kwargs.get("drop_path_rate"):
        kwargs.pop("drop_path_rate", None)
    try:
        model = timm.create_model(arch.removeprefix(PREFIX), pretrained=False, num_classes=num_classes, **kwargs)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise SettingsError(f"{arch} has no drop path: set drop_path_rate to 0 (--drop-path 0)") from error
    except AttributeError as error:
        if "_model_args" not in str(error):
            raise
        model = None  # to which timm gives that attribute
    except (AssertionError, RuntimeError) as error:
        raise SettingsError(f"{arch} cannot be made for {image_size} px: {error}") from error
    if not isinstance(model, nn.Module):
        raise SettingsError(f"{arch}: its function returns {model!r}: a torch.nn.Module is needed")
    if missing := [name for name in INTERFACE if not hasattr(model, name)]:
        raise SettingsError(f"{arch}: {type(model).__name__} has no {', '.join(missing)}: timm's models define it")
    if not hasattr(model, "pretrained_cfg"):  # as timm marks what it builds
        model.pretrained_cfg = config  # type: ignore[assignment]
    return model


def of_timm(model: nn.Module) -> bool:
    """Whether timm's library, or a function registered with it, has made `model`."""
    return type(model).__module__.startswith("timm.") or hasattr(model, "pretrained_cfg")


def reparameterize_timm(model: nn.Module) -> None:
    """Merge, in place, the branches that timm knows how to merge (RepVGG, RepViT, FastViT, MobileOne, ...)."""
    from timm.utils import reparameterize_model

    reparameterize_model(model.eval(), inplace=True)


def renamed_keys(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the authors' keys to timm's, if the model's module has timm's `checkpoint_filter_fn`."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if translate is None else translate(dict(state), model)


def _near(name: str, known: list[str], least: float = 0.6) -> str:
    near = near_names(name, known, least=least)
    return f": did you mean {', '.join(near)}?" if near else ""

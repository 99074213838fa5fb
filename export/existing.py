"""Check the results of earlier builds in a repository: whether their versions still fit, and which limits were set."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.configs import (
    EMBEDDED,
    REPLACES,
    ServingSpec,
    backbone_config,
    embedded_configs,
    preprocess_config,
    replaced,
)

KEPT_VERSIONS = 3
VERSION = re.compile("[1-9][0-9]*")  # tritonserver ignores folders of other names, such as 010
LIMITS = ("max_file_bytes", "max_pixels")  # of preprocess; they change no accepted image: the repository's are kept


class RepositoryError(RuntimeError):
    """The repository could not be written; the one that was there is unchanged."""


def version_numbers(model: Path) -> list[int]:
    """The version numbers of a model in a repository, ascending; all other folders are ignored, as by tritonserver."""
    return sorted(int(path.name) for path in model.glob("[1-9]*") if VERSION.fullmatch(path.name) and path.is_dir())


def unused_number(model: Path) -> int:
    """The number above all versions, withdrawn (.N.withdrawn) ones too: a number never means two sets of weights."""
    withdrawn = (path.name.split(".")[1] for path in model.glob(".*.withdrawn"))
    return max([0, *version_numbers(model), *(int(number) for number in withdrawn if VERSION.fullmatch(number))]) + 1


def misfit(repository: Path, spec: ServingSpec, labels: list[str]) -> str:
    """Why the new configs cannot serve the existing versions as they were served; empty if they can."""
    backbone, preprocess = (repository / model / "config.pbtxt" for model in ("backbone", "preprocess"))
    served_labels = repository / "classifier" / "labels.txt"
    for path in (backbone, preprocess, served_labels):
        if not path.exists():
            return f"{path}, which says how they were served, is missing"
    was = _served(_read(backbone), _read(preprocess))
    now = _served(_parse(backbone_config(spec)), _parse(preprocess_config(spec)))
    names = [name for name in {**now, **was} if now.get(name) != was.get(name)]
    reasons = [f"{name} {now.get(name, 'not set')} (was {was.get(name, 'not set')})" for name in names]
    if served_labels.read_bytes() != labels_file(labels):
        reasons.append("other labels")
    return ", ".join(reasons)


def labels_file(labels: list[str]) -> bytes:
    """The content of labels.txt: tritonserver splits it at newlines only and passes its lines on as they are."""
    return "".join(f"{label}\n" for label in labels).encode()


def kept_limits(repository: Path, spec: ServingSpec) -> tuple[ServingSpec, ServingSpec, list[str]]:
    """Return (spec for config.pbtxt, spec for the config of the embedded server, notes).

    A limit in the repository overrides the build's, and is noted. Raises `RepositoryError` for an invalid one.
    """
    config = _with_limits(spec, repository / "preprocess" / "config.pbtxt")
    embedded = _with_limits(config, repository / "preprocess" / EMBEDDED)
    lines = []
    for name in LIMITS:
        plain, other = getattr(config, name), getattr(embedded, name)
        if plain != other:
            lines.append(f"kept {name} {plain} in preprocess/config.pbtxt, {other} in preprocess/{EMBEDDED}")
        elif plain != getattr(spec, name):
            lines.append(f"kept {name} {plain}")
    return config, embedded, lines


def embedded_texts(repository: Path, config: ServingSpec, embedded: ServingSpec) -> dict[str, str]:
    """Return `embedded_configs` with the limits of `embedded`.

    Each names in its first line the config.pbtxt that it replaces. If preprocess's was edited after an earlier build
    and its limits still differ, the two do not match, and the launcher keeps reporting that.
    """
    texts = embedded_configs(embedded)
    if not _was_edited(repository / "preprocess"):
        texts["preprocess"] = replaced(preprocess_config(config).encode()) + texts["preprocess"].partition("\n")[2]
    return texts


def _was_edited(preprocess: Path) -> bool:
    """Whether config.pbtxt differs from the one that the embedded server's was written for."""
    config, embedded = preprocess / "config.pbtxt", preprocess / EMBEDDED
    if not config.exists() or not embedded.exists():
        return False
    text = embedded.read_text()
    return text.startswith(REPLACES) and not text.startswith(replaced(config.read_bytes()))


def _with_limits(spec: ServingSpec, config: Path) -> ServingSpec:
    if not config.exists():
        return spec
    parameters = _read(config).parameters
    limits: dict[str, Any] = {}
    for name in LIMITS:
        value = parameters[name].string_value.strip() if name in parameters else str(getattr(ServingSpec, name))
        if not value.isdecimal() or int(value) < 1:
            raise RepositoryError(f'{config}: {name} is "{value}": write a whole number of 1 or more')
        limits[name] = int(value)
    return replace(spec, **limits)


def _served(backbone: model_config_pb2.ModelConfig, preprocess: model_config_pb2.ModelConfig) -> dict[str, str]:
    """All that the versions share, as text: the backbone's interface and the preprocessing of an image."""
    interface = {"backend": backbone.backend, "input": _words(backbone.input), "outputs": _words(backbone.output)}
    preparation = {name: value.string_value for name, value in preprocess.parameters.items() if name not in LIMITS}
    return interface | dict(sorted(preparation.items()))


def _words(tensors: Iterable[model_config_pb2.ModelInput | model_config_pb2.ModelOutput]) -> str:
    kinds = model_config_pb2.DataType
    return " and ".join(f"{kinds.Name(each.data_type)[5:]} {each.name}{list(each.dims)}" for each in tensors)


def _read(path: Path) -> model_config_pb2.ModelConfig:
    try:
        return _parse(path.read_text())
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}): correct it, or remove it") from None


def _parse(config: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(config, model_config_pb2.ModelConfig())

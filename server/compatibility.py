"""Whether a newly built repository may replace only the weights of one that is being served."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from server.errors import ReleaseError
from server.model_configs import config_files, read_config
from server.repository import PREPROCESS

LIMITS = ("max_file_bytes", "max_pixels")  # of preprocess; they change no accepted image, so the served ones are kept
CLASS_MAP = "class_map"  # an optional output
REMEDY = "serve it as a server of its own and move the clients there, or stop this one, build in its place and start it"
read = partial(read_config, refusal=ReleaseError)


def check_compatible(built: Path, served: Path) -> None:
    """Raise `ReleaseError` with the difference if `built` cannot replace `served`.

    The weights may differ, but not the tensors, the labels, or what is done to an image before it reaches them. The
    served configs stay as they are, so their limits, instances, threads and batching may differ.
    """
    for folder in sorted(path.parent for path in served.glob("*/config.pbtxt")):
        name = folder.name
        new, old = read(built, name), read(served, name)
        for part in ("backend", "platform", "input", "output", "ensemble_scheduling"):
            if getattr(new, part) != getattr(old, part):
                raise ReleaseError(
                    f"{built}/{name}: its {part} differs from what {served} serves{_of(new, old)}: {REMEDY}"
                )
        if name == PREPROCESS and (differences := _prepared_otherwise(new, old)):
            raise ReleaseError(f"{built}/{name}: it does not prepare images as {served} does ({differences}): {REMEDY}")
        for path in (folder / "labels.txt", *sorted(folder.glob("1/*.py"))):
            new_file = built / name / path.relative_to(folder)
            if path.is_file() and not (new_file.is_file() and new_file.read_bytes() == path.read_bytes()):
                raise ReleaseError(f"{new_file} differs from the one that {served} serves: {REMEDY}")


def check_running(repository: Path, running: Callable[[str], dict[str, Any]]) -> None:
    """Raise `ReleaseError` if a config file was changed since the server started.

    A load reads the config again, and the model might no longer fit the other models. `running`: returns the config
    that a model was loaded with, as JSON.
    """
    for folder in sorted(path.parent for path in repository.glob("*/config.pbtxt")):
        there = [read(repository, folder.name, file) for file in config_files(repository, folder.name)]
        now = json_format.ParseDict(running(folder.name), model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
        for part in ("max_batch_size", "input", "output"):
            if all(getattr(each, part) != getattr(now, part) for each in there):
                raise ReleaseError(
                    f"{folder}: its config was changed since the server started ({part}): restart the server first"
                )


def _of(new: model_config_pb2.ModelConfig, old: model_config_pb2.ModelConfig) -> str:
    """Describe the first tensor that differs."""
    ours, theirs = ({each.name: each for each in (*config.input, *config.output)} for config in (new, old))
    for name in {**ours, **theirs}:
        if name not in ours:
            return f" ({name} is missing{': build with --class-map' if name == CLASS_MAP else ''})"
        if name not in theirs:
            return f" ({name} is new{': build without --class-map' if name == CLASS_MAP else ''})"
        if ours[name] != theirs[name]:
            return f" ({name}{list(ours[name].dims)}, not {name}{list(theirs[name].dims)})"
    return ""


def _prepared_otherwise(new: model_config_pb2.ModelConfig, old: model_config_pb2.ModelConfig) -> str:
    """Describe the parameters of preprocess that differ; empty if none does."""
    names = sorted({*new.parameters, *old.parameters} - {*LIMITS})
    values = [(name, *(each.parameters[name].string_value or "not set" for each in (new, old))) for name in names]
    return ", ".join(f"{name} {ours}, not {theirs}" for name, ours, theirs in values if ours != theirs)

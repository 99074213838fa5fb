"""The settings that `server.tune` reads from a repository's configs and writes to them."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.errors import ServerError
from server.model_configs import config_files, own_file, read_config
from server.repository import BACKBONE, EMBEDDED, ENSEMBLE, PREPROCESS, SOFTMAX, replaced

ENSEMBLES = (ENSEMBLE, "classifier_explained")  # the second exists only if it was asked for
THREADS, LONE_THREADS, SHARING = "INTRA_OP_THREAD_COUNT", "LONE_THREAD_COUNT", "ENABLE_WEIGHT_SHARING"


class TuneError(ServerError):
    """The repository cannot be tuned; it is unchanged."""


read = partial(read_config, refusal=TuneError)


@dataclass(frozen=True)
class Settings:
    """The tuned settings. `delay_us`: how long the backbone's batcher waits for more requests, in microseconds;
    `lone_threads`: those of an execution that finds the other instances idle, 0 for `backbone_threads`.
    """

    preprocess_instances: int
    backbone_instances: int
    backbone_threads: int
    max_batch_size: int
    delay_us: int
    lone_threads: int = 0

    def __str__(self) -> str:
        lone = f" (alone {self.lone_threads})" if self.lone_threads else ""
        return (
            f"preprocess x {self.preprocess_instances}, backbone x {self.backbone_instances} of "
            f"{self.backbone_threads} threads{lone}, batches up to {self.max_batch_size}, delay {self.delay_us} us"
        )


def read_settings(repository: Path, embedded: bool = True) -> Settings:
    """Read the settings. Raises `TuneError` for a repository that build_models.py has not written."""
    preprocess, backbone = (
        read(repository, name, own_file(repository, name, embedded)) for name in (PREPROCESS, BACKBONE)
    )
    if not (threads := number(backbone, THREADS)):
        raise TuneError(
            f"{repository}/{BACKBONE}/config.pbtxt has no {THREADS}: run build_models.py --format torchscript"
        )
    return Settings(
        instances(preprocess),
        instances(backbone),
        threads,
        backbone.max_batch_size,
        backbone.dynamic_batching.max_queue_delay_microseconds,
        number(backbone, LONE_THREADS),
    )


def largest_batch(repository: Path, embedded: bool = True) -> int:
    """Return the largest batch that all steps around the backbone accept."""
    configs = (read(repository, name, own_file(repository, name, embedded)) for name in (PREPROCESS, SOFTMAX))
    return min(config.max_batch_size for config in configs)


def write_settings(repository: Path, settings: Settings, embedded: bool = True) -> None:
    """Write the settings into the configs. Raises `TuneError`, and has then written nothing.

    The batch sizes are written to every config, since no ensemble may accept larger ones than its backbone. The
    backbone's instances and threads are written only for this kind of server: another one may have a GPU.
    """
    changed = {}
    for name in (name for name in ENSEMBLES if (repository / name).is_dir()):
        changed[f"{name}/config.pbtxt"] = config = read(repository, name)
        config.max_batch_size = settings.max_batch_size
    for file in config_files(repository, PREPROCESS):
        changed[f"{PREPROCESS}/{file}"] = config = read(repository, PREPROCESS, file)
        set_instances(config, settings.preprocess_instances)
    for file in config_files(repository, BACKBONE):
        changed[f"{BACKBONE}/{file}"] = config = read(repository, BACKBONE, file)
        before = instances(config), config.max_batch_size
        set_batches(config, settings)
        if file == own_file(repository, BACKBONE, embedded):
            set_threads(config, settings)
            if file == EMBEDDED and before != (settings.backbone_instances, settings.max_batch_size):
                set_preferred(config, settings)
    texts = {file: text_format.MessageToString(config) for file, config in changed.items()}
    for file in texts:
        if file.endswith(EMBEDDED):
            texts[file] = replaced(texts[file.replace(EMBEDDED, "config.pbtxt")].encode()) + texts[file]
    replace_all({repository / file: text for file, text in texts.items()})


def check_writable(repository: Path) -> None:
    """Raise `TuneError` if `write_settings`, which follows minutes of measuring, would fail."""
    for folder in sorted({path.parent for path in repository.rglob("*.pbtxt")}):
        if not os.access(folder, os.W_OK):
            raise TuneError(f"{folder} cannot be written: mount it writable, tune as its owner, or give --dry-run")


def replace_all(texts: dict[Path, str]) -> None:
    """Write all files, or none if the disk is full. Raises `TuneError`."""
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    try:
        for path, text in texts.items():
            drafts[path].write_bytes(text.encode())
            with contextlib.suppress(OSError):  # the file system has no permissions
                shutil.copymode(path, drafts[path])
        for path, draft in drafts.items():
            os.replace(draft, path)
    except OSError as error:
        raise TuneError(f"{path} cannot be written ({error.strerror}): make room, or tune as its owner") from None
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def instances(config: model_config_pb2.ModelConfig) -> int:
    return sum(group.count for group in config.instance_group) or 1


def number(config: model_config_pb2.ModelConfig, parameter: str) -> int:
    """Return a parameter; 0 if it is missing or no number."""
    text = config.parameters[parameter].string_value if parameter in config.parameters else ""
    return int(text) if text.isascii() and text.isdigit() else 0


def set_instances(config: model_config_pb2.ModelConfig, count: int) -> None:
    """Set the number of instances but not their device: without a group, tritonserver uses a GPU if there is one."""
    if config.instance_group:
        del config.instance_group[1:]
        config.instance_group[0].count = count
    elif count > 1:
        config.instance_group.add(count=count)


def set_batches(config: model_config_pb2.ModelConfig, settings: Settings) -> None:
    config.dynamic_batching.max_queue_delay_microseconds = settings.delay_us
    config.max_batch_size = settings.max_batch_size
    preferred = [size for size in config.dynamic_batching.preferred_batch_size if size <= settings.max_batch_size]
    config.dynamic_batching.preferred_batch_size[:] = preferred


def set_preferred(config: model_config_pb2.ModelConfig, settings: Settings) -> None:
    """Set the preferred batch as build_models.py does: 2 if images run one by one, else the largest warm-up batch."""
    wanted = 2 if settings.backbone_instances > 1 else max([2, *(each.batch_size for each in config.model_warmup)])
    config.dynamic_batching.preferred_batch_size[:] = [min(wanted, settings.max_batch_size)]


def set_threads(config: model_config_pb2.ModelConfig, settings: Settings) -> None:
    """Set the backbone's instances and threads, and what follows from them, unless they are so already."""
    wanted = (settings.backbone_instances, settings.backbone_threads, settings.lone_threads)
    if (instances(config), number(config, THREADS), number(config, LONE_THREADS)) == wanted:
        return
    set_instances(config, settings.backbone_instances)
    config.parameters[THREADS].string_value = str(settings.backbone_threads)
    if settings.lone_threads:  # as build_models.py does
        config.parameters[LONE_THREADS].string_value = str(settings.lone_threads)
        config.parameters[SHARING].string_value = "true"
    else:
        config.parameters.pop(LONE_THREADS, None)
    if settings.backbone_instances == 1:
        config.parameters.pop(SHARING, None)

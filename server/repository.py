"""Reads and checks a model repository before tritonserver does."""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.checksums import READABLE, ChecksumError, check_folders, compare, compare_newest, newest_version, unchecked
from server.errors import RepositoryError
from server.labels import LabelsError, check_labels

ENSEMBLE, PREPROCESS, BACKBONE, SOFTMAX = "classifier", "preprocess", "backbone", "softmax"
EMBEDDED = "configs/embedded.pbtxt"  # read by the embedded server instead of config.pbtxt
REPLACES = "# in place of config.pbtxt, sha256 "  # its first line begins so
BUILD = "run build_models.py"
FILES = {"pytorch": "model.pt", "python": "model.py", "onnxruntime": "model.onnx"}
PLATFORMS = {"pytorch_libtorch": "pytorch", "onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}
OPERATOR_NAMESPACE = b"ops.widefield."


@dataclass(frozen=True)
class Repository:
    path: Path
    models: tuple[str, ...]
    needs_library: str | None
    """The first model that calls an operator of the native library, or None."""
    backends: Mapping[str, str]
    """Model -> backend that the embedded server must have. Without ensembles and models that include their backend."""
    unchecked: str = ""
    """A line about the versions without checksums; empty if there are none."""
    overridden: tuple[str, ...] = ()
    """A line for each config.pbtxt that was edited although the embedded server reads another file."""
    served: tuple[str, ...] = ()
    """The configs that the embedded server reads."""

    def first_of(self, backend: str) -> str | None:
        """Return the first model of a backend, or None."""
        return next((model for model, name in self.backends.items() if name == backend), None)

    @property
    def resizes(self) -> bool:
        """Whether a model's code uses the resize library."""
        return any(self.path.glob("*/*/pillow_resize.py"))

    @property
    def has_canary(self) -> bool:
        return ENSEMBLE in self.models


@contextmanager
def _as_repository_error() -> Iterator[None]:
    try:
        yield
    except (ChecksumError, LabelsError) as error:
        raise RepositoryError(str(error)) from error
    except OSError as error:
        raise RepositoryError(
            f"{error.filename or 'the model repository'} cannot be read ({error.strerror or error}): {READABLE}"
        ) from error


@_as_repository_error()
def read_repository(path: str | Path, suggest_removal: bool = True) -> Repository:
    """Read and check the repository. `suggest_removal`: see `compare`.

    Raises `RepositoryError` if the folder is missing, empty or unreadable, if a folder in it is no model, or if a model
    has no version, no weights, changed files or wrong labels.
    """
    root = Path(os.path.expanduser(path)).absolute()
    if root.is_file():
        raise RepositoryError(f"model repository {root} is a file: name the folder that build_models.py has written")
    if not root.is_dir():
        raise RepositoryError(f"model repository {root} does not exist: {BUILD}")
    folders = sorted(folder for folder in root.iterdir() if (folder / "config.pbtxt").is_file())
    if not folders:
        raise RepositoryError(f"model repository {root} holds no model (no */config.pbtxt): {_meant(root) or BUILD}")
    check_folders(root)
    needs_library = None
    backends = {}
    overridden = []
    served = []
    for folder in folders:
        newest = newest_version(folder)
        if newest is None:
            raise RepositoryError(f"model {folder.name} in {root} has no version folder: {BUILD}")
        config = (folder / "config.pbtxt").read_text(errors="replace")
        weights = newest / (_value("default_model_filename", config) or FILES.get(_backend(config), ""))
        if weights != newest and not weights.is_file():  # equal: an ensemble, or a backend that is not known
            raise RepositoryError(f"model {folder.name} has no {newest.name}/{weights.name}, it is not built: {BUILD}")
        verify(newest, suggest_removal)
        check_labels(folder, config)
        embedded = folder / EMBEDDED
        if embedded.is_file() and _was_edited(folder / "config.pbtxt", embedded):
            overridden.append(
                f"{folder.name}/config.pbtxt was changed, but the embedded server reads {folder.name}/{EMBEDDED} in "
                "its place: change that too and remove its first line, or remove it"
            )
        served.append(embedded.read_text(errors="replace") if embedded.is_file() else config)
        backend = _backend(served[-1])
        if backend not in ("", "ensemble") and not any(folder.rglob(f"libtriton_{backend}.so")):
            backends[folder.name] = backend
        if needs_library is None and _backend(config) == "pytorch" and _calls_operator(weights):
            needs_library = folder.name
    models = tuple(folder.name for folder in folders)
    return Repository(root, models, needs_library, backends, unchecked(root), tuple(overridden), tuple(served))


def _meant(root: Path) -> str:
    """Suggest the parent of a model's folder, or the only repository in a subfolder; empty if there is neither."""
    below = {config.parents[1] for config in root.glob("*/*/config.pbtxt")}
    near = [root.parent] if (root / "config.pbtxt").is_file() else [*below]
    return f"did you mean {near[0]}?" if len(near) == 1 else ""


@_as_repository_error()
def verify(version: Path, suggest_removal: bool = True) -> None:
    """Run `compare`. Raises `RepositoryError`."""
    compare(version, suggest_removal)


@_as_repository_error()
def verify_newest(repository: Path) -> None:
    """Verify the newest version of each model, which tritonserver loads. Raises `RepositoryError`."""
    compare_newest(repository)


def _backend(config: str) -> str:
    named = _value("backend|platform", config)
    return PLATFORMS.get(named, named)


def _value(name: str, config: str) -> str:
    """Return the first string field of that name outside comments and strings; empty if there is none."""
    string = r""" "[^"\n]*" | '[^'\n]*' """
    found = re.search(rf"^(?:[^#\"'\n]|{string})*?\b(?:{name})\s*:\s*({string})", config, re.MULTILINE | re.VERBOSE)
    return found.group(1).strip()[1:-1] if found else ""


def replaced(config: bytes) -> str:
    """Return the first line of embedded.pbtxt, which has the hash of the config.pbtxt that it was written for."""
    return f"{REPLACES}{hashlib.sha256(config).hexdigest()}\n"


def _was_edited(config: Path, embedded: Path) -> bool:
    """Whether `config` differs from the config.pbtxt that `embedded` was written for."""
    text = embedded.read_text(errors="replace")
    return text.startswith(REPLACES) and not text.startswith(replaced(config.read_bytes()))


def _calls_operator(weights: Path) -> bool:
    """Whether a TorchScript archive's code names the native library's operators. Raises `RepositoryError`."""
    try:
        with zipfile.ZipFile(weights) as archive:
            code = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
            if not code and any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise RepositoryError(f"{weights} is what torch.save writes, not TorchScript: {BUILD}")
            return any(OPERATOR_NAMESPACE in archive.read(name) for name in code)
    except PermissionError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise RepositoryError(f"{weights} is damaged ({error}): {BUILD}") from error

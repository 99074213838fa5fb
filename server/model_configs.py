"""The models' names, and their configs as protobuf messages."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.errors import RepositoryError, ServerError
from server.repository import EMBEDDED

ENSEMBLE, PREPROCESS, BACKBONE, SOFTMAX = "classifier", "preprocess", "backbone", "softmax"


def read_config(
    repository: Path, model: str, file: str = "config.pbtxt", refusal: type[ServerError] = RepositoryError
) -> model_config_pb2.ModelConfig:
    """Raises `refusal` for one that is missing or that tritonserver could not read."""
    path = repository / model / file
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise refusal(f"{path} cannot be read ({error}): correct it, or run build_models.py") from None


def config_files(repository: Path, model: str) -> list[str]:
    """The model's configs, the one that the embedded server reads last."""
    return ["config.pbtxt", EMBEDDED] if (repository / model / EMBEDDED).exists() else ["config.pbtxt"]


def own_file(repository: Path, model: str, embedded: bool) -> str:
    """The config that the server, the embedded one or another, reads."""
    return config_files(repository, model)[-1 if embedded else 0]

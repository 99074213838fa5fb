"""The models' configs as protobuf messages."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.errors import RepositoryError, ServerError
from server.repository import EMBEDDED


def read_config(
    repository: Path, model: str, file: str = "config.pbtxt", refusal: type[ServerError] = RepositoryError
) -> model_config_pb2.ModelConfig:
    """Parse a model's config. Raises `refusal` if it is missing or tritonserver could not read it."""
    path = repository / model / file
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise refusal(f"{path} cannot be read ({error}): correct it, or run build_models.py") from None


def config_files(repository: Path, model: str) -> list[str]:
    """Return the names of the model's config files; the embedded server reads the last one."""
    return ["config.pbtxt", EMBEDDED] if (repository / model / EMBEDDED).exists() else ["config.pbtxt"]


def own_file(repository: Path, model: str, embedded: bool) -> str:
    """Return the name of the config file that the embedded server, or another one, reads."""
    return config_files(repository, model)[-1 if embedded else 0]

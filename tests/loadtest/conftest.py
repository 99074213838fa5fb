"""The server that the load goes to."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "client"))
from tiny_repository import write_tiny_repository


@pytest.fixture(scope="session")
def load_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["TritonServer"]:  # noqa: F821
    """A real tritonserver with a model named `classifier`; any other will do (``return digits_server``)."""
    from server import TritonServer

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_repository(folder / "model_repository")
    with TritonServer(folder / "model_repository", log_file=folder / "server.log", drain_seconds=5) as server:
        yield server

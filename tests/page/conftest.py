"""A server that knows colours, the page in its own environment."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from colours_repository import write_colours_repository

from server.endpoints import free_ports

ROOT = Path(__file__).parents[2]
PAGE_PYTHON = ROOT / os.environ.get("PAGE_VENV", ".venv-page") / "bin" / "python"


@pytest.fixture(scope="session")
def colours_server(serving: Callable[..., Any]) -> Iterator["TritonServer"]:  # noqa: F821
    with serving(write_colours_repository) as server:
        yield server


@pytest.fixture(scope="session")
def unexplained_server(serving: Callable[..., Any]) -> Iterator["TritonServer"]:  # noqa: F821
    """A server that knows colours, without class maps."""
    with serving(write_colours_repository, explained=False) as server:
        yield server


@pytest.fixture(scope="session")
def outside() -> Iterator[socket.socket]:
    """A proxy for all other machines, which must not get any request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def page_python() -> Path:
    if not PAGE_PYTHON.exists():
        pytest.skip(f"no {PAGE_PYTHON}, the page's environment: make .venv-page/.ready")
    return PAGE_PYTHON


@pytest.fixture
def start_page(outside: socket.socket, page_python: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """start_page(server, *options) -> the page's address. It is stopped with the test, and must exit with success."""
    proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
    proxies = {name: proxy for each in ("http_proxy", "https_proxy", "all_proxy") for name in (each, each.upper())}
    local = {"no_proxy": "", "NO_PROXY": "", "GRADIO_TEMP_DIR": str(tmp_path)}
    with ExitStack() as stack:

        def start(server: str, *options: str) -> str:
            (port,) = free_ports(["127.0.0.1"])
            command = [str(page_python), "-m", "page", "--url", server, "--port", str(port), *options]
            environment = os.environ | proxies | local
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

            def stop() -> None:
                process.terminate()
                try:
                    assert process.wait(20) == 0
                finally:
                    process.kill()
                    process.stdout.close()

            stack.callback(stop)
            line = process.stdout.readline()
            found = re.match(r"the page is at (http://\S+), its server at", line)
            assert found, line
            return found[1]

        yield start

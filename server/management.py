"""tritonserver's repository interface, which answers only to the management token; and where tokens come from."""

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.canary import CanaryError, CanaryUnreachedError, ask
from server.errors import OptionError, ReleaseError
from server.log import each_once
from server.tritonserver_options import MANAGEMENT_HEADER

VARIABLE = "WIDEFIELD_MANAGEMENT_TOKEN"
SHARED_MEMORY_VARIABLE = "WIDEFIELD_SHARED_MEMORY_TOKEN"
VARIABLES = {"management": VARIABLE, "shared-memory": SHARED_MEMORY_VARIABLE}
TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header's value may be
UNLOAD_SECONDS = 30.0  # how long a version that is being unloaded is waited for
POLL = 0.1  # seconds
REST = 0.5  # seconds from then to a load: its ensembles are unloaded beside it, later where the processors are busy
HOW_TO_GIVE_IT = f"give the server and this command the same --management-token-file, or ${VARIABLE}"


class Management:
    """Loads models of the server at `address` ("host:port" of its HTTP). `timeout`: seconds for one load."""

    def __init__(self, address: str, token: str, timeout: float) -> None:
        self.address, self.timeout = address, timeout
        self._headers = {MANAGEMENT_HEADER: token}

    def load(self, model: str) -> None:
        """Loads what has changed in the model's folder; the version before serves until then, and stays on a failure.

        A version that is still being unloaded is waited for: to load it meanwhile may end tritonserver 2.51
        (docs/serving.md). Raises `ReleaseError` with tritonserver's reason.
        """
        deadline = time.monotonic() + min(self.timeout, UNLOAD_SECONDS)
        while "UNLOADING" in self._states(model).values() and time.monotonic() < deadline:
            time.sleep(POLL)
        time.sleep(REST)  # it is not forgotten as soon as it is unloaded
        self._ask(f"/v2/repository/models/{model}/load", self.timeout)

    def ready_versions(self, model: str) -> list[int]:
        """Those that are served now, ascending."""
        return sorted(version for version, state in self._states(model).items() if state == "READY")

    def config(self, model: str) -> dict[str, Any]:
        """What the model was loaded with, as JSON of tritonserver's ModelConfig."""
        return self._ask(f"/v2/models/{model}/config", min(self.timeout, 30.0), "GET")

    def _states(self, model: str) -> dict[int, str]:
        """By version: READY, LOADING, UNLOADING, UNAVAILABLE."""
        index = self._ask("/v2/repository/index", min(self.timeout, 30.0))
        models = [each for each in index if isinstance(each, dict)] if isinstance(index, list) else []
        versions = [each for each in models if each.get("name") == model and "version" in each]
        return {int(each["version"]): each.get("state", "") for each in versions}

    def _ask(self, path: str, timeout: float, method: str = "POST") -> Any:
        try:
            return ask(self.address, method, path, timeout, b"{}" if method == "POST" else None, self._headers)
        except CanaryUnreachedError as error:
            raise ReleaseError(
                f"no server answers over HTTP at {self.address} ({error}): start it, or correct --url"
            ) from None
        except CanaryError as error:
            if error.status in (401, 403):
                raise ReleaseError(f"the server at {self.address} refuses the token: {HOW_TO_GIVE_IT}") from None
            raise ReleaseError(f"the server at {self.address} says: {_reason(str(error))}") from None


def read_token(
    token: str | None,
    file: str | Path | None,
    environment: Mapping[str, str] = os.environ,
    name: str = "management",
) -> str | None:
    """As given, else the file's first line, else the environment's; None where there is none. Raises `OptionError`."""
    if token is None and file is not None:
        try:
            token = (Path(file).read_text().splitlines() or [""])[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", error)
            raise OptionError(
                f"--{name}-token-file {file} cannot be read ({reason}): name a file that holds the token"
            ) from None
        if not token:
            raise OptionError(f"--{name}-token-file {file} is empty: write the token on its first line")
    token = token if token is not None else environment.get(VARIABLES[name]) or None
    if token is not None and not TOKEN.fullmatch(token):
        raise OptionError(
            f"the {name} token is empty, or has spaces or non-ASCII characters: `openssl rand -hex 16` makes one"
        )
    return token


def _reason(text: str) -> str:
    """tritonserver's own words out of "PATH: HTTP 400: {"error": ...}"; one line."""
    start = text.find("{")
    with contextlib.suppress(ValueError, LookupError):  # of an answer that was cut off
        text = json.loads(text[start:])["error"] if start >= 0 else text
    return " ".join(each_once(text).split())

"""A client of tritonserver's repository interface, which needs the management token, and the reading of tokens."""

import os
import re
import time
from pathlib import Path
from typing import Any

from server.canary import CanaryError, CanaryUnreachedError, ask
from server.errors import OptionError, ReleaseError
from server.log import each_once
from server.tritonserver_options import MANAGEMENT_HEADER

VARIABLE = "WIDEFIELD_MANAGEMENT_TOKEN"
SHARED_MEMORY_VARIABLE = "WIDEFIELD_SHARED_MEMORY_TOKEN"
VARIABLES = {"management": VARIABLE, "shared-memory": SHARED_MEMORY_VARIABLE}
TOKEN = re.compile(r"[\x21-\x7e]+")  # valid in the value of an HTTP header
UNLOAD_SECONDS = 30.0  # how long to wait for a version to be unloaded
POLL = 0.1  # seconds
REST = 0.5  # seconds between an unload and a load: the ensembles are unloaded in parallel, and may take longer
HOW_TO_GIVE_IT = f"give the server and this command the same --management-token-file, or ${VARIABLE}"


class Management:
    """Loads models on the server whose HTTP is at `address` ("host:port"). `timeout`: seconds for one load."""

    def __init__(self, address: str, token: str, timeout: float) -> None:
        self.address, self.timeout = address, timeout
        self._headers = {MANAGEMENT_HEADER: token}

    def load(self, model: str) -> None:
        """Load the model's folder again. The previous version serves until then, and still does after a failure.

        Waits until no version is being unloaded: a load meanwhile may crash tritonserver 2.51
        (server/backends/fixes/README.md). Raises `ReleaseError` with tritonserver's reason.
        """
        deadline = time.monotonic() + min(self.timeout, UNLOAD_SECONDS)
        while "UNLOADING" in self._states(model).values() and time.monotonic() < deadline:
            time.sleep(POLL)
        time.sleep(REST)  # the server removes it a little after it reports it as unloaded
        self._ask(f"/v2/repository/models/{model}/load", self.timeout)

    def ready_versions(self, model: str) -> list[int]:
        """Return the versions that are served now, ascending."""
        return sorted(version for version, state in self._states(model).items() if state == "READY")

    def config(self, model: str) -> dict[str, Any]:
        """Return the config that the model was loaded with, a ModelConfig as JSON."""
        return self._ask(f"/v2/models/{model}/config", min(self.timeout, 30.0), "GET")

    def _states(self, model: str) -> dict[int, str]:
        """Return version -> state: READY, LOADING, UNLOADING or UNAVAILABLE."""
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
            said = " ".join(each_once(error.reason or str(error)).split())
            raise ReleaseError(f"the server at {self.address} says: {said}") from None


def read_token(token: str | None, file: str | Path | None, name: str = "management") -> str | None:
    """Return `token`, else the first line of `file`, else the environment's token, else None. Raises `OptionError`."""
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
    token = token if token is not None else os.environ.get(VARIABLES[name]) or None
    if token is not None and not TOKEN.fullmatch(token):
        raise OptionError(
            f"the {name} token is empty, or has spaces or non-ASCII characters: `openssl rand -hex 16` makes one"
        )
    return token

"""What tritonserver is started from: a repository, addresses, a private folder and options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.endpoints import Endpoints, choose_endpoints
from server.errors import InstallationError, elsewhere
from server.locate import Installation, find_tritonserver
from server.preflight import check_backends, check_log_file, check_passed_on
from server.process import ServerProcess
from server.repository import Repository, read_repository, verify_newest
from server.runtime import Runtime
from server.tls import Tls


@dataclass(repr=False)  # there are tokens among them
class Launch:
    """Prepares and starts tritonserver; the fields are arguments of `TritonServer`. Raises `OptionError`."""

    repository: str | Path
    host: str
    metrics_host: str
    ports: Mapping[str, int]  # of "http", "grpc" and "metrics"; 0: a free one
    library: str | Path | None
    log_file: str | Path | None
    drain_seconds: int
    management_token: str | None
    shared_memory_token: str | None
    tls: Tls | None
    tritonserver_args: Sequence[str]
    endpoints: Endpoints = field(init=False)  # by `prepare`, as is the next
    runtime: Runtime = field(init=False)

    def __post_init__(self) -> None:
        check_passed_on(self.tritonserver_args)
        self.log = Path(self.log_file).absolute() if self.log_file not in (None, "-") else None

    def prepare(self) -> None:
        """Check what tritonserver needs, choose its ports and make its private folder. Raises `ServerError`."""
        if self.tls is not None:
            self.tls.check()
        repository = read_repository(self.repository)
        self.choose_endpoints()
        installation = find_tritonserver()
        check_backends(repository.backends, installation, self.tritonserver_args)
        if self.log is not None:
            check_log_file(self.log)
        self.runtime = self._make_runtime(installation, repository)

    def choose_endpoints(self) -> None:
        encrypted = self.tls is not None
        self.endpoints = choose_endpoints(self.host, self.metrics_host, self.ports, encrypted)

    def renew(self) -> str:
        """Verify the models before a restart. Return a line if the private folder was removed and is made anew."""
        lost = self.runtime
        verify_newest(lost.repository.path)
        if not lost.lost:
            return ""
        self.runtime = self._make_runtime(lost.installation, lost.repository)
        lost.remove()
        return f"the server's private folder {lost.folder} was removed: it is made anew"

    def spawn(self) -> ServerProcess:
        tokens = (self.management_token, self.shared_memory_token)
        command = self.runtime.command(self.endpoints, self.drain_seconds, tokens, self.tritonserver_args, self.tls)
        return ServerProcess(command, self.runtime, self.drain_seconds)

    def _make_runtime(self, installation: Installation, repository: Repository) -> Runtime:
        try:
            return Runtime(installation, repository, self.library, self.log, self.log_file == "-")
        except OSError as error:
            message = f"the server's private folder cannot be made ({error}): {elsewhere(error)}"
            raise InstallationError(message) from error

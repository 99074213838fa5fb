"""Keeps a tritonserver running: starts it, tests it with a real inference, watches it, restarts it and drains it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from server.endpoints import Endpoints
from server.errors import ServerError, StartError, unforeseen
from server.launch import Launch
from server.preflight import check_options
from server.process import ServerProcess
from server.restarts import Restarts
from server.run import Run
from server.tls import Tls

LOGGER = logging.getLogger("server")
RESTART_WINDOW = 300.0  # seconds
PORT_TRIES = 3  # a free port can be taken between the choice and the bind


class TritonServer:
    """A tritonserver on this machine, as a context manager.

    Args:
        repository: the model repository's folder.
        host, metrics_host: addresses or names of this machine to listen on.
        http_port, grpc_port, metrics_port: 0 chooses a free one.
        library: the native operator library; by default $WIDEFIELD_LIBRARY or the built one.
        log_file: tritonserver's output; "-" is standard error; None is tritonserver.log in a private folder
            ($TMPDIR/widefield-server-*), emptied at 16 MiB and removed at a clean end.
        start_timeout: seconds in which the first real inference must be answered.
        probe_interval, probe_timeout: seconds between canary inferences, and for one.
        max_restarts: within `RESTART_WINDOW` seconds; after one more failure the server gives up.
        drain_seconds: for the requests in flight when it stops.
        management_token: opens the restricted interfaces to requests with the header widefield-management.
        shared_memory_token: lets clients on this host that have it send images through shared memory.
        tls: for gRPC; tritonserver's HTTP has no TLS and then listens on 127.0.0.1 only.
        tritonserver_args: passed on to tritonserver; options that have an argument here are refused.
        on_event: called with one line at and after every restart, and for each warning; by default the logger `server`
            logs it as a warning.

    Raises:
        ServerError: a subclass of it (server.errors) at the start; `GaveUpError` later, from `wait`.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        host: str = "127.0.0.1",
        metrics_host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        library: str | Path | None = None,
        log_file: str | Path | None = None,
        start_timeout: float = 120.0,
        probe_interval: float = 10.0,
        probe_timeout: float = 10.0,
        max_restarts: int = 5,
        drain_seconds: int = 30,
        management_token: str | None = None,
        shared_memory_token: str | None = None,
        tls: Tls | None = None,
        tritonserver_args: Sequence[str] = (),
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        check_options(
            {"drain-seconds": drain_seconds, "max-restarts": max_restarts},
            {"start-timeout": start_timeout, "probe-interval": probe_interval, "probe-timeout": probe_timeout},
        )
        self.launch = Launch(
            repository=repository,
            host=host,
            metrics_host=metrics_host,
            ports={"http": http_port, "grpc": grpc_port, "metrics": metrics_port},
            library=library,
            log_file=log_file,
            drain_seconds=drain_seconds,
            management_token=management_token,
            shared_memory_token=shared_memory_token,
            tls=tls,
            tritonserver_args=tuple(tritonserver_args),
        )
        self.start_timeout = start_timeout
        self.probe_interval, self.probe_timeout = probe_interval, probe_timeout
        self.max_restarts = max_restarts
        self.on_event = on_event or LOGGER.warning
        self.restarts = 0
        self._error: ServerError | None = None
        self._stopping = threading.Event()
        self._at_once = threading.Event()
        self._settled = threading.Event()  # ready for the first time, or failed
        self._ready = threading.Event()
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: ServerProcess | None = None

    @property
    def endpoints(self) -> Endpoints:
        try:
            return self.launch.endpoints
        except AttributeError:
            raise ServerError("this server has no address, it was not started: use it in a with statement") from None

    @property
    def http_url(self) -> str:
        return self.endpoints.address("http")

    @property
    def grpc_url(self) -> str:
        return self.endpoints.address("grpc")

    @property
    def metrics_url(self) -> str:
        return self.endpoints.address("metrics")

    @property
    def ready(self) -> bool:
        """Whether an inference was answered since the last start. A single failed canary does not make it False."""
        return self._ready.is_set()

    def start(self) -> None:
        """Start the server and wait until a real inference has been answered. Raises `ServerError`."""
        if self._thread is not None:
            raise ServerError("this server was started before: make a new TritonServer")
        self.launch.prepare()
        for line in self.launch.runtime.warnings():
            self._tell(f"warning: {line}")
        # A separate thread, so that the server does not depend on the thread that called `start`.
        self._thread = threading.Thread(target=self._supervise, name="tritonserver supervisor", daemon=True)
        self._thread.start()
        while not self._settled.wait(1.0):  # in steps, so that signal handlers can run
            pass
        if self._error is not None:
            self.stop()
            raise self._error

    def stop(self, at_once: bool = False) -> None:
        """Drain and end the server, and remove its private folder. `at_once`: do not wait for requests in flight."""
        if at_once:
            self._at_once.set()
        self._stopping.set()
        if self._thread is None:
            return
        if self._process is not None:  # the supervisor's thread may be waiting for a canary
            if at_once or not self._ready.is_set():
                self._process.kill()
            else:
                self._process.drain()
        while not self._finished.wait(1.0):
            pass
        self.launch.runtime.remove()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server has ended (True) or `timeout` seconds have passed (False). Raises `GaveUpError`."""
        end = None if timeout is None else time.monotonic() + timeout
        while self._thread is not None and not self._finished.is_set():
            left = 1.0 if end is None else min(1.0, end - time.monotonic())
            if left <= 0:
                return False
            self._finished.wait(left)  # not Thread.join: after Ctrl-C in it, a running thread looks dead
        if self._error is not None:
            raise self._error
        return True

    def __enter__(self) -> "TritonServer":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        except BaseException:  # Ctrl-C while it drains
            self.stop(at_once=True)
            raise

    def _tell(self, event: str) -> None:
        """Call `on_event`. If that fails, such as on a closed terminal, log it and continue."""
        try:
            self.on_event(event)
        except Exception:
            LOGGER.exception("on_event failed at: %s", event)

    def _tend(self) -> None:
        for line in self.launch.runtime.tend():
            self._tell(f"warning: {line}")

    def _supervise(self) -> None:
        """Run tritonserver again and again until `stop` or the limit of restarts."""
        restarts = Restarts(self.max_restarts, RESTART_WINDOW)
        try:
            while not self._stopping.is_set():
                try:
                    if self.restarts and (renewed := self.launch.renew()):
                        self._tell(renewed)
                    reason = self._run_once()
                except Exception as error:
                    if not self._settled.is_set():
                        raise
                    foreseen = isinstance(error, (ServerError, OSError))
                    reason = str(error) if foreseen else unforeseen(error)  # the server was ready before: try again
                self._ready.clear()
                if self._stopping.is_set():
                    return
                rest = restarts.rest(f"{reason}{f' (log: {self.launch.log})' if self.launch.log else ''}")
                self._tell(f"{reason}; restarting{f' in {rest:g} s' if rest else ''}")
                self.restarts += 1
                self._stopping.wait(rest)
        except ServerError as error:
            self._error = error
        except Exception as error:
            self._error = ServerError(unforeseen(error))
        finally:
            self._ready.clear()
            self._settled.set()
            self._finished.set()

    def _run_once(self) -> str:
        """Run tritonserver once, on other ports if the chosen ones were taken. Return why it ended or must restart."""
        tries = PORT_TRIES if 0 in self.launch.ports.values() and not self._settled.is_set() else 1
        while True:
            tries -= 1
            try:
                return self._prove_and_watch()
            except StartError as error:
                if not tries or "already in use" not in str(error):
                    raise
                self.launch.choose_endpoints()

    def _prove_and_watch(self) -> str:
        with self.launch.spawn() as process:
            self._process = process
            run = Run(process, self.http_url, self.launch.runtime.repository.has_canary, self._stopping)
            run.await_ready(self.start_timeout)
            if self._stopping.is_set():
                return "stopped"
            if self.restarts:
                self._tell("the server answers again")
            self._ready.set()
            self._settled.set()
            reason = run.watch(self.probe_interval, self.probe_timeout, self._tend)
            if self._stopping.is_set():
                process.stop(self._at_once)
            return reason

"""The attempts for one image, over retries and servers. This module does no I/O, so threads and asyncio share it."""

import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from client._errors import (
    ClassifierError,
    ConnectionBrokenError,
    DeadlineExceededError,
    InferenceError,
    ModelNotFoundError,
    NotFiniteError,
    QueueFullError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from client._request import Answer, Request, queue_timeout
from client._servers import Servers

LOG = logging.getLogger("client")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds
NOT_READY_PAUSE = 1.0  # a stopping server says so for two or three seconds; others behind the same name may answer


@dataclass(frozen=True, slots=True)
class Send:
    """A step: send `request` to server number `server`, then `send` its answer or `throw` its error back."""

    server: int
    request: Request


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: wait for `seconds`."""

    seconds: float


Steps: TypeAlias = "Generator[Send | Pause, Answer | None, Answer]"


Result = TypeVar("Result")


def drive(steps: "Generator[Any, Any, Result]", act: Callable[[Any], Any]) -> Result:
    """Run `steps` to its result: `act` does each step, and its answer or error is passed back."""
    try:
        step = next(steps)
        while True:
            try:
                answer = act(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as done:
        return done.value


async def drive_async(steps: "Generator[Any, Any, Result]", act: Callable[[Any], Awaitable[Any]]) -> Result:
    try:
        step = next(steps)
        while True:
            try:
                answer = await act(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as done:
        return done.value


class RetryBudget:
    """gRPC's retry throttling (proposal A6): retries must not double the load on overloaded or failing servers.

    Every refusal costs a token, every answer earns a tenth; retries are allowed while more than half are left.
    """

    MOST = 10.0

    def __init__(self) -> None:
        self._tokens = self.MOST
        self._lock = threading.Lock()

    def earn(self) -> None:
        with self._lock:
            self._tokens = min(self.MOST, self._tokens + 0.1)

    def spend(self) -> bool:
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > self.MOST / 2

    def has_more(self) -> bool:
        return self._tokens > self.MOST / 2


def attempts(request: Request, servers: Servers, retries: int, budget: RetryBudget) -> Steps:
    """Yield the steps; return the answer or raise the last attempt's error, all within `request.timeout`.

    A request is retried where that may help: no connection, not ready, a full queue, a failure of the server (to
    classify twice does no harm). While another server is untried, one that cannot be reached costs neither a retry nor
    a pause, and one that is silent for half of the remaining time is given up, since it may hang. A connection that
    breaks does cost a retry: a request that crashes servers must not be sent to all of them.
    """
    deadline = time.monotonic() + request.timeout
    tried: set[int] = set()
    used = sent = 0
    error: ClassifierError | None = None
    while True:
        server = servers.take(tried)
        tried.add(server)
        sent += 1
        if error is not None:
            LOG.info("request %s: attempt %d, after: %s", request.id, sent, error)
        left = deadline - time.monotonic()
        wait = queue_timeout(left)
        if retries and servers.has_other(tried) and budget.has_more():
            left /= 2
        try:
            answer = yield Send(server, replace(request, timeout=left, queue_timeout=wait))
        except ClassifierError as found:
            error = found
            if isinstance(found, ModelNotFoundError) and servers.had(server, request.model):
                # tritonserver unloads its models before it closes its connections.
                error = ServerNotReadyError(f"{found.message}; it had it before: it is stopping, or unloaded the model")
            error.request_id, error.attempts = request.id, sent
            servers.report(server, error)
            unreachable = isinstance(error, ServerUnavailableError)
            silent = isinstance(error, DeadlineExceededError)
            if silent and not servers.is_faulty(server):
                budget.spend()  # it is busy, as the others may be
            broke = isinstance(error, ConnectionBrokenError)
            if (silent or (unreachable and not broke)) and servers.has_other(tried) and time.monotonic() < deadline:
                continue
            failed = isinstance(error, (QueueFullError, InferenceError)) and not isinstance(error, NotFiniteError)
            safe = unreachable or (failed and budget.spend())
            pause = pause_before(used, error, deadline - time.monotonic())
            if not safe or used == retries or time.monotonic() + pause >= deadline:
                if silent and sent > 1:
                    error.args = (f"{error.message}, {sent} attempts in {request.timeout:.3g} s",)
                raise error from (found.__cause__ if error is found else found)
        except BaseException:  # cancelled, closed, or a foreign error
            servers.release(server)
            raise
        else:
            servers.report(server, None, request.model)
            budget.earn()
            assert answer is not None
            return answer
        used += 1
        if len(tried) == len(servers):
            tried = {server}
        yield Pause(pause)


def pause_before(used: int, error: ClassifierError, left: float) -> float:
    """The seconds to wait before retry `used` (from 0), with `left` to the deadline; random, to spread callers out."""
    growth = 2 ** min(used, 30)
    if isinstance(error, ServerNotReadyError):
        return random.uniform(0.5, 1) * min(LONGEST_PAUSE, NOT_READY_PAUSE * growth, left / 2)
    return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * growth))

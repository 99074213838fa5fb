"""One image's way to an answer over attempts and servers. No input or output, so that threads and asyncio share it."""

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
    QueueFullError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from client._request import Answer, Request, queue_timeout
from client._servers import Servers

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds
NOT_READY_PAUSE = 1.0  # a server that stops says so for two or three seconds; behind one name others may answer


@dataclass(frozen=True, slots=True)
class Send:
    """Send `request` to server number `server`, and send the answer back or throw the error."""

    server: int
    request: Request


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


Steps: TypeAlias = "Generator[Send | Pause, Answer | None, Answer]"


Result = TypeVar("Result")


def drive(steps: "Generator[Any, Any, Result]", act: Callable[[Any], Any]) -> Result:
    """Has `act` do each step, whose answer or error goes back."""
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
    """gRPC's retry throttling (proposal A6): servers that stay overloaded, or keep failing, are not sent all twice.

    Every refusal costs a token, every answer earns a tenth; one may try again while more than half are left.
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
    """Yields what to do, returns the answer or raises what the last attempt met. All within `request.timeout`.

    Sent again is what another attempt may mend: no connection, not ready, a full queue, a failure of the server (a
    classification changes nothing there). While another server is left, one that cannot be reached costs neither a
    retry nor a pause; and one that is silent for half of the time that is left is not waited for, since it may hang. A
    connection that breaks costs a retry: a request that ends servers must not be handed to all of them.
    """
    deadline = time.monotonic() + request.timeout
    tried: set[int] = set()
    used = sent = 0
    while True:
        server = servers.take(tried)
        tried.add(server)
        sent += 1
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
            if silent and not servers.hangs(server):
                budget.spend()  # it is busy: so are the others, perhaps
            broke = isinstance(error, ConnectionBrokenError)
            if (silent or (unreachable and not broke)) and servers.has_other(tried) and time.monotonic() < deadline:
                continue
            safe = unreachable or (isinstance(error, (QueueFullError, InferenceError)) and budget.spend())
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
    """Seconds before retry `used` of those that are `left`, at random, so that callers do not come back at once."""
    growth = 2 ** min(used, 30)
    if isinstance(error, ServerNotReadyError):
        return random.uniform(0.5, 1) * min(LONGEST_PAUSE, NOT_READY_PAUSE * growth, left / 2)
    return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * growth))

"""A transport without a server, for an application's own tests.

from client import Classifier, QueueFullError
from client.testing import FakeTransport

fake = FakeTransport(lambda request: QueueFullError("full") if len(fake.requests) == 1 else [("cat", 3, 0.9)])
with Classifier(transport=fake) as classifier:
    assert classifier.classify(b"picture")[0].label == "cat"  # at the second attempt
"""

import inspect
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from client._errors import ClassifierError
from client._prediction import Prediction
from client._request import Answer, Request
from client._status import ServerStatus

__all__ = ["AsyncFakeTransport", "FakeTransport", "Reply"]

Reply: TypeAlias = Answer | Iterable[Prediction | tuple[str, int, float]] | ClassifierError


class _Fake:
    def __init__(self, reply: Any = (), url: str = "fake://server") -> None:
        self.reply = reply
        self.url = url
        self.requests: list[Request] = []
        self.most_in_flight = 0
        self.closed = 0
        self._in_flight = 0
        self._lock = threading.Lock()

    @contextmanager
    def _counted(self, request: Request) -> Iterator[None]:
        with self._lock:
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def _status(self) -> ServerStatus:
        return ServerStatus(self.url, "fake", "0", True, [])


class FakeTransport(_Fake):
    """A thread-safe `Transport` that answers with `reply`.

    `reply` is predictions (or their tuples), an `Answer` or an error to raise; or a function of the `Request` that
    returns one of these.

    Attributes:
        requests: every `Request`, in the order of arrival.
        most_in_flight: the largest number of requests in flight at once.
        closed: how often it was closed.
    """

    def infer(self, request: Request) -> Answer:
        with self._counted(request):
            return _answer(self.reply(request) if callable(self.reply) else self.reply)

    def status(self, timeout: float) -> ServerStatus:
        return self._status()

    def close(self) -> None:
        self.closed += 1


class AsyncFakeTransport(_Fake):
    """`FakeTransport` for an `AsyncClassifier`; `reply` may be a coroutine function."""

    async def infer(self, request: Request) -> Answer:
        with self._counted(request):
            reply = self.reply(request) if callable(self.reply) else self.reply
            return _answer(await reply if inspect.isawaitable(reply) else reply)

    async def status(self, timeout: float) -> ServerStatus:
        return self._status()

    async def close(self) -> None:
        self.closed += 1


def _answer(reply: Reply) -> Answer:
    if isinstance(reply, ClassifierError):
        raise reply
    if isinstance(reply, Answer):
        return reply
    return Answer([each if isinstance(each, Prediction) else Prediction(*each) for each in reply])

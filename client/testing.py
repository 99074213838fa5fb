"""A transport without a server, for an application's own tests.

from client import Classifier, QueueFullError
from client.testing import FakeTransport

fake = FakeTransport(lambda request: QueueFullError("full") if len(fake.requests) == 1 else [("cat", 3, 0.9)])
with Classifier(transport=fake) as classifier:
    assert classifier.classify(b"picture")[0].label == "cat"  # at the second attempt
"""

import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

from client._errors import ClassifierError
from client._prediction import Prediction
from client._request import Answer, Request
from client._status import ServerStatus

Reply: TypeAlias = Answer | Iterable[Prediction | tuple[str, int, float]] | ClassifierError


class FakeTransport:
    """Answers as `reply` says, from any thread: predictions (or their tuples), an `Answer`, or an error to raise.

    Attributes:
        requests: every `Request`, in the order of arrival.
        most_in_flight: how many were waiting for their answer at once, at most.
        closed: how often it was closed.
    """

    def __init__(self, reply: Callable[[Request], Reply] | Reply = (), url: str = "fake://server") -> None:
        self.reply = reply
        self.url = url
        self.requests: list[Request] = []
        self.most_in_flight = 0
        self.closed = 0
        self._in_flight = 0
        self._lock = threading.Lock()

    def infer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return _answer(self.reply(request) if callable(self.reply) else self.reply)
        finally:
            with self._lock:
                self._in_flight -= 1

    def status(self, timeout: float) -> ServerStatus:
        return ServerStatus(self.url, "fake", "0", True, [])

    def close(self) -> None:
        self.closed += 1


def _answer(reply: Reply) -> Answer:
    if isinstance(reply, ClassifierError):
        raise reply
    if isinstance(reply, Answer):
        return reply
    return Answer([each if isinstance(each, Prediction) else Prediction(*each) for each in reply])

"""The base of `Classifier` and `AsyncClassifier`: the settings, their checks, and each request's steps."""

import itertools
import secrets
import threading
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from client._attempts import RetryBudget, Steps, attempts
from client._errors import EXPLAINED, ClassifierError, ProtocolError
from client._headers import Headers
from client._images import describe, is_one
from client._prediction import Prediction
from client._request import Answer, Explanation, Request
from client._servers import Servers
from client._tls import TLSLike
from client._transport import AsyncTransport, Transport, check_timeout, open_transports

AnyTransport = TypeVar("AnyTransport", Transport, AsyncTransport)
Outcome: TypeAlias = "list[Prediction] | ClassifierError"
MOST_CLASSES = 2**31 - 1  # gRPC's server drops what is above 32 bits


class Session(Generic[AnyTransport]):
    """A client's settings: `timeout` (seconds), `model` and `retries` may be changed between requests."""

    _asynchronous: ClassVar[bool]

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        protocol: str = "grpc",
        model: str = "classifier",
        timeout: float = 30.0,
        retries: int = 2,
        *,
        tls: TLSLike = None,
        shared_memory_token: str | None = None,
        headers: Headers = None,
        transport: AnyTransport | Sequence[AnyTransport] | None = None,
    ) -> None:
        if transport is None:
            transport = open_transports(url, protocol, tls, shared_memory_token, headers, self._asynchronous)
        self._transports: list[AnyTransport] = list(transport) if isinstance(transport, Sequence) else [transport]
        if not self._transports:
            raise ValueError("transport is an empty list: give one or more, or leave it out and give a URL")
        self.model = _check_text("model", model)
        self.timeout = check_timeout(timeout)
        self.retries = _check_retries(retries)
        self._servers = Servers(len(self._transports))
        self._budget = RetryBudget()
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(4)
        self._closed = threading.Event()

    @property
    def urls(self) -> list[str]:
        """The servers' addresses, in the order in which they were given."""
        return [transport.url for transport in self._transports]

    def _steps(self, image: bytes, top: int, timeout: float | None, request_id: str | None, explain: bool) -> Steps:
        request = Request(
            model=self.model + EXPLAINED if explain else self.model,
            image=image,
            top=int(top),  # JSON cannot hold numpy's integers
            timeout=self.timeout if timeout is None else timeout,
            id=request_id or f"{self._id_prefix}-{next(self._ids)}",
            class_map=explain,
        )
        return attempts(request, self._servers, self.retries, self._budget)

    def _check(self, top: int, timeout: float | None = None, request_id: str | None = None) -> None:
        if not _is_count(top, 1) or top > MOST_CLASSES:
            raise ValueError(f"top is {top!r}: ask for 1 class or more, {MOST_CLASSES} at most")
        check_timeout(self.timeout if timeout is None else timeout)
        _check_text("model", self.model)
        _check_retries(self.retries)
        if request_id is not None:
            _check_text("request_id", request_id)
        self._check_open()

    def _check_many(self, images: Any, top: int, concurrency: int) -> None:
        self._check(top)
        if not _is_count(concurrency, 1):
            raise ValueError(f"concurrency is {concurrency!r}: give 1 or more")
        if is_one(images):
            raise TypeError(f"{describe(images)} is one image: use classify, or give a list")

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RuntimeError(f"this {type(self).__name__} is closed: make a new one")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and int(value) >= least


def _check_retries(value: Any) -> int:
    if not _is_count(value, 0):
        raise ValueError(f"retries is {value!r}: give a whole number, 0 or more")
    return int(value)


def _check_text(name: str, value: Any) -> str:
    """Return `value` if it is UTF-8 text, which a command line's need not be; else raise `ValueError`."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise ValueError(f"{name} is {value!r}: give text, a str") from None
    return str(value)


def explanation(answer: Answer) -> Explanation:
    """Return the `Explanation` in `answer`. Raises `ProtocolError` if it has no class map."""
    if answer.class_map is None:
        raise ProtocolError("the answer holds no class map: check the model")
    return Explanation(list(answer.predictions), answer.class_map, answer.crop)

"""The client for applications with threads; `AsyncClassifier` is its counterpart for asyncio."""

from collections.abc import Callable, Generator, Iterable
from typing import Any

from client._attempts import Pause, Result, Send, drive
from client._errors import ClassifierError
from client._images import ImageLike, describe, encode
from client._ordered import in_order
from client._prediction import Prediction
from client._request import Answer, Explanation
from client._session import Outcome, Session, explanation
from client._status import ServerStatus
from client._transport import Transport


class Classifier(Session[Transport]):
    """A client that classifies images on Widefield servers. Threads may share it; it connects at the first request.

    An image is a path, encoded bytes, a PIL image or a uint8 array, [H,W,3] RGB or [H,W] grey.

    Args:
        url: ``"host:port"`` (over HTTP also ``"https://gateway/path"``), or several, which take turns; None is this
            machine at the protocol's own port (gRPC 8001, HTTP 8000). A server that cannot be reached or is not ready
            is left out until it is back.
        protocol: ``"grpc"`` or ``"http"``; answers and errors are the same.
        model: the model's name on the server.
        timeout: seconds for one image, from sending to the whole answer, all attempts and pauses included; also sent to
            the server, as a limit for each of its queues.
        retries: how often an image is sent again where that may help: no connection, not ready, a full queue, a failure
            of the server. Pauses are random and grow. With several servers, one that is silent for half of the
            remaining time is given up for the next, unless this is 0.
        tls: a `TLS`, the path of a root certificate, or True for the system's; ``grpcs://`` and ``https://`` mean True.
        shared_memory_token: that of servers on this host: images go through shared memory, which is faster. None sends
            them in the messages.
        headers: sent with every request (over gRPC as metadata), for a gateway; or a function that returns them, called
            before each request, so that a key can be renewed.
        transport: one transport, or one for each server, instead of `url`, `protocol`, `tls`, the token and `headers`;
            for example a fake in a test.

    Raises:
        ValueError: an argument cannot be used; the message names it. Nothing is sent yet.
    """

    _asynchronous = False

    def classify(
        self, image: ImageLike, top: int = 5, *, timeout: float | None = None, request_id: str | None = None
    ) -> list[Prediction]:
        """Return the `top` most probable classes, best first; all of them if the model has fewer.

        Args:
            timeout: seconds, instead of the Classifier's.
            request_id: what the server's log calls the request; None makes one.

        Raises:
            ClassifierError: one of its subclasses, with the image's name in `image`.
            ValueError: `top`, `timeout` or `request_id` is not valid, such as a `top` of 0.
            RuntimeError: the Classifier is closed, or was closed during the call.
        """
        return list(self._ask(image, top, timeout, request_id, explain=False).predictions)

    def explain(
        self, image: ImageLike, top: int = 5, *, timeout: float | None = None, request_id: str | None = None
    ) -> Explanation:
        """Do as `classify`, and return the evidence map of the best class too, from the model ``<model>_explained``.

        Raises `ModelNotFoundError` if the served model was built without ``--class-map``.
        """
        return explanation(self._ask(image, top, timeout, request_id, explain=True))

    def classify_many(self, images: Iterable[ImageLike], top: int = 5, concurrency: int = 8) -> list[Outcome]:
        """Return one outcome per image, in order: its predictions or its `ClassifierError`, which is not raised.

        So a bad image does not stop the others. At most `concurrency` requests are in flight. An array [N,H,W,3] is
        N images; a single image, of any form, raises `TypeError`.
        """
        return list(self.classify_stream(images, top, concurrency))

    def classify_stream(
        self, images: Iterable[ImageLike], top: int = 5, concurrency: int = 8
    ) -> Generator[Outcome, None, None]:
        """Yield the outcomes of `classify_many`, each as soon as it and all before it are known.

        A separate thread reads `images`, so it may be endless, and may block, even until an outcome has come.
        Closing the iterator early (``close``) drops what has not been sent.
        """
        self._check_many(images, top, concurrency)
        return in_order(lambda image: _or_error(self.classify, image, top), images, concurrency)

    def status(self, timeout: float | None = None) -> "list[ServerStatus | ClassifierError]":
        """Return each server's readiness, models and time statistics, or its error. All servers are asked at once."""
        self._check(1, timeout)
        seconds = timeout or self.timeout
        return list(in_order(lambda each: _or_error(each.status, seconds), self._transports, len(self._transports)))

    def close(self) -> None:
        """Close the connections; pending requests and retries raise `RuntimeError`. Closing twice is harmless."""
        self._closed.set()
        for transport in self._transports:
            transport.close()

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, image: ImageLike, top: int, timeout: float | None, request_id: str | None, explain: bool) -> Answer:
        self._check(top, timeout, request_id)
        try:
            return drive(self._steps(encode(image), top, timeout, request_id, explain), self._act)
        except ClassifierError as error:
            self._check_open()  # if it was closed meanwhile, that is the reason
            error.image = describe(image)
            raise

    def _act(self, step: Send | Pause) -> Answer | None:
        self._check_open()
        if isinstance(step, Send):
            return self._transports[step.server].infer(step.request)
        self._closed.wait(step.seconds)
        return None


def _or_error(function: Callable[..., Result], *arguments: Any) -> Result | ClassifierError:
    try:
        return function(*arguments)
    except ClassifierError as error:
        return error

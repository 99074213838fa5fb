"""The one class that an application uses."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeAlias

from client._errors import ClassifierError
from client._images import ImageLike, describe, encode
from client._prediction import Prediction, parse_predictions
from client._transport import Transport, check_timeout, open_transport

Outcome: TypeAlias = "list[Prediction] | ClassifierError"


class Classifier:
    """Classifies images on a Widefield server. May be shared by threads; connects at the first request.

    Args:
        url: ``"host:port"``; None is this machine at the protocol's own port (gRPC 8001, HTTP 8000).
        protocol: ``"grpc"`` or ``"http"``; answers and errors are the same.
        model: the model's name on the server.
        timeout: seconds for one image, from sending to the whole answer; also told to the server.
        transport: carries the requests instead of `url` and `protocol`, for example a fake in a test.

    An image is a path, encoded bytes, a PIL image or an array [H,W,3] of uint8 RGB.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: str = "grpc",
        model: str = "classifier",
        timeout: float = 30.0,
        *,
        transport: Transport | None = None,
    ) -> None:
        self.model = model
        self.timeout = check_timeout(timeout)
        self._transport = transport if transport is not None else open_transport(url, protocol)
        self._closed = False

    def classify(self, image: ImageLike, top: int = 5) -> list[Prediction]:
        """The `top` most probable classes, best first; all of them where the model has fewer.

        Raises:
            ClassifierError: one of its subclasses, with the image's name in `image`.
            ValueError: `top` is less than 1.
        """
        _check_top(top)
        self._check_open()
        try:
            entries = self._transport.infer(self.model, encode(image), top, self.timeout)
            return parse_predictions(entries)
        except ClassifierError as error:
            self._check_open()
            error.image = describe(image)
            raise

    def classify_many(self, images: Iterable[ImageLike], top: int = 5, concurrency: int = 8) -> list[Outcome]:
        """One outcome an image, in order: its predictions, or, not raised, the `ClassifierError` that it met.

        So one bad image costs none of the others. At most `concurrency` requests are in flight.
        """
        return list(self.classify_stream(images, top, concurrency))

    def classify_stream(self, images: Iterable[ImageLike], top: int = 5, concurrency: int = 8) -> Iterator[Outcome]:
        """`classify_many`, each outcome as soon as it and those before it are there; `images` may be endless."""
        _check_top(top)
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}: give 1 or more")
        if isinstance(images, (str, bytes, bytearray, os.PathLike)):
            raise TypeError(f"{describe(images)} is one image: use classify, or give a list")
        self._check_open()
        return self._stream(images, top, concurrency)

    def close(self) -> None:
        """Closes the connections. Twice does no harm."""
        self._closed = True
        self._transport.close()

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, images: Iterable[ImageLike], top: int, concurrency: int) -> Iterator[Outcome]:
        waiting: deque[Future[Outcome]] = deque()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="classify")
        try:
            for image in images:
                waiting.append(pool.submit(self._outcome, image, top))
                if len(waiting) == 2 * concurrency:  # a slow first one does not stop the rest, nor do they pile up
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # close() ends what is still in flight

    def _outcome(self, image: ImageLike, top: int) -> Outcome:
        try:
            return self.classify(image, top)
        except ClassifierError as error:
            return error

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Classifier is closed: make a new one")


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"top is {top}: ask for 1 class or more")

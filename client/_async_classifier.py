"""`Classifier` for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterable

from client._attempts import Pause, Result, Send, drive_async
from client._errors import ClassifierError
from client._images import ImageLike, describe, encode
from client._ordered import async_in_order
from client._prediction import Prediction
from client._request import Answer, Explanation
from client._session import Outcome, Session, explanation
from client._status import ServerStatus
from client._transport import AsyncTransport


class AsyncClassifier(Session[AsyncTransport]):
    """`Classifier`'s interface for asyncio: the same arguments, answers, errors, retries and servers.

    It belongs to the event loop of its first request. Cancelling the task that waits for an answer ends the
    request. Files are read, and PIL images and arrays encoded, in a thread.
    """

    _asynchronous = True
    _loop: asyncio.AbstractEventLoop | None = None

    async def classify(
        self, image: ImageLike, top: int = 5, *, timeout: float | None = None, request_id: str | None = None
    ) -> list[Prediction]:
        """See `Classifier.classify`."""
        return list((await self._ask(image, top, timeout, request_id, explain=False)).predictions)

    async def explain(
        self, image: ImageLike, top: int = 5, *, timeout: float | None = None, request_id: str | None = None
    ) -> Explanation:
        """See `Classifier.explain`."""
        return explanation(await self._ask(image, top, timeout, request_id, explain=True))

    async def classify_many(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], top: int = 5, concurrency: int = 8
    ) -> list[Outcome]:
        """See `Classifier.classify_many`."""
        return [outcome async for outcome in self.classify_stream(images, top, concurrency)]

    def classify_stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], top: int = 5, concurrency: int = 8
    ) -> AsyncGenerator[Outcome, None]:
        """See `Classifier.classify_stream`; but the event loop reads `images`: a source that blocks should be async.

        Closing the iterator early (``aclose``) cancels the requests in flight.
        """
        self._check_many(images, top, concurrency)
        return async_in_order(lambda image: _or_error(self.classify(image, top)), images, concurrency)

    async def status(self, timeout: float | None = None) -> "list[ServerStatus | ClassifierError]":
        """See `Classifier.status`."""
        self._check(1, timeout)
        self._check_loop()
        asked = (_or_error(transport.status(timeout or self.timeout)) for transport in self._transports)
        return list(await asyncio.gather(*asked))

    async def close(self) -> None:
        """Close the connections; pending requests raise `RuntimeError`. Closing twice is harmless."""
        self._closed.set()
        for transport in self._transports:
            await transport.close()

    async def __aenter__(self) -> "AsyncClassifier":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(
        self, image: ImageLike, top: int, timeout: float | None, request_id: str | None, explain: bool
    ) -> Answer:
        self._check(top, timeout, request_id)
        self._check_loop()
        try:
            data = encode(image) if isinstance(image, bytes) else await asyncio.to_thread(encode, image)
            return await drive_async(self._steps(data, top, timeout, request_id, explain), self._act)
        except ClassifierError as error:
            self._check_open()  # if it was closed meanwhile, that is the reason
            error.image = describe(image)
            raise

    def _check_loop(self) -> None:
        """Raise `RuntimeError` unless this is the loop of the first request, in which the connections live."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if loop is not self._loop:
            raise RuntimeError("this AsyncClassifier belongs to another event loop: make one in each")

    async def _act(self, step: Send | Pause) -> Answer | None:
        self._check_open()
        if isinstance(step, Send):
            return await self._transports[step.server].infer(step.request)
        await asyncio.sleep(step.seconds)
        return None


async def _or_error(answer: Awaitable[Result]) -> Result | ClassifierError:
    try:
        return await answer
    except ClassifierError as error:
        return error

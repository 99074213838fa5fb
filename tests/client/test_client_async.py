"""`AsyncClassifier` over fake transports: the same interface and policy, and cancellation."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import (
    Answer,
    AsyncClassifier,
    Classifier,
    ClassifierError,
    ConnectionFailedError,
    InvalidImageError,
    Prediction,
    ProtocolError,
    QueueFullError,
    Request,
)
from client import _attempts as policy
from client.testing import AsyncFakeTransport

CAT = [("cat", 3, 0.9)]


def echo(request: Request) -> Any:
    return [(request.image.decode(), 0, 0.75)]


def labels(outcomes: list) -> list[str]:
    return [outcome[0].label for outcome in outcomes]


def test_the_interface_is_the_same() -> None:
    for name in ("classify", "explain", "classify_many", "classify_stream", "status", "close"):
        one, other = (inspect.signature(getattr(kind, name)) for kind in (Classifier, AsyncClassifier))
        assert list(one.parameters) == list(other.parameters)
        assert [p.default for p in one.parameters.values()] == [p.default for p in other.parameters.values()]


def test_classify_and_explain(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"file")
    fake = AsyncFakeTransport(lambda request: Answer(CAT_PREDICTIONS, MAP if request.class_map else None))

    async def main() -> None:
        async with AsyncClassifier(transport=fake, model="m", timeout=7) as classifier:
            assert await classifier.classify(tmp_path / "a.png", top=2, request_id="mine") == CAT_PREDICTIONS
            explained = await classifier.explain(b"bytes", timeout=3)
            assert (explained.predictions, explained.class_map) == (CAT_PREDICTIONS, MAP)
            assert [status.ready for status in await classifier.status()] == [True]

    asyncio.run(main())
    one, other = fake.requests
    assert (one.model, one.image, one.top, one.id) == ("m", b"file", 2, "mine")
    assert (other.model, other.image, other.class_map) == ("m_explained", b"bytes", True)
    assert 6.5 < one.timeout <= 7
    assert 2.5 < other.timeout <= 3
    assert fake.closed == 1


CAT_PREDICTIONS = [Prediction("cat", 3, 0.9)]
MAP = np.ones((2, 3), np.float32)


def test_no_map_where_one_was_asked_for() -> None:
    with pytest.raises(ProtocolError, match="no class map"):
        asyncio.run(AsyncClassifier(transport=AsyncFakeTransport(CAT)).explain(b"x"))


def test_many_keep_order_and_are_bounded() -> None:
    async def reply(request: Request) -> Any:
        await asyncio.sleep(0.02 if int(request.image) % 3 == 0 else 0)
        return QueueFullError("full") if request.image == b"7" else echo(request)

    fake = AsyncFakeTransport(reply)

    async def images() -> AsyncIterator[bytes]:
        for number in range(40):
            yield str(number).encode()

    async def main() -> list:
        return await AsyncClassifier(transport=fake, retries=0).classify_many(images(), concurrency=4)

    outcomes = asyncio.run(main())
    refused = outcomes.pop(7)
    assert isinstance(refused, QueueFullError)
    assert refused.image == "<1 bytes>"
    assert labels(outcomes) == [str(n) for n in range(40) if n != 7]
    assert fake.most_in_flight == 4


def test_cancelling_ends_the_request_and_says_nothing_about_the_server() -> None:
    async def hang(request: Request) -> Any:
        await asyncio.sleep(30)

    one, other = AsyncFakeTransport(hang), AsyncFakeTransport(CAT)

    async def main() -> None:
        classifier = AsyncClassifier(transport=[one, other])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(classifier.classify(b"x"), 0.05)
        one.reply = CAT
        await classifier.classify_many([b"x"] * 4)

    asyncio.run(main())
    assert (len(one.requests), len(other.requests)) == (3, 2)


def test_retries_share_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.001)
    script: list[Any] = [ConnectionFailedError("refused"), QueueFullError("full"), CAT]
    fake = AsyncFakeTransport(lambda request: script.pop(0))
    assert asyncio.run(AsyncClassifier(transport=fake).classify(b"x"))[0].label == "cat"
    assert len(fake.requests) == 3


def test_servers_take_turns_and_a_dead_one_is_left_out() -> None:
    fakes = [AsyncFakeTransport(ConnectionFailedError("refused")), AsyncFakeTransport(CAT), AsyncFakeTransport(CAT)]
    outcomes = asyncio.run(AsyncClassifier(transport=fakes, retries=0).classify_many([b"x"] * 20, concurrency=1))
    assert labels(outcomes) == ["cat"] * 20
    assert [len(fake.requests) for fake in fakes] == [1, 10, 10]


def test_closed_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: 0.1)

    async def main() -> None:
        fake = AsyncFakeTransport(ConnectionFailedError("refused"))
        classifier = AsyncClassifier(transport=fake)
        waiting = asyncio.create_task(classifier.classify(b"x"))
        await asyncio.sleep(0.02)
        await classifier.close()
        with pytest.raises(RuntimeError, match="this AsyncClassifier is closed"):
            await waiting
        with pytest.raises(RuntimeError, match="closed"):
            await classifier.classify(b"x")
        assert len(fake.requests) == 1

    asyncio.run(main())


def test_another_event_loop_is_refused() -> None:
    classifier = AsyncClassifier(transport=AsyncFakeTransport(CAT))
    asyncio.run(classifier.classify(b"x"))
    for ask in (lambda: classifier.classify(b"x"), classifier.status, lambda: classifier.classify_many([b"x"])):
        with pytest.raises(RuntimeError, match="this AsyncClassifier belongs to another event loop: make one in each"):
            asyncio.run(ask())


def test_wrong_arguments_and_files() -> None:
    async def main() -> None:
        classifier = AsyncClassifier(transport=AsyncFakeTransport(CAT))
        with pytest.raises(ValueError, match="top is 0"):
            await classifier.classify(b"x", top=0)
        with pytest.raises(ValueError, match="concurrency is 0"):
            classifier.classify_stream([b"x"], concurrency=0)
        with pytest.raises(TypeError, match="use classify"):
            await classifier.classify_many("cat.jpg")
        with pytest.raises(InvalidImageError, match=r"^/no/such\.png: no such file"):
            await classifier.classify("/no/such.png")
        with pytest.raises(ZeroDivisionError):
            await AsyncClassifier(transport=AsyncFakeTransport(lambda request: 1 / 0)).classify_many([b"x"])

    asyncio.run(main())


def test_status_of_a_server_that_is_away() -> None:
    fake = AsyncFakeTransport()

    async def refuse(timeout: float) -> Any:
        raise ConnectionFailedError("refused")

    fake.status = refuse  # type: ignore[method-assign]
    (status,) = asyncio.run(AsyncClassifier(transport=fake).status(1))
    assert isinstance(status, ClassifierError)

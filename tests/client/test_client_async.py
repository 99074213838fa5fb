"""`AsyncClassifier` over fake transports: the same interface and policy, and cancellation."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
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
    for name in ("__init__", "classify", "explain", "classify_many", "classify_stream", "status", "close"):
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


def test_stream_ends_early_and_cancels() -> None:
    ended: list[bytes] = []

    async def reply(request: Request) -> Any:
        try:
            await asyncio.sleep(0 if request.image == b"0" else 30)
        except asyncio.CancelledError:
            ended.append(request.image)
            raise
        return echo(request)

    async def main() -> None:
        classifier = AsyncClassifier(transport=AsyncFakeTransport(reply))
        stream = classifier.classify_stream((str(n).encode() for n in range(100)), concurrency=2)
        assert (await anext(stream))[0].label == "0"
        await asyncio.sleep(0.05)  # until two are in flight
        await stream.aclose()
        assert len(asyncio.all_tasks()) == 1

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 5
    assert len(ended) == 2


def test_outcomes_come_while_the_source_waits() -> None:
    """Here for an outcome: held back, it would wait for ever."""

    async def main() -> list[str]:
        seen = asyncio.Event()

        async def images() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.wait_for(seen.wait(), 2)
            yield b"b"

        outcomes = []
        async for outcome in AsyncClassifier(transport=AsyncFakeTransport(echo)).classify_stream(images()):
            outcomes.append(outcome)
            seen.set()
        return labels(outcomes)

    assert asyncio.run(main()) == ["a", "b"]


def test_a_plain_source_leaves_the_event_loop_to_the_requests() -> None:
    fake, sent = AsyncFakeTransport(echo), []

    def images() -> Iterator[bytes]:
        for number in range(4):
            sent.append(len(fake.requests))
            yield str(number).encode()

    assert len(asyncio.run(AsyncClassifier(transport=fake).classify_many(images()))) == 4
    assert sent == [0, 1, 2, 3]


def test_a_source_that_fails_costs_nothing_before_it() -> None:
    async def images() -> AsyncIterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    async def main() -> None:
        stream = AsyncClassifier(transport=AsyncFakeTransport(echo)).classify_stream(images())
        assert (await anext(stream))[0].label == "a"
        with pytest.raises(ZeroDivisionError):
            await anext(stream)

    asyncio.run(main())


def test_leaving_early_ends_a_source_that_waits() -> None:
    ended = []

    async def images() -> AsyncIterator[bytes]:
        yield b"a"
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    async def main() -> None:
        stream = AsyncClassifier(transport=AsyncFakeTransport(echo)).classify_stream(images())
        await asyncio.wait_for(anext(stream), 5)
        await asyncio.wait_for(stream.aclose(), 5)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert ended == [True]


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

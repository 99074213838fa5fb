"""`classify_stream` and its source, with threads and with asyncio: what comes when, and what is left running."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from client import AsyncClassifier, Classifier, Prediction, Request
from client.testing import AsyncFakeTransport


def answer(label: str) -> list[Prediction]:
    return [Prediction(label, 0, 0.75), Prediction(f"second of {label}", 1, 0.25)]


def echo(request: Request) -> Any:
    return [(request.image.decode(), 0, 0.75)]


def labels(outcomes: list) -> list[str]:
    return [outcome[0].label for outcome in outcomes]


def test_stream_takes_only_what_it_needs(fake: Any) -> None:
    taken = itertools.count()
    stream = Classifier(transport=fake).classify_stream((str(next(taken)).encode() for _ in range(500)), concurrency=2)
    assert [next(stream) for _ in range(5)] == [answer(str(n)) for n in range(5)]
    stream.close()
    assert next(taken) < 15


def test_outcomes_come_while_the_source_waits(fake: Any) -> None:
    """Here for an outcome: held back, it would wait for ever."""
    seen = threading.Event()

    def images() -> Iterator[bytes]:
        yield b"a"
        assert seen.wait(2)
        yield b"b"

    fake.before = lambda image: time.sleep(0.05)
    outcomes = []
    for outcome in Classifier(transport=fake).classify_stream(images()):
        outcomes.append(outcome)
        seen.set()
    assert outcomes == [answer("a"), answer("b")]


def test_a_source_that_fails_costs_nothing_before_it(fake: Any) -> None:
    def images() -> Iterator[bytes]:
        yield from (b"a", b"b")
        raise ZeroDivisionError

    stream = Classifier(transport=fake).classify_stream(images())
    assert [next(stream), next(stream)] == [answer("a"), answer("b")]
    with pytest.raises(ZeroDivisionError):
        next(stream)


@pytest.mark.parametrize("waits", [False, True])
def test_leaving_early_leaves_nothing_running(fake: Any, waits: bool) -> None:
    """Whether the source is ahead, or blocks and continues later. Waiting calls are dropped."""
    go_on, taken = threading.Event(), []

    def images() -> Iterator[bytes]:
        for number in range(100):
            taken.append(number)
            if waits and number == 1:
                go_on.wait(5)
            yield str(number).encode()

    fake.before = lambda image: image == b"0" or go_on.wait(5)
    before = set(threading.enumerate())
    stream = Classifier(transport=fake).classify_stream(images(), concurrency=2)
    assert next(stream) == answer("0")
    until = time.monotonic() + 5
    while len(taken) < (2 if waits else 5) and time.monotonic() < until:
        time.sleep(0.05)
    started = set(threading.enumerate()) - before
    stream.close()
    go_on.set()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
    assert [thread.daemon for thread in started if thread.name == "classify-source"] == [True]  # a program may end
    assert len(taken) == (2 if waits else 5)
    assert len(fake.requests) <= (1 if waits else 3)


def test_asyncio_stream_ends_early_and_cancels() -> None:
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


def test_asyncio_stream_takes_only_what_it_needs() -> None:
    taken = []

    def images() -> Iterator[bytes]:
        for number in range(100):
            taken.append(number)
            yield str(number).encode()

    async def main() -> None:
        go_on = asyncio.Event()

        async def reply(request: Request) -> Any:
            await go_on.wait()
            return echo(request)

        stream = AsyncClassifier(transport=AsyncFakeTransport(reply)).classify_stream(images(), concurrency=2)
        first = asyncio.create_task(anext(stream))
        deadline = time.monotonic() + 10
        while len(taken) < 4 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(taken) == 4
        go_on.set()
        await first
        await stream.aclose()

    asyncio.run(main())


def test_asyncio_outcomes_come_while_the_source_waits() -> None:
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


def test_asyncio_a_plain_source_leaves_the_event_loop_to_the_requests() -> None:
    fake, sent = AsyncFakeTransport(echo), []

    def images() -> Iterator[bytes]:
        for number in range(4):
            sent.append(len(fake.requests))
            yield str(number).encode()

    assert len(asyncio.run(AsyncClassifier(transport=fake).classify_many(images()))) == 4
    assert sent == [0, 1, 2, 3]


def test_asyncio_a_source_that_fails_costs_nothing_before_it() -> None:
    async def images() -> AsyncIterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    async def main() -> None:
        stream = AsyncClassifier(transport=AsyncFakeTransport(echo)).classify_stream(images())
        assert (await anext(stream))[0].label == "a"
        with pytest.raises(ZeroDivisionError):
            await anext(stream)

    asyncio.run(main())


def test_asyncio_leaving_early_ends_a_source_that_waits() -> None:
    ended, waiting = [], asyncio.Event()

    async def images() -> AsyncIterator[bytes]:
        yield b"a"
        try:
            waiting.set()
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    async def main() -> None:
        stream = AsyncClassifier(transport=AsyncFakeTransport(echo)).classify_stream(images())
        await asyncio.wait_for(anext(stream), 5)
        await asyncio.wait_for(waiting.wait(), 5)
        await asyncio.wait_for(stream.aclose(), 5)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert ended == [True]

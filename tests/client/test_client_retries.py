"""Attempts, pauses and servers: the policy over fake transports."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from client import (
    Answer,
    Classifier,
    ClassifierError,
    ConnectionBrokenError,
    ConnectionFailedError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ModelNotFoundError,
    NotFiniteError,
    ProtocolError,
    QueueFullError,
    Request,
    ServerNotReadyError,
)
from client import _attempts as policy
from client._request import microseconds
from client._servers import Servers
from client.testing import FakeTransport, Reply

CAT = [("cat", 3, 0.9)]
SAFE = [ConnectionFailedError, ServerNotReadyError, QueueFullError, InferenceError]
UNSAFE = [InvalidImageError, ModelNotFoundError, NotFiniteError, ProtocolError]


def replies(*script: Reply) -> Callable[[Request], Reply]:
    """Reply with each once, then with the last for ever."""
    left = list(script)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.001)


@pytest.mark.parametrize("error", SAFE)
def test_what_is_safe_is_sent_again(error: type[ClassifierError]) -> None:
    fake = FakeTransport(replies(error("not now"), error("not now"), CAT))
    with Classifier(transport=fake, retries=2) as classifier:
        assert classifier.classify(b"x")[0].label == "cat"
    assert len(fake.requests) == 3
    assert len({request.id for request in fake.requests}) == 1  # one request in the log
    timeouts = [request.timeout for request in fake.requests]
    assert timeouts == sorted(timeouts, reverse=True)  # what is left of the one deadline
    assert timeouts[0] > timeouts[2]


@pytest.mark.parametrize("error", UNSAFE)
def test_what_is_not_safe_is_sent_once(error: type[ClassifierError]) -> None:
    fake = FakeTransport(error("no"))
    with Classifier(transport=[fake, fake], retries=9) as classifier, pytest.raises(error) as caught:
        classifier.classify(b"x")
    assert len(fake.requests) == 1
    assert caught.value.attempts == 1


def test_retries_may_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """2**1024 is no float."""
    monkeypatch.setattr(policy, "LONGEST_PAUSE", 0.0)
    fake = FakeTransport(replies(*[ConnectionFailedError("refused")] * 1100, CAT))
    with Classifier(transport=fake, retries=1100) as classifier:
        assert classifier.classify(b"x")[0].label == "cat"


def test_a_dead_server_beside_a_busy_one_costs_no_retry() -> None:
    dead, busy = FakeTransport(ConnectionFailedError("refused")), FakeTransport(replies(QueueFullError("full"), CAT))
    with Classifier(transport=[dead, busy], retries=1) as classifier:
        assert classifier.classify(b"x")[0].label == "cat"
    assert (len(dead.requests), len(busy.requests)) == (1, 2)


def test_a_server_that_had_the_model_is_stopping() -> None:
    """tritonserver unloads its models before it closes its connections; the other server answers meanwhile."""
    gone = ModelNotFoundError("the server has no model 'classifier'")
    first, second = FakeTransport(CAT), FakeTransport(CAT)
    with Classifier(transport=[first, second], retries=0) as classifier:
        for _ in range(4):
            classifier.classify(b"x")
        second.reply = gone
        for _ in range(8):
            assert classifier.classify(b"x")[0].label == "cat"
        assert len(second.requests) == 3  # it rests
        first.reply = gone
        with pytest.raises(ServerNotReadyError, match="had it before"):
            classifier.classify(b"x")
        with pytest.raises(ModelNotFoundError):
            classifier.explain(b"x")  # by another model, which it never had


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_end(retries: int) -> None:
    fake = FakeTransport(ConnectionFailedError("refused"))
    classifier = Classifier(transport=fake, retries=retries)
    with pytest.raises(ConnectionFailedError) as caught:
        classifier.classify(b"x", request_id="mine")
    assert len(fake.requests) == retries + 1
    assert (caught.value.attempts, caught.value.request_id) == (retries + 1, "mine")
    assert fake.requests[0].id == "mine"


def test_the_log_says_what_is_sent_again_and_which_server_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "client")
    fakes = [
        FakeTransport(replies(ConnectionFailedError("refused"), CAT)),
        FakeTransport(replies(InferenceError("no"), CAT)),
    ]
    with Classifier(transport=fakes) as classifier:
        classifier.classify(b"x", request_id="mine")
        for server in classifier._servers._servers:  # at the end of its rest
            server.out_until = server.out_until and 0.0
        classifier.classify(b"x")
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("client", "WARNING", "server 1 of 2 is left out: refused"),
        ("client", "INFO", "request mine: attempt 2, after: refused"),
        ("client", "INFO", "request mine: attempt 3, after: no"),
        ("client", "WARNING", "server 1 of 2 is back"),
    ]
    caplog.clear()
    with pytest.raises(ConnectionFailedError):
        Classifier(transport=FakeTransport(ConnectionFailedError("refused")), retries=0).classify(b"x")
    assert caplog.records == []


def test_an_unread_file_was_never_sent() -> None:
    with pytest.raises(InvalidImageError) as caught:
        Classifier(transport=FakeTransport(CAT)).classify("/no/such.png")
    assert (caught.value.attempts, caught.value.request_id) == (0, None)


def test_deadline_holds_over_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.2)
    fake = FakeTransport(ConnectionFailedError("refused"))
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError):  # the cause, not that the time is over
        Classifier(transport=fake, timeout=0.5, retries=1000).classify(b"x")
    assert time.monotonic() - started < 0.6
    assert 1 < len(fake.requests) < 1000
    assert all(0 < request.timeout <= 0.5 for request in fake.requests)


def test_pauses_are_random_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = []
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: ranges.append((low, high)) or 0.0)
    with pytest.raises(ConnectionFailedError):
        Classifier(transport=FakeTransport(ConnectionFailedError("refused")), retries=7).classify(b"x")
    pauses = [high for low, high in ranges if low == 0]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert {(0.5, 1)} == {each for each in ranges if each[0]}  # of the rests: clients do not come back all at once


def test_a_server_that_stops_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """tritonserver answers "stopping" for two or three seconds; another one behind its name may answer meanwhile."""
    pauses = []
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: low)
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: pauses.append(seconds))
    for timeout, expected in ((30.0, [0.5, 1.0, 1.0]), (0.8, [0.2, 0.2, 0.2])):
        stopping = FakeTransport(ServerNotReadyError("stopping"))
        with pytest.raises(ServerNotReadyError):
            Classifier(transport=stopping, retries=3, timeout=timeout).classify(b"x")
        assert pauses == pytest.approx(expected, abs=0.05)
        pauses.clear()


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_a_request_that_ends_servers_is_not_handed_to_all(retries: int) -> None:
    fakes = [FakeTransport(ConnectionBrokenError("broke")) for _ in range(4)]
    with pytest.raises(ConnectionBrokenError) as caught:
        Classifier(transport=fakes, retries=retries).classify(b"x")
    assert caught.value.attempts == sum(len(fake.requests) for fake in fakes) == retries + 1
    fakes[0].reply = CAT
    assert Classifier(transport=fakes, retries=5).classify(b"x"), "another server answers"


@pytest.mark.parametrize("error", [QueueFullError, InferenceError])
def test_a_server_that_goes_on_refusing_is_not_asked_twice_by_everyone(error: type[ClassifierError]) -> None:
    server = FakeTransport(error("no"))
    classifier = Classifier(transport=server, retries=1)
    outcomes = classifier.classify_many([b"x"] * 100)
    assert all(isinstance(outcome, error) for outcome in outcomes)
    assert 100 < len(server.requests) <= 105
    server.reply = CAT
    classifier.classify_many([b"x"] * 100)  # earns trust again
    server.reply = replies(error("no"), CAT)
    assert classifier.classify(b"x")


def test_trust_is_bounded() -> None:
    """Half of the budget may be spent, however many answers came before."""
    budget = policy.RetryBudget()
    for _ in range(2):
        assert [budget.spend() for _ in range(6)] == [True] * 4 + [False] * 2
        for _ in range(1000):
            budget.earn()


def test_a_retry_goes_to_another_server_though_it_is_not_its_turn() -> None:
    request, servers = Request("classifier", b"x", top=1, timeout=9.0, id="1"), Servers(2)
    steps = policy.attempts(request, servers, 9, policy.RetryBudget())
    asked = [next(steps)]
    for _ in range(2):
        steps.throw(QueueFullError("full"))
        asked.append(steps.send(None))
        servers.take()  # another request's
    assert [step.server for step in asked] == [0, 1, 0]  # type: ignore[union-attr]


def test_close_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: 10.0)
    classifier = Classifier(transport=FakeTransport(ConnectionFailedError("refused")))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(classifier.classify, b"x")
        time.sleep(0.1)
        classifier.close()
        with pytest.raises(RuntimeError, match="closed"):
            future.result(2)


def test_close_is_no_reason_to_go_to_another_server() -> None:
    def close(request: Request) -> Reply:
        classifier.close()
        return ConnectionFailedError("closed")

    one, other = FakeTransport(close), FakeTransport(CAT)
    classifier = Classifier(transport=[one, other])
    with pytest.raises(RuntimeError, match="closed"):
        classifier.classify(b"x")
    assert other.requests == []


def test_servers_take_turns() -> None:
    fakes = [FakeTransport(CAT) for _ in range(3)]
    with Classifier(transport=fakes) as classifier:
        classifier.classify_many([b"x"] * 30)
    assert [len(fake.requests) for fake in fakes] == [10, 10, 10]
    assert [fake.closed for fake in fakes] == [1, 1, 1]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_dead_server_costs_nobody_an_answer(retries: int) -> None:
    """Even without retries: another server is untried, and nothing has been computed."""
    dead, alive, other = fakes = [
        FakeTransport(ConnectionFailedError("refused")),
        FakeTransport(CAT),
        FakeTransport(CAT),
    ]
    outcomes = Classifier(transport=fakes, retries=retries).classify_many([b"x"] * 60, concurrency=4)
    assert all(isinstance(outcome, list) for outcome in outcomes)
    assert len(dead.requests) <= 4  # those that were on their way when it was found out
    assert abs(len(alive.requests) - len(other.requests)) <= 8


def test_a_full_queue_is_tried_elsewhere() -> None:
    full, free = fakes = [FakeTransport(QueueFullError("full")), FakeTransport(CAT)]
    classifier = Classifier(transport=fakes, retries=1)
    assert [classifier.classify(b"x")[0].label for _ in range(4)] == ["cat"] * 4
    assert len(free.requests) == 4
    assert len(full.requests) == 1


def test_a_server_whose_queue_stays_full_costs_nobody_an_answer() -> None:
    """Asked as often as the others it would use up the retries of all."""
    full, *_ = fakes = [FakeTransport(QueueFullError("full")), FakeTransport(CAT), FakeTransport(CAT)]
    with Classifier(transport=fakes) as classifier:
        assert all(classifier.classify(b"x") for _ in range(100))
    assert len(full.requests) <= 3


def test_a_server_that_fails_costs_nobody_an_answer() -> None:
    """Left in the turn it would use up the retries of all."""
    failing, *_ = fakes = [FakeTransport(InferenceError("CUDA error")), FakeTransport(CAT), FakeTransport(CAT)]
    with Classifier(transport=fakes) as classifier:
        assert all(classifier.classify(b"x") for _ in range(100))
        assert len(failing.requests) == 3
        failing.reply = CAT
        for server in classifier._servers._servers:  # at the end of its rest
            server.out_until = server.out_until and 0.0
        assert all(classifier.classify(b"x") for _ in range(30))
    assert len(failing.requests) == 13


def test_a_picture_on_which_all_servers_fail_costs_no_other_its_answer() -> None:
    fakes = [FakeTransport(lambda request: InferenceError("no") if request.image == b"bad" else CAT) for _ in range(3)]
    with Classifier(transport=fakes) as classifier:
        outcomes = classifier.classify_many([b"x", *[b"bad"] * 20, *[b"x"] * 20], concurrency=1)
    assert [isinstance(outcome, list) for outcome in outcomes] == [True] + [False] * 20 + [True] * 20


def test_all_are_dead() -> None:
    fakes = [FakeTransport(ConnectionFailedError("refused")) for _ in range(3)]
    classifier = Classifier(transport=fakes, retries=2)
    with pytest.raises(ConnectionFailedError) as caught:
        classifier.classify(b"x")
    assert caught.value.attempts == 5  # each once for nothing, then two retries
    fakes[1].reply = CAT
    assert classifier.classify(b"x")  # nobody waits for the end of a rest


def hanging(request: Request) -> Reply:
    time.sleep(request.timeout)
    return DeadlineExceededError(f"no answer within {request.timeout:.3g} s")


def test_a_server_that_hangs_costs_nobody_an_answer() -> None:
    hung, *alive = fakes = [FakeTransport(hanging), FakeTransport(CAT), FakeTransport(CAT)]
    with Classifier(transport=fakes, timeout=0.4) as classifier:
        outcomes = classifier.classify_many([b"x"] * 60, concurrency=16)
        assert all(isinstance(outcome, list) for outcome in outcomes)
        assert 0 < len(hung.requests) <= 16
        assert sum(len(fake.requests) for fake in alive) == 60


def test_two_of_three_hang() -> None:
    fakes = [FakeTransport(hanging), FakeTransport(hanging), FakeTransport(CAT)]
    with Classifier(transport=fakes, timeout=0.4) as classifier:
        assert classifier.classify(b"x")
    assert [round(fake.requests[0].timeout, 1) for fake in fakes] == [0.2, 0.1, 0.1]


def test_all_hang() -> None:
    fakes = [FakeTransport(hanging), FakeTransport(hanging)]
    with pytest.raises(DeadlineExceededError, match=r", 2 attempts in 0\.2 s$"):
        Classifier(transport=fakes, timeout=0.2, retries=1).classify(b"x")


def test_a_wait_in_a_queue_is_an_eighth_of_all_that_is_left() -> None:
    """Not an eighth of one attempt's half: a batch may take that long."""
    fakes = [FakeTransport(hanging), FakeTransport(CAT)]
    with Classifier(transport=fakes, timeout=0.8) as classifier:
        assert classifier.classify(b"x")
    first, second = (fake.requests[0].queue_timeout for fake in fakes)
    assert 0.08 < first <= 0.1
    assert 0 < second <= 0.05  # half of it was waited
    assert microseconds(0.05) == 50_000
    assert microseconds(1e-9) == 1  # 0 is no limit


def test_slow_servers_are_not_sent_everything_twice() -> None:
    """Each request meets a server that answers others, but not this one in time."""
    budget, servers, waits = policy.RetryBudget(), Servers(2), []
    for _ in range(8):
        steps = policy.attempts(Request("classifier", b"x", top=1, timeout=1.0, id="1"), servers, 2, budget)
        first = next(steps)
        assert isinstance(first, policy.Send)
        waits.append(round(first.request.timeout, 1))
        servers.report(first.server, None)  # another's answer
        with contextlib.suppress(StopIteration, DeadlineExceededError):
            steps.throw(DeadlineExceededError("late"))
            steps.send(Answer([]))
    assert waits == [0.5] * 6 + [1.0] * 2


def test_without_retries_a_slow_answer_is_waited_for() -> None:
    fakes = [FakeTransport(CAT), FakeTransport(CAT)]
    with Classifier(transport=fakes, timeout=0.4, retries=0) as classifier:
        classifier.classify(b"x")
    assert fakes[0].requests[0].timeout > 0.3


def test_a_foreign_error_says_nothing_about_the_server() -> None:
    broken, fine = fakes = [FakeTransport(replies(CAT)), FakeTransport(CAT)]
    broken.reply = lambda request: 1 / 0  # type: ignore[assignment, return-value]
    classifier = Classifier(transport=fakes)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            classifier.classify(b"x")
        assert classifier.classify(b"x")
    assert len(fine.requests) == 2


def test_a_trial_that_is_cancelled_is_made_again() -> None:
    """Otherwise a server that was gone once would never be asked again."""
    now = 100.0
    servers = Servers(2, lambda: now)
    servers.report(0, ConnectionFailedError("refused"))
    now += 2
    request = Request("classifier", b"x", top=1, timeout=1.0, id="1")
    steps = policy.attempts(request, servers, 2, policy.RetryBudget())
    assert next(steps).server == 0  # type: ignore[union-attr]
    assert not servers.has_other({1})
    steps.close()
    assert servers.has_other({1})


def test_request_ids_differ(fake: FakeTransport) -> None:
    one, other = Classifier(transport=fake), Classifier(transport=fake)
    barrier = threading.Barrier(4)

    def ask(number: int) -> None:
        barrier.wait()
        for _ in range(25):
            (one if number % 2 else other).classify(b"x")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert len({request.id for request in fake.requests}) == 100

"""Which of several servers is asked next: turns, rests, trials."""

import pytest

from client import (
    ClassifierError,
    ConnectionFailedError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    QueueFullError,
    ServerNotReadyError,
)
from client._servers import FAULTS, LONGEST_REST, Servers


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_dead_server_rests_and_is_tried_by_one() -> None:
    clock = Clock()
    servers = Servers(2, clock)
    assert [servers.take(), servers.take(), servers.take()] == [0, 1, 0]
    for number in (0, 1, 0):
        servers.report(number, None)
    servers.report(0, ConnectionFailedError("refused"))
    assert {servers.take() for _ in range(5)} == {1}
    clock.now += 1.01
    trial = [servers.take() for _ in range(5)]
    assert trial.count(0) == 1  # one finds out, the others do not wait for it
    servers.report(0, None)
    assert {servers.take() for _ in range(2)} == {0, 1}


def test_rests_double_and_an_answer_forgets_them() -> None:
    clock = Clock()
    servers = Servers(2, clock)
    rests = []
    for _ in range(8):
        servers.report(0, ServerNotReadyError("starting"))
        started = clock.now
        while 0 not in {servers.take(), servers.take()}:
            clock.now += 0.05
        servers.release(0)
        rests.append(clock.now - started)
    assert 0.5 <= rests[0] <= 1.1
    assert 2 <= rests[2] <= 4.1
    assert LONGEST_REST / 2 <= rests[-1] <= LONGEST_REST + 0.1
    servers.report(0, None)
    servers.report(0, ServerNotReadyError("starting"))
    clock.now += 1.01
    assert 0 in {servers.take(), servers.take()}


def test_what_fails_at_once_is_one_failure() -> None:
    """Requests that were under way when a server stopped."""
    clock = Clock()
    servers = Servers(2, clock)
    for _ in range(16):
        servers.report(0, ConnectionFailedError("broke"))
    clock.now += 1.01
    assert 0 in {servers.take(), servers.take()}


def test_one_whose_queue_is_full_is_asked_after_the_others() -> None:
    clock = Clock()
    servers = Servers(3, clock)
    rests = []
    for _ in range(3):
        for _ in range(9):  # at once
            servers.report(0, QueueFullError("full"))
        started = clock.now
        assert {servers.take() for _ in range(3)} == {1, 2}
        assert servers.take({1, 2}) == 0  # a retry prefers it to those that it has asked
        while 0 not in {servers.take() for _ in range(3)}:
            clock.now += 0.05
        rests.append(clock.now - started)
    assert 0.5 <= rests[0] <= 1.1
    assert 2 <= rests[2] <= 4.1
    servers.report(0, None)
    assert {servers.take() for _ in range(3)} == {0, 1, 2}
    for number in range(3):
        servers.report(number, QueueFullError("full"))
    assert {servers.take() for _ in range(3)} == {0, 1, 2}  # all are overloaded: they take turns


def test_a_full_queue_is_an_answer() -> None:
    """It brings a dead server back, to which the next trial need not be the only request."""
    clock = Clock()
    servers = Servers(2, clock)
    servers.report(0, ConnectionFailedError("refused"))
    servers.report(0, QueueFullError("full"))
    servers.report(1, ConnectionFailedError("refused"))
    assert [servers.take(), servers.take()] == [0, 0]


def test_after_an_outage_the_clients_do_not_come_all_at_once() -> None:
    rests = set()
    for _ in range(9):
        servers = Servers(1, Clock())
        servers.report(0, ConnectionFailedError("refused"))
        rests.add(servers._servers[0].out_until)
    assert len(rests) > 1


def test_where_none_is_alive_the_one_whose_rest_ends_first_is_tried() -> None:
    clock = Clock()
    servers = Servers(2, clock)
    for number, passed in ((0, 0.0), (0, 1.01), (1, 0.0)):
        clock.now += passed
        servers.report(number, ConnectionFailedError("refused"))
    assert [servers.take() for _ in range(3)] == [1, 1, 1]


def test_an_outage_may_last() -> None:
    """2**1024 is no float."""
    clock = Clock()
    servers = Servers(1, clock)
    for _ in range(2000):
        clock.now += LONGEST_REST
        servers.report(0, ConnectionFailedError("refused"))
    assert servers.take() == 0


def test_a_trial_that_is_cancelled_leaves_the_next_one_to_others() -> None:
    clock = Clock()
    servers = Servers(2, clock)
    servers.report(0, ConnectionFailedError("refused"))
    clock.now += 2
    assert 0 in (servers.take(), servers.take())
    assert not servers.has_other({1})
    servers.release(0)
    assert servers.has_other({1})
    assert 0 in (servers.take(), servers.take())


@pytest.mark.parametrize("fault", [DeadlineExceededError("late"), InferenceError("failed")])
def test_a_server_that_hangs_or_fails_is_left_out(fault: ClassifierError) -> None:
    servers = Servers(2, Clock())
    for _ in range(FAULTS - 1):
        servers.report(0, fault)
    servers.report(0, InvalidImageError("no picture"))  # it lives
    for _ in range(FAULTS - 1):
        servers.report(0, fault)
    assert {servers.take(), servers.take()} == {0, 1}
    servers.report(0, fault)
    assert {servers.take(), servers.take()} == {1}


def test_one_that_was_not_tried_comes_first_though_it_is_not_its_turn() -> None:
    servers = Servers(2, Clock())
    assert servers.take() == 0
    assert servers.take() == 1  # another request's
    assert servers.take({0}) == 1


def test_one_that_is_alive_comes_before_one_that_rests_though_it_was_just_asked() -> None:
    servers = Servers(2, Clock())
    servers.report(0, ConnectionFailedError("refused"))
    assert servers.take({1}) == 1
    servers.report(1, ConnectionFailedError("refused"))
    assert servers.take({1}) == 0
    assert servers.take({0}) == 1

"""The search for the highest rate that holds."""

import math
import random

import pytest

from loadtest.capacity import find_capacity
from loadtest.results import least_offered, rate_to_offer


def result(met: bool, late: float | None = 1.0) -> dict:
    protocols = {"gRPC": {"sent_late_p99_ms": late}, "HTTP": {"sent_late_p99_ms": None}}
    return {"complete": True, "phases": [{"measured": True, "slo": [{"met": met}], "protocols": protocols}]}


@pytest.mark.parametrize("first", [3.0, 50.0, 90.0, 700.0])
def test_finds_the_limit_from_either_side(first: float) -> None:
    search = find_capacity(lambda rate: result(rate <= 73), first, 10_000, repeats=1)
    assert 73 * 0.94 < search.capacity <= 73
    assert not search.limited
    assert len(search.results) == len(search.tried) < 16


def test_the_generator_is_the_limit() -> None:
    search = find_capacity(lambda rate: result(rate <= 73), 8, 40, repeats=1)
    assert (search.capacity, search.limited) == (40, True)


def test_nothing_holds() -> None:
    search = find_capacity(lambda rate: result(False), 80, 1000, repeats=1)
    assert search.capacity == 0
    assert min(search.tried) >= 80 / 128


@pytest.mark.parametrize("first", [10.0, 30.0, 60.0, 700.0])
def test_a_rate_too_low_for_the_goodput_is_not_tried(first: float) -> None:
    """Of 20 seconds, by chance: `per_s` is 40, and the server does 100."""
    source = random.Random(0)
    search = find_capacity(
        lambda rate: result(rate <= 100 and rate + source.gauss(0, math.sqrt(rate / 20)) >= 40),
        max(first, rate_to_offer(40, 20)),
        1000,
        least=40,
    )
    assert 100 * 0.94 < search.capacity <= 100
    assert min(search.tried) > 40


@pytest.mark.parametrize("ceiling", [30.0, 1000.0])
def test_no_rate_has_the_goodput(ceiling: float) -> None:
    search = find_capacity(lambda rate: result(False), 48, ceiling, repeats=1, least=40)
    assert (search.capacity, search.limited) == (0, False)
    assert len(search.tried) < 5


def test_what_a_rate_offers_at_least() -> None:
    assert least_offered(rate_to_offer(40, 20), 20) == pytest.approx(40)
    assert rate_to_offer(0, 20) == 0


def test_most_of_the_repeats_decide() -> None:
    source = random.Random(0)
    search = find_capacity(lambda rate: result(rate <= 73 and source.random() < 0.95), 100, 1000, repeats=5)
    assert 73 * 0.9 < search.capacity <= 73
    for outcomes in search.tried.values():
        assert max(outcomes.count(True), outcomes.count(False)) == 3  # as many as decide it, no more


def test_a_run_whose_sender_was_late_is_made_again() -> None:
    runs = iter([False, True, True] * 50)
    search = find_capacity(lambda rate: result(rate <= 73 and next(runs), late=700.0), 50, 60, repeats=1)
    assert (search.capacity, search.limited) == (60, True)
    assert search.tried == {50: [True], 60: [True]}
    assert len(search.results) == 3


def test_a_sender_that_is_always_late_is_judged_in_the_end() -> None:
    search = find_capacity(lambda rate: result(False, late=700.0), 80, 1000, repeats=3)
    assert search.capacity == 0
    assert len(search.results) == sum(3 + len(outcomes) for outcomes in search.tried.values())

"""The search for the highest rate that holds."""

import random

import pytest

from loadtest.capacity import find_capacity


def result(met: bool) -> dict:
    return {"complete": True, "phases": [{"measured": True, "slo": [{"met": met}]}]}


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


def test_most_of_the_repeats_decide() -> None:
    source = random.Random(0)
    search = find_capacity(lambda rate: result(rate <= 73 and source.random() < 0.95), 100, 1000, repeats=5)
    assert 73 * 0.9 < search.capacity <= 73
    for outcomes in search.tried.values():
        assert max(outcomes.count(True), outcomes.count(False)) == 3  # as many as decide it, no more

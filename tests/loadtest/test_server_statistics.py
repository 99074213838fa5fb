"""The server's statistics of a run, and when they include other callers."""

import pytest

from client import ConnectionFailedError, ModelStatus, ServerStatus, Times
from loadtest.report import time_shares
from loadtest.server_statistics import difference, of_others


def test_each_part_has_its_own_time() -> None:
    """Times of ten requests in five batches since the phase began."""

    def status(requests: int) -> ServerStatus:
        whole, *parts = (Times(requests, requests * ms / 1000) for ms in (10, 1, 2, 3, 4))
        failed = Times(requests // 10, 0.0)
        models = [ModelStatus("classifier", "3", requests, requests // 2, whole, failed, *parts), idle]
        return ServerStatus("box", "fake", "0", True, models)

    idle = ModelStatus("idle", "1", 7, 7, *6 * [Times(7, 1.0)])
    (row,) = difference(status(100), status(110))
    assert row == {
        "model": "classifier",
        "version": "3",
        "requests": 10,
        "failed": 1,
        "batch": 2.0,
        "total_ms": pytest.approx(10),
        "queue_ms": pytest.approx(1),
        "compute_input_ms": pytest.approx(2),
        "compute_ms": pytest.approx(3),
        "compute_output_ms": pytest.approx(4),
    }
    assert difference(ConnectionFailedError("refused"), status(110)) == []


@pytest.mark.parametrize(
    ("counted", "answered", "failed", "told"),
    [
        (419, 419, 0, False),
        (430, 400, 30, False),  # the server answered them too late
        (60, 20, 0, False),  # those in flight before
        (8086, 419, 0, True),
        (12, 419, 0, True),
    ],
)
def test_counts_of_others_are_told(counted: int, answered: int, failed: int, told: bool) -> None:
    protocols = {"gRPC": {"requests": answered + failed, "answered": answered}}
    server = [{"model": "classifier", "requests": counted}, {"model": "softmax", "requests": 9}]
    phase = {"name": "steady", "protocols": protocols, "server": server}
    line = of_others(phase, "classifier")
    assert line.startswith(f"phase steady: the server counted {counted} answers, this run sent {answered}") == told
    assert bool(line) == told
    assert of_others({**phase, "server": []}, "classifier") == "", "nobody counts at a null server"


def test_the_time_in_another_clients_model_is_not_ours() -> None:
    def row(model: str, requests: int) -> dict:
        parts = {f"{part}_ms": 1.0 for part in ("compute_input", "compute", "compute_output")}
        return {"model": model, "requests": requests, "total_ms": 10.0, "queue_ms": 2.0, **parts}

    server = [row("classifier", 100), row("backbone", 98), row("another", 7)]
    phase = {"protocols": {"gRPC": {"answered": 100, "mean_ms": 12.0}}, "server": server}
    assert time_shares(phase, "classifier") == {
        "backbone: queue": 2.0,
        "backbone: compute": 3.0,
        "rest of the server": 5.0,
        "outside the server": 2.0,
    }

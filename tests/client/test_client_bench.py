"""``python -m client bench``: closed and open loop; wrong usage of all commands."""

import asyncio
import csv
import itertools
import json
import re
import socket
import time
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
from commands_fakes import CAT, server_status

from client import ConnectionFailedError, InvalidImageError, QueueFullError, ServerStatus
from client.commands import bench, main
from client.testing import AsyncFakeTransport


def measured(*arguments: str, status: int = 0) -> int:
    return main(["bench", "a.png", "--seconds", "0.4", "--warm-up", "0.05", *arguments])


def test_bench_closed_loop(
    async_served: AsyncFakeTransport, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reply(request: Any) -> Any:
        await bench.asyncio.sleep(0.05)
        return CAT

    statuses = iter([server_status(10), server_status(30)])
    sent = []

    async def status(timeout: float) -> ServerStatus:
        sent.append(len(async_served.requests))
        return next(statuses)

    async_served.reply = reply
    monkeypatch.setattr(async_served, "status", status)
    assert measured("--concurrency", "4", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["load"] == {"concurrency": 4}
    assert async_served.most_in_flight == 4
    assert 0 < report["answered"] <= 36
    assert 0 < sent[0] == sent[1] - report["answered"]  # the server's times, as ours, are those after the warm-up
    assert report["errors"] == {}
    assert 50 <= report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert report["images_per_s"] == pytest.approx(report["answered"] / report["seconds"], rel=0.01)
    step = {"queue": 20.0, "compute_input": 0.0, "compute": 30.0, "compute_output": 0.0}
    assert report["server_ms"] == {"backbone": step}
    statuses = iter([server_status(10), server_status(30)])
    assert measured("--concurrency", "4") == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["requests in flight", "4"] in rows
    assert [words for words, *_ in filter(None, rows)][1:] == [
        "seconds",
        "answered",
        "images a second",
        *(f"latency {part}, ms" for part in ("p50", "p90", "p99", "max")),
        "sent late at most, ms",
        *(f"server: backbone {step}, ms" for step in ("queue", "input", "compute", "output")),
    ]


def test_a_models_name_is_shown_as_it_is(
    async_served: AsyncFakeTransport, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter([server_status(10, name="net[v2]"), server_status(30, name="net[v2]")])

    async def status(timeout: float) -> ServerStatus:
        return next(statuses)

    monkeypatch.setattr(async_served, "status", status)
    assert measured() == 0
    assert "server: net[v2] queue, ms" in capsys.readouterr().out


def test_bench_open_loop_counts_from_when_each_was_due(
    async_served: AsyncFakeTransport, capsys: pytest.CaptureFixture
) -> None:
    """This program stalls once for 0.3 s, which counts in the latency of every image that was due meanwhile."""
    stalls = iter([0.3])

    async def reply(request: Any) -> Any:
        if len(async_served.requests) == 40:
            time.sleep(next(stalls, 0))
        return CAT

    async_served.reply = reply
    assert measured("--rate", "200", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["load"] == {"rate": 200.0}
    assert report["sent_late_ms"] > 200
    assert report["latency_ms"]["max"] >= 250
    assert report["latency_ms"]["p90"] > 100  # about 60 of 80 were due meanwhile


@pytest.mark.parametrize("load", [["--concurrency", "2"], ["--rate", "100"]])
def test_bench_sends_the_images_in_turn(async_served: AsyncFakeTransport, load: list[str]) -> None:
    Path("b.png").write_bytes(b"b")
    assert main(["bench", "a.png", "b.png", "--seconds", "0.3", "--warm-up", "0.05", "--top", "3", *load]) == 0
    images = [request.image for request in async_served.requests]
    assert len(images) > 10
    assert abs(images.count(b"a") - images.count(b"b")) <= 2  # one of the warm-up, one of the measurement
    assert {request.top for request in async_served.requests} == {3}


def test_bench_arrivals_are_poisson_and_the_same_at_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[float]] = []

    async def send(classifier: Any, named: Any, top: int, due: float, result: Any) -> None:
        runs[-1].append(due)

    async def sleep(seconds: float) -> None:
        pass

    monkeypatch.setattr(bench, "_send", send)
    monkeypatch.setattr(bench, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(bench.asyncio, "sleep", sleep)
    for _ in range(2):
        runs.append([])
        result = asyncio.run(bench.open_loop(None, [("a.png", b"a")], 1, 50.0, 40.0))  # type: ignore[arg-type]
        assert result.elapsed == 40.0  # not until the last one: ten in ten seconds are one a second
    assert runs[0] == runs[1]
    gaps = [after - before for before, after in itertools.pairwise(runs[0])]
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert stdev(gaps) == pytest.approx(1 / 50, rel=0.1)  # of a Poisson process as large as the mean


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 1, 1, 1)), (2, (1, 2, 2, 2)), (10, (5, 9, 10, 10)), (100, (50, 90, 99, 100)), (201, (101, 181, 199, 201))],
)
def test_percentiles_are_nearest_ranks(count: int, expected: tuple[int, ...]) -> None:
    found = bench._percentiles([rank / 1000 for rank in range(count, 0, -1)])
    assert found == dict(zip(("p50", "p90", "p99", "max"), expected, strict=True))


def test_bench_errors(async_served: AsyncFakeTransport, capsys: pytest.CaptureFixture) -> None:
    async_served.reply = QueueFullError("full")
    assert measured("--concurrency", "2", "--csv") == 1
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert int(row["errors.QueueFullError"]) > 5
    assert (row["answered"], row["latency_ms.p50"]) == ("0", "")
    assert measured() == 1
    out, err = capsys.readouterr()
    assert "not answered: QueueFullError" in out
    assert re.fullmatch(r"\d+ not answered: full\n", err)
    ids = [request.id for request in async_served.requests]
    assert len(set(ids)) == len(ids)  # nothing is sent again


def test_bench_goes_on_after_one_failure_of_the_warm_up(async_served: AsyncFakeTransport) -> None:
    async_served.reply = lambda request: ConnectionFailedError("reset") if len(async_served.requests) == 1 else CAT
    assert measured() == 0


def test_bench_without_a_warm_up_counts_all(async_served: AsyncFakeTransport, capsys: pytest.CaptureFixture) -> None:
    for load in (["--concurrency", "2"], ["--rate", "100"]):
        async_served.requests.clear()
        assert measured("--warm-up", "0", "--json", *load) == 0
        assert json.loads(capsys.readouterr().out)["answered"] == len(async_served.requests) > 0


def test_bench_of_no_image_is_a_failure(async_served: AsyncFakeTransport, capsys: pytest.CaptureFixture) -> None:
    """The rate is so low that no image is due."""
    assert measured("--rate", "0.001", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["answered"], report["images_per_s"], report["errors"]) == (0, 0.0, {})


def test_bench_names_a_picture_that_is_none(async_served: AsyncFakeTransport, capsys: pytest.CaptureFixture) -> None:
    async_served.reply = lambda request: InvalidImageError("no JPEG")
    assert measured() == 1
    assert re.fullmatch(r"\d+ not answered: a\.png: no JPEG\n", capsys.readouterr().err)


@pytest.mark.parametrize("load", [["--json"], ["--rate", "100"]])
def test_bench_without_a_server_ends_after_the_warm_up(
    tmp_path: Path, load: list[str], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["bench", str(tmp_path / "a.png"), "--url", url, "--seconds", "60", "--warm-up", "0.2", *load]
        started = time.monotonic()
        assert main(arguments) == 1
        assert time.monotonic() - started < 20
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"the server cannot be reached \(.*\): start it, .* \[classifier at grpc://{url}\]\n", err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "no.png"], "No such file"),
        (["bench", "*.tiff"], "matches no file"),
        (["bench", "a.png", "--rate", "x"], "more than 0"),
        (["bench", "a.png", "--seconds", "1e12"], "more than 0 and at most 1000000"),
        (["bench", "a.png", "--warm-up", "nan"], "0 or more and at most 1000000"),
        (["bench", "a.png", "--rate", "1", "--concurrency", "2"], "not allowed with"),
        (["bench", "a.png", "--tls-certificate", "c.pem"], "both or neither"),
        (["classify", "a.png", "--top", "x"], "1 or more"),
    ],
)
def test_wrong_usage(
    async_served: AsyncFakeTransport, arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert words in capsys.readouterr().err

"""The server that does nothing answers as the client wants it, over both protocols."""

import itertools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from client import Classifier
from loadtest import null_check
from loadtest.__main__ import null
from loadtest.null_check import null_server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_null_server_answers(protocol: str) -> None:
    with null_server() as (http, grpc), Classifier(http if protocol == "http" else grpc, protocol) as classifier:
        answers = [classifier.classify(b"picture", top=3) for _ in range(2)]
    assert [[(p.label, p.index, p.probability) for p in answer] for answer in answers] == 2 * [[("null", 0, 1.0)]]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that runs instead of the null server; it has a second to start."""
    script = tmp_path / "python"
    script.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(null_check, "PATIENCE", 1.0)
    return script


@pytest.mark.parametrize("does", ["exit 3", "exec sleep 60"])
def test_a_null_server_that_does_not_start(python: Path, does: str) -> None:
    python.write_text(f"#!/bin/sh\n{does}\n")
    with pytest.raises(RuntimeError, match=r"loadtest\.null_server does not start: .* --null-check off"):
        null_check.null_rate("http", 1)


def test_a_null_server_that_does_not_end_is_killed(python: Path) -> None:
    python.write_text('#!/bin/sh\necho $$ >"$0.pid"\necho \'{"http": 1, "grpc": 2}\'\nexec sleep 60\n')
    with null_server() as addresses:
        assert addresses == ("127.0.0.1:1", "127.0.0.1:2")
    process = Path("/proc", Path(f"{python}.pid").read_text().strip())
    assert not process.exists()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """run(HTTP=250.0) fakes a run that measures these answers/s, fewer in warm-up; returns the run's arguments."""

    def build(**rates: float) -> list[str]:
        words: list[str] = []
        phases = [{name: {"answered_per_s": rate * share} for name, rate in rates.items()} for share in (0.1, 1)]
        result = {"phases": [{"protocols": rows} for rows in phases]}
        monkeypatch.setattr(null_check, "run_load", lambda given: words.extend(given) or result)
        return words

    monkeypatch.setattr(null_check, "null_server", lambda: nullcontext(("box:1", "box:2")))
    return build


@pytest.mark.parametrize(
    ("protocol", "processes", "users", "rates", "rate"),
    [
        ("http", 1, "8", {"HTTP": 250.0}, 250.0),
        ("grpc", 3, "24", {"gRPC": 250.0}, 250.0),
        ("both", 2, "32", {"HTTP": 250.0, "gRPC": 150.0}, 300.0),  # a rate is halved between them
    ],
)
def test_what_can_be_sent(
    run: Callable[..., list[str]], protocol: str, processes: int, users: str, rates: dict[str, float], rate: float
) -> None:
    words = run(**rates)
    assert null_check.null_rate(protocol, processes) == rate
    pairs = set(itertools.pairwise(words))
    assert {("--users", users), ("--protocol", protocol), ("--host", "box:1"), ("--grpc-host", "box:2")} <= pairs
    assert (("--processes", str(processes)) in pairs) == (processes > 1)


def test_half_of_what_can_be_sent_is_trusted(
    run: Callable[..., list[str]], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(HTTP=251.0)
    assert null(["--protocol", "http"]) == 0
    assert capsys.readouterr().out == f"251 requests/s to {null_check.NULL_SERVER}; up to 125/s can be trusted\n"
    run(HTTP=0.0)
    monkeypatch.setattr(null_check, "warnings", lambda result: ["refused"])
    with pytest.raises(RuntimeError, match=r"gave no answer \(\['refused'\]\): --null-check off leaves this check out"):
        null(["--protocol", "http"])

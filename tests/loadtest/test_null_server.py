"""The server that does nothing answers as the client wants it, over both protocols."""

import sys
from pathlib import Path

import pytest

from client import Classifier
from loadtest import null_check
from loadtest.null_check import null_server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_null_server_answers(protocol: str) -> None:
    with null_server() as (http, grpc), Classifier(http if protocol == "http" else grpc, protocol) as classifier:
        answers = [classifier.classify(b"picture", top=3) for _ in range(2)]
    assert [[(p.label, p.index, p.probability) for p in answer] for answer in answers] == 2 * [[("null", 0, 1.0)]]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What runs in the null server's place; it is given a second."""
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

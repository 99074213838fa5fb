"""``python -m client status``."""

import csv
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from commands_fakes import server_status

from client import (
    ConnectionFailedError,
    _session,
)
from client.commands import main
from client.testing import FakeTransport


def table_rows(out: str) -> list[list[str]]:
    """The cells under each heading; headings are right-aligned, but for the first, which is left-aligned."""
    header, *lines, note = out.rstrip().splitlines()[1:]
    assert note == "total to output: means in ms; an ensemble (classifier) counts failures twice"
    ends = [header.index("ver"), *(word.end() for word in list(re.finditer(r"\S+", header))[1:])]
    starts = [0, *ends[:-1]]
    return [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in lines]


def test_status(served: FakeTransport, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    away = FakeTransport(url="grpc://away:1")

    def refuse(timeout: float) -> Any:
        raise ConnectionFailedError("refused")

    monkeypatch.setattr(away, "status", refuse)
    monkeypatch.setattr(served, "status", lambda timeout: server_status())
    assert main(["status"]) == 0
    out, err = capsys.readouterr()
    assert table_rows(out) == [
        ["backbone", "1", "10", "5", "0", "", "20.00", "", "30.00", ""],
        ["classifier", "1", "0", "0", "0", "50.00", "", "", "", ""],
    ]
    assert "2.51.0  ready" in out
    long = [replace(model, name="classifier_explained", inferences=10**6) for model in server_status().models]
    monkeypatch.setattr(served, "status", lambda timeout: replace(server_status(), models=long))
    assert main(["status"]) == 0
    wide = capsys.readouterr().out
    assert "classifier_explained" in wide
    assert max(map(len, wide.splitlines())) <= 80
    monkeypatch.setattr(served, "status", lambda timeout: server_status())
    assert err == ""
    monkeypatch.setattr(_session, "open_transports", lambda *arguments: [served, away])
    assert main(["status"]) == 1
    assert "grpc://away:1: refused" in capsys.readouterr().err
    assert main(["status", "--json"]) == 1
    one, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(one) == ["server", "name", "version", "ready", "models"]
    backbone = {"model": "backbone", "version": "1", "images": 10, "batches": 5, "failed": 0, "requests": 0}
    times = {"total": None, "queue": 20.0, "compute_input": None, "compute": 30.0, "compute_output": None}
    ms = {f"{name}_ms": value and pytest.approx(value) for name, value in {**times, "failed": None}.items()}
    assert one["models"][0] == backbone | ms
    assert other == {
        "server": "grpc://away:1",
        "ready": False,
        "error": {"type": "ConnectionFailedError", "message": "refused"},
    }
    assert main(["status", "--csv"]) == 1
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["queue_ms"] for row in rows] == ["20.00", ""]
    assert set(rows[0]) - {"server"} <= one["models"][0].keys(), "the same words in both"
    monkeypatch.setattr(_session, "open_transports", lambda *arguments: [served])
    monkeypatch.setattr(served, "status", lambda timeout: server_status(ready=False))
    assert main(["status"]) == 1
    assert "NOT READY" in capsys.readouterr().out


@pytest.mark.parametrize(("columns", "name"), [("60", "classifier_explained"), ("80", "replknet_31b_bf16_explained")])
def test_status_in_a_narrow_terminal_cuts_nothing_off(
    columns: str, name: str, served: FakeTransport, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [replace(model, name=name) for model in server_status().models]
    monkeypatch.setattr(served, "status", lambda timeout: replace(server_status(), models=models))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert [word for word in ("20.00", "30.00", "50.00", "compute", name[-6:]) if word not in out] == []

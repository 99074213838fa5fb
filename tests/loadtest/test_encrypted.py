"""Load over TLS, with this client's certificate, and the server's statistics over either protocol."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, start
from stub_grpc import GrpcStub

from loadtest.capacity_command import capacity

LOAD = ["--users", "2", "--seconds", "1", "--warm-up", "0", "--sizes", "64:2", "--null-check", "off"]
Loadtest = Callable[..., subprocess.CompletedProcess]


class CountingStub(GrpcStub):
    @property
    def statistics(self) -> dict[str, Any]:
        """The statistics of a model that takes 2 ms a request."""
        count = len(self.requests)
        stats = {"success": {"count": count, "ns": 2_000_000 * count}}
        return {"model_stats": [{"name": "classifier", "version": "1", "inference_stats": stats}]}

    @statistics.setter
    def statistics(self, value: dict[str, Any]) -> None: ...


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def hosts(authority: Authority) -> Iterator[list[str]]:
    """The addresses of two servers, both of which want the client's certificate."""
    opened = [contextlib.contextmanager(start)(kind, authority, True, CountingStub()) for kind in ("http", "grpc")]
    with opened[0] as (_, http), opened[1] as (_, grpc):
        yield ["--host", http, "--grpc-host", grpc]


@pytest.fixture
def files(authority: Authority) -> list[str]:
    return [
        *("--tls-root", str(authority.root)),
        *("--tls-certificate", str(authority.certificate), "--tls-key", str(authority.key)),
    ]


def test_both_protocols(loadtest: Loadtest, hosts: list[str], files: list[str], tmp_path: Path) -> None:
    saved = tmp_path / "results.json"
    done = loadtest(*LOAD, *hosts, *files, "--results", str(saved))
    assert done.returncode == 0, done.stderr
    rows = json.loads(saved.read_text())["phases"][-1]["protocols"]
    assert set(rows) == {"gRPC", "HTTP"}
    assert all(row["answered"] > 10 and row["failed"] == 0 for row in rows.values())
    assert loadtest(*LOAD, *hosts, *files[:2]).returncode == 1  # who does not say who it is is turned away


def test_the_statistics_of_a_server_that_speaks_grpc_alone(
    loadtest: Loadtest, hosts: list[str], files: list[str], tmp_path: Path
) -> None:
    saved = tmp_path / "results.json"
    done = loadtest(*LOAD, "--protocol", "grpc", *hosts[2:], *files, "--results", str(saved))
    assert done.returncode == 0, done.stderr
    result = json.loads(saved.read_text())
    assert result["host"] == hosts[3]  # the report names it
    (phase,) = result["phases"]
    (row,) = phase["server"]
    assert (row["model"], row["version"], row["failed"], row["batch"]) == ("classifier", "1", 0, None)
    assert row["requests"] >= phase["protocols"]["gRPC"]["answered"] > 10
    assert row["total_ms"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    "options", [["--tls-root", "none.pem"], ["--tls-certificate", "me.pem"], ["--tls-key", "me.key"]]
)
def test_files_that_are_none(loadtest: Loadtest, options: list[str]) -> None:
    done = loadtest(*LOAD, *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_key_without_its_certificate_is_refused_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "slo.toml").write_text("[latency_ms]\np99 = 300\n")
    with pytest.raises(ValueError, match=r"--tls-key me\.key belongs to --tls-certificate"):
        capacity(["--slo", str(tmp_path / "slo.toml"), "--tls-key", "me.key"])

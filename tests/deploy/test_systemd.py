"""deploy/systemd/widefield.service: systemd takes it, and the server takes what it says."""

import re
import subprocess
import sys

import pytest
from manifests import DEPLOY

from benchmarks.programs import find_program, missing
from server.__main__ import parse_arguments
from server.process import SPARE_SECONDS

UNIT = DEPLOY / "systemd" / "widefield.service"


@pytest.mark.skipif(find_program("systemd-analyze") is None, reason=missing("systemd-analyze"))
def test_systemd_takes_it(tmp_path):
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/widefield/.venv/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("RestartSec=10", "RestartSecs=10"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert "RestartSecs" in done.stderr


def test_the_server_takes_its_options():
    (options,) = re.findall(r"^ExecStart=\S+ (.*)$", UNIT.read_text(), re.MULTILINE)
    done = subprocess.run([sys.executable, *options.split()], capture_output=True, text=True, check=False)
    assert "model repository /var/lib/widefield/model_repository does not exist" in done.stderr


def test_systemd_waits_for_the_start_and_for_the_drain():
    """With shorter limits systemd would kill a server during its start or its drain."""
    seconds = dict(re.findall(r"^Timeout(Start|Stop)Sec=(\d+)$", UNIT.read_text(), re.MULTILINE))
    defaults = parse_arguments([])
    assert int(seconds["Start"]) > defaults.start_timeout
    assert int(seconds["Stop"]) > defaults.drain_seconds + 2 * SPARE_SECONDS


def test_memory_has_a_limit_and_no_swap():
    """With swap the server slows the machine down instead of ending; without `continue` systemd would end it whole."""
    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"(Memory|OOM)\w+=", line))
    assert settings == {"MemoryMax": "6G", "MemorySwapMax": "0", "OOMPolicy": "continue"}


def test_the_servers_of_the_page_listen_where_its_haproxy_asks():
    page = " ".join((DEPLOY.parent / "docs" / "operations.md").read_text().split())
    options = parse_arguments(re.search(r"python -m server (--host .*?) # in the systemd unit", page)[1].split())
    http, grpc = (f"{options.host}:{port}" for port in (options.http_port, options.grpc_port))
    assert f"WIDEFIELD_HTTP_1={http} WIDEFIELD_GRPC_1={grpc}" in page
    assert f"targets {options.metrics_host}:{options.metrics_port} and" in page

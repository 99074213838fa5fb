"""The HAProxy lines of docs/operations.md in front of the real server: what would end it is refused, pictures pass."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.fuzz.http_message import INFER, binary, dump, inference, message
from benchmarks.fuzz.images import good
from benchmarks.fuzz.lethal import INPUTS
from benchmarks.fuzz.wire import send_http
from benchmarks.programs import find_program, missing
from server.preflight import free_ports

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(find_program("haproxy") is None, reason=missing("haproxy")),
]
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
CONFIG = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  option http-server-close
frontend hostile
  bind 127.0.0.1:{port}
{lines}
  default_backend servers
backend servers
  server one {server}
"""


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    (port,) = free_ports(["127.0.0.1"])
    lines = re.findall(r"^ +(http-request \S.*)$", OPERATIONS, re.MULTILINE)
    assert len(lines) == 4
    config = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    config.write_text(CONFIG.format(port=port, server=server.http_url, lines="\n".join(f"  {line}" for line in lines)))
    with subprocess.Popen([find_program("haproxy"), "-db", "-f", str(config)]) as process:
        address, end = f"127.0.0.1:{port}", time.monotonic() + 20
        while True:
            try:
                if send_http(address, message(b"", method="GET", path="/v2/health/live")) == "HTTP 200":
                    break
            except OSError:
                assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        yield address
        process.terminate()


@pytest.mark.parametrize("name", [name for name in INPUTS if not name.startswith("a body")])
def test_what_ends_tritonserver_is_refused(server, proxy, name):
    assert re.match("HTTP 4", send_http(proxy, INPUTS[name]))
    assert server.restarts == 0


def test_a_body_too_large_is_refused_before_it_is_sent(proxy):
    head = message(b"", {"Content-Length": "200000000", "Inference-Header-Content-Length": "100"})
    assert send_http(proxy, head) == "HTTP 413"


def test_pictures_and_questions_pass(proxy):
    assert send_http(proxy, binary(*inference(good()["JPEG large"]))) == "HTTP 200"
    assert send_http(proxy, message(b"", method="GET", path="/v2/models/classifier/stats")) == "HTTP 200"
    assert send_http(proxy, message(dump({}), path=INFER)) == "HTTP 400"

"""deploy/haproxy/haproxy.cfg: HAProxy takes it, and the picture in its check is one. What it does: tests/server."""

import io
import json
import os
import re
import subprocess

import pytest
from manifests import DEPLOY
from PIL import Image

from benchmarks.programs import find_program, missing
from benchmarks.resilience.balancer import environment

CONFIG = DEPLOY / "haproxy" / "haproxy.cfg"
ADDRESSES = [f"192.0.2.{number}:80" for number in range(1, 5)]


def check(addresses, without="", **more):
    program = find_program("haproxy")
    if program is None:
        pytest.skip(missing("haproxy"))
    variables = environment(addresses, addresses) | more
    return subprocess.run(
        [program, "-c", "-f", str(CONFIG)],
        env={name: value for name, value in {**os.environ, **variables}.items() if name != without},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_haproxy_takes_it(count):
    result = check(ADDRESSES[:count])
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr


@pytest.mark.parametrize("without", ["WIDEFIELD_GRPC_2", "WIDEFIELD_HTTP_2", "WIDEFIELD_GRPC_4", "WIDEFIELD_HTTP_1"])
def test_a_server_with_one_address_of_two_is_refused(without):
    result = check(ADDRESSES, without)
    assert result.returncode != 0
    assert f"{without} is ''" in result.stderr or f"{without} ''" in result.stderr
    assert "give host:port for both" in result.stderr


def test_without_a_server_it_is_refused():
    result = check([])
    assert result.returncode != 0
    assert "WIDEFIELD_HTTP_1 is '' and WIDEFIELD_GRPC_1 '': give host:port for both" in result.stderr


OPTIONAL = ["BIND_HTTP", "BIND_GRPC", "BIND_METRICS", "SOCKET"]
OPTIONAL += [f"{protocol}_{number}" for protocol in ("HTTP", "GRPC") for number in (2, 3, 4)]


def test_an_empty_variable_is_as_none():
    result = check(ADDRESSES[:1], **{f"WIDEFIELD_{name}": "" for name in OPTIONAL})
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"WIDEFIELD_TLS_CERT": ""}, "WIDEFIELD_TLS_CERT"),
        ({"WIDEFIELD_TLS_CLIENT_CA": "clients.crt"}, "WIDEFIELD_TLS_CERT"),
        ({"WIDEFIELD_TLS_CERT": "server.crt", "WIDEFIELD_TLS_CLIENT_CA": ""}, "WIDEFIELD_TLS_CLIENT_CA"),
    ],
)
def test_an_empty_variable_takes_no_tls_away(given, named):
    result = check(ADDRESSES[:1], **given)
    assert result.returncode != 0
    assert f"'{named} is empty: name a file, or unset it" in result.stderr


def test_each_server_has_its_own_addresses_and_one_check():
    found = re.findall(r'^  server s(\d) "\$\{WIDEFIELD_(\w+)\}"(.*)$', CONFIG.read_text(), re.MULTILINE)
    numbers = ("1", "2", "3", "4")
    expected = [(number, f"HTTP_{number}", "") for number in numbers]
    assert found == expected + [(number, f"GRPC_{number}", f" proto h2 track http/s{number}") for number in numbers]


def test_the_check_sends_a_picture():
    (body,) = re.findall(r"body '(.*)'", CONFIG.read_text())
    request = json.loads(body)
    (image,) = request["inputs"]
    data = image["data"][0].encode("ascii")
    assert (image["name"], image["datatype"], image["shape"]) == ("image", "BYTES", [1, 1])
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("BMP", (1, 1))
    seconds = int(re.search(r"timeout check (\d+)s", CONFIG.read_text()).group(1))
    assert request["parameters"]["timeout"] < seconds * 1e6  # busy is said before the check ends

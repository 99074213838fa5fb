"""deploy/proxy/nginx.conf before the real server: certificates, closed paths, and clients that never come to an end."""

import contextlib
import http.client
import socket
import ssl
import time

import numpy as np
import psutil
import pytest
import tritonclient.http as triton_http
from nginx_proxy import PATIENCE, context_of

from benchmarks.programs import find_program, missing
from benchmarks.slow_clients import SlowClient
from server.management import MANAGEMENT_HEADER

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(find_program("nginx") is None, reason=missing("nginx")),
]
SLOW = 60  # clients of each kind
SLOW_ADDRESS = ("127.0.0.2", 0)
INFER = b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: x\r\n"
BODY = INFER + b"Inference-Header-Content-Length: 100\r\nContent-Length: 20000000\r\n\r\n{"


def ask(proxy, context, method="GET", path="/v2/health/ready", headers=None, source=None):
    """Status and body."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", proxy.port, timeout=10, source_address=source, context=context
    )
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_certificates(proxy, trusted, authority, stranger):
    assert ask(proxy, trusted)[0] == 200
    status, body = ask(proxy, context_of(authority.ca))
    assert (status, "No required SSL certificate" in body) == (400, True)
    status, body = ask(proxy, context_of(authority.ca, stranger.issue("client")))
    assert (status, "SSL certificate error" in body) == (400, True)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(proxy, context_of(stranger.ca, authority.issue("client")))
    plain = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    plain.request("GET", "/v2/health/ready")
    response = plain.getresponse()
    assert (response.status, "plain HTTP request was sent to HTTPS port" in response.read().decode()) == (400, True)
    plain.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_protocols_are_refused(proxy, trusted, version):
    trusted.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    trusted.maximum_version = version
    trusted.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):  # the proxy's word, not the client's
        ask(proxy, trusted)


def test_management_is_closed_with_the_right_token_too(proxy, trusted, management_token):
    for method, path in (
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/backbone/load"),
        ("GET", "/v2/models/classifier/config"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/logging"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/../repository/index"),
        ("POST", "/v2/models/x%2f..%2f..%2frepository/index"),
    ):
        assert ask(proxy, trusted, method, path, {MANAGEMENT_HEADER: management_token})[0] == 404, path
    for path in (
        "/v2",
        "/v2/models/classifier",
        "/v2/models/classifier/versions/1/ready",
        "/v2/models/classifier/stats",
    ):
        assert ask(proxy, trusted, path=path)[0] == 200, path


def classify(proxy, context, image):
    with triton_http.InferenceServerClient(
        proxy.url, ssl=True, ssl_context_factory=lambda: context, network_timeout=10
    ) as client:
        tensor = triton_http.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
        return client.infer("classifier", [tensor]).as_numpy("probabilities")


def test_images_through_the_proxy(proxy, trusted, encode):
    assert classify(proxy, trusted, encode("lime")).argmax() == 1
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    assert classify(proxy, trusted, encode(noise)).shape == (1, 3)  # 6 MB: more than nginx keeps in memory


@contextlib.contextmanager
def slow_clients(proxy, kinds):
    """`kinds`: count, TLS context (None: no handshake), said at once, said each time. From an address of their own."""
    with contextlib.ExitStack() as stack:
        clients = []
        for count, context, first, piece in kinds:
            for _ in range(count):
                raw = socket.create_connection(("127.0.0.1", proxy.port), 10, source_address=SLOW_ADDRESS)
                connection = raw if context is None else context.wrap_socket(raw, server_hostname="127.0.0.1")
                clients.append(SlowClient(stack.enter_context(connection), first, [piece]))
        yield clients


@pytest.fixture
def tritonserver(secured_server):
    return psutil.Process(secured_server._process.guard.pid).children()[0]


def test_clients_that_never_end_are_cut_off_and_hurt_nobody(proxy, trusted, tritonserver, encode):
    """Silent before the handshake; a header, a byte at a time; a body that stops. tritonserver sees none of them."""
    image = encode("lime")
    classify(proxy, trusted, image)
    handles, memory = tritonserver.num_fds(), tritonserver.memory_info().rss
    kinds = [(SLOW, None, b"", b""), (SLOW, trusted, INFER + b"X: ", b"x"), (SLOW, trusted, BODY, b"")]
    with slow_clients(proxy, kinds) as slow:
        taken = []
        until = time.monotonic() + 4 * PATIENCE
        while time.monotonic() < until and any(each.closed_after is None for each in slow):
            for each in slow:
                each.go_on()
            begun = time.monotonic()
            assert classify(proxy, trusted, image).argmax() == 1
            taken.append(time.monotonic() - begun)
            time.sleep(0.1)
        assert all(each.closed_after is not None for each in slow)
        assert max(each.closed_after for each in slow) < 4 * PATIENCE
        assert min(each.closed_after for each in slow) > PATIENCE / 2  # cut off for being slow, not refused
        assert max(taken) < 2.0
        assert tritonserver.num_fds() <= handles + 5
        assert tritonserver.memory_info().rss < memory + 50e6


def test_a_body_a_byte_at_a_time_stays_at_the_proxy(proxy, trusted, tritonserver, encode):
    """It is no pause, so it may go on: but only a hundred from one address, and tritonserver sees none."""
    handles, memory = tritonserver.num_fds(), tritonserver.memory_info().rss
    with slow_clients(proxy, [(110, trusted, BODY, b" ")]) as slow:
        until = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < until:
            for each in slow:
                each.go_on()
            assert classify(proxy, trusted, encode("lime")).argmax() == 1  # another address
            time.sleep(0.2)
        refused = [each for each in slow if each.heard.startswith(b"HTTP/1.1 429 ")]
        assert len(refused) == 10
        assert {each for each in slow if each.closed_after is not None} == set(refused)
        assert ask(proxy, trusted, source=SLOW_ADDRESS)[0] == 429
        assert tritonserver.num_fds() <= handles + 5
        assert tritonserver.memory_info().rss < memory + 50e6
    until = time.monotonic() + 10
    while ask(proxy, trusted, source=SLOW_ADDRESS)[0] != 200:  # they have gone, and the address may ask again
        assert time.monotonic() < until
        time.sleep(0.1)

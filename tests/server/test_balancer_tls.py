"""deploy/haproxy/haproxy.cfg with certificates: who gets in, what management gets, clients that never end."""

import contextlib
import http.client
import select
import socket
import ssl
import time

import grpc
import numpy as np
import psutil
import pytest
from certificates import context_of, ready, refused
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.programs import find_program, missing
from benchmarks.resilience.balancer import CONFIG, balancer
from benchmarks.slow_clients import SlowClient
from client import TLS, Classifier

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(find_program("haproxy") is None, reason=missing("haproxy")),
]
PATIENCE = 3  # seconds, in the place of the configuration's
LIMIT = 500  # connections of one address
SLOW = 60  # clients of each kind
SLOW_ADDRESS = ("127.0.0.2", 0)
INFER = b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: x\r\n"
BODY = INFER + b"Inference-Header-Content-Length: 100\r\nContent-Length: 20000000\r\n\r\n{"


def impatient(folder):
    """The file of deploy/ with the tests' patience for whoever is slow to send."""
    text = CONFIG.read_text()
    for old, new, count in (
        ("timeout client 60s", f"timeout client {PATIENCE}s", 1),
        ("timeout http-request 10s", f"timeout http-request {PATIENCE}s", 1),
        ("wait-for-body time 10s", f"wait-for-body time {PATIENCE}s", 2),
    ):
        assert text.count(old) == count, old
        text = text.replace(old, new)
    (folder / "haproxy.cfg").write_text(text)
    return folder / "haproxy.cfg"


@pytest.fixture(scope="module")
def proxy(server, managed_server, authority, tmp_path_factory):
    """HTTP to a server whose management a token opens, gRPC to another."""
    folder = tmp_path_factory.mktemp("haproxy")
    variables = {
        "WIDEFIELD_TLS_CERT": str(authority.issue("proxy")[0]),
        "WIDEFIELD_TLS_CLIENT_CA": str(authority.ca),
    }
    with balancer(
        [managed_server.http_url], [server.grpc_url], folder / "log", config=impatient(folder), **variables
    ) as front:
        yield front


@pytest.fixture(scope="module")
def managed_server(repository, tokens):
    from server import TritonServer

    management, memory = tokens.values()
    with TritonServer(
        repository, management_token=management, shared_memory_token=memory, probe_interval=3600
    ) as running:
        yield running


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("client")


@pytest.fixture
def trusted(authority, pair):
    """A client's TLS context that the proxy takes."""
    return context_of(authority.ca, pair)


@pytest.fixture
def tritonserver(managed_server):
    return psutil.Process(managed_server._process.guard.pid).children()[0]


def ask(proxy, context, method="GET", path="/v2/health/ready", headers=None, source=None):
    """Status and body."""
    connection = http.client.HTTPSConnection(proxy.http, timeout=10, source_address=source, context=context)
    with contextlib.closing(connection):
        connection.request(method, path, b"{}" if method == "POST" else None, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_certificates_over_http(proxy, trusted, authority, stranger):
    assert ask(proxy, trusted)[0] == 200
    for context in (context_of(authority.ca), context_of(authority.ca, stranger.issue("client"))):
        with pytest.raises(ssl.SSLError, match="ALERT"):
            ask(proxy, context)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(proxy, context_of(stranger.ca, authority.issue("client")))
    plain = http.client.HTTPConnection(proxy.http, timeout=10)
    with contextlib.closing(plain):
        plain.request("GET", "/v2/health/ready")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            plain.getresponse()


def test_certificates_over_grpc(proxy, authority, stranger, pair):
    assert ready(proxy.grpc, authority.ca, pair)
    assert refused(proxy.grpc, authority.ca)
    assert refused(proxy.grpc, authority.ca, stranger.issue("client"))
    assert refused(proxy.grpc, stranger.ca, pair)


def test_without_client_certificates_who_trusts_the_server_may_ask(server, authority, stranger, tmp_path):
    certificate = str(authority.issue("proxy")[0])
    with balancer([server.http_url], [server.grpc_url], tmp_path / "log", WIDEFIELD_TLS_CERT=certificate) as front:
        assert ask(front, context_of(authority.ca))[0] == 200
        assert ready(front.grpc, authority.ca)
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(front, context_of(stranger.ca))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_protocols_are_refused(proxy, trusted, version, protocol):
    trusted.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    trusted.maximum_version = version
    trusted.set_ciphers("ALL:@SECLEVEL=0")
    host, port = getattr(proxy, protocol).split(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"),  # the proxy's word, not the client's
    ):
        trusted.wrap_socket(raw, server_hostname=host)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_images_through_the_proxy(proxy, authority, pair, encode, protocol):
    tls = TLS(authority.ca, *pair)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)  # 6 MB: more than a buffer
    with Classifier(getattr(proxy, protocol), protocol=protocol, tls=tls, retries=0) as classifier:
        assert classifier.classify(encode("lime"), top=1)[0].label == "green"
        assert len(classifier.classify(encode(noise), top=3)) == 3


def test_management_is_closed_with_the_right_token_too(proxy, server, managed_server, authority, trusted, pair, tokens):
    for path in ("/v2/models/classifier/config", "/v2/systemsharedmemory/status", "/v2/logging", "/v2/trace/setting"):
        assert ask(proxy, trusted, path=path, headers=tokens)[0] == 403, path
    for path in ("/v2/repository/index", "/v2/repository/models/backbone/load", "/v2/models/../repository/index"):
        assert ask(proxy, trusted, "POST", path, tokens)[0] == 404, path
    direct = http.client.HTTPConnection(managed_server.http_url, timeout=10)
    with contextlib.closing(direct):
        for path in ("/v2/logging", "/v2/systemsharedmemory/status"):
            direct.request("GET", path, headers=tokens)
            answer = direct.getresponse()
            assert (answer.status, len(answer.read()) > 0) == (200, True)  # they are the right ones
    for path in ("/v2", "/v2/models/classifier", "/v2/models/classifier/versions/1/ready"):
        assert ask(proxy, trusted, path=path)[0] == 200, path


def test_management_over_grpc_is_closed_with_the_right_token_too(managed_server, tokens, tmp_path):
    metadata = [(f"triton-grpc-protocol-{header}", token) for header, token in tokens.items()]
    requests = {
        "LogSettings": service_pb2.LogSettingsRequest(),
        "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    }
    with balancer([managed_server.http_url], [managed_server.grpc_url], tmp_path / "log") as front:
        for address, answered in ((managed_server.grpc_url, True), (front.grpc, False)):
            with grpc.insecure_channel(address) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for name, request in requests.items():
                    if answered:
                        getattr(stub, name)(request, metadata=metadata, timeout=10)
                        continue
                    with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
                        getattr(stub, name)(request, metadata=metadata, timeout=10)


@contextlib.contextmanager
def slow_clients(proxy, kinds):
    """`kinds`: count, TLS context (None: no handshake), said at once, said each time. From an address of their own."""
    host, port = proxy.http.split(":")
    with contextlib.ExitStack() as stack:
        clients = []
        for count, context, first, piece in kinds:
            for _ in range(count):
                raw = socket.create_connection((host, int(port)), 10, source_address=SLOW_ADDRESS)
                connection = raw if context is None else context.wrap_socket(raw, server_hostname=host)
                clients.append(SlowClient(stack.enter_context(connection), first, [piece]))
        yield clients


def test_clients_that_never_end_are_cut_off_and_hurt_nobody(proxy, trusted, pair, authority, tritonserver, encode):
    """Silent before the handshake; a header and a body, a byte at a time; a body that stops. tritonserver sees none.

    More than `maxconn` of each, which is what a server is sent at once; the last begin with more than others send.
    """
    image = encode("lime")
    kinds = [
        (SLOW, None, b"", b""),
        (SLOW, trusted, INFER + b"X: ", b"x"),
        (SLOW, trusted, BODY, b" "),
        (SLOW, trusted, BODY, b""),
        (SLOW, trusted, BODY + b" " * 2_000_000, b" "),
    ]
    with Classifier(proxy.http, protocol="http", tls=TLS(authority.ca, *pair), retries=0) as classifier:
        classifier.classify(image)
        handles, memory = tritonserver.num_fds(), tritonserver.memory_info().rss
        with slow_clients(proxy, kinds) as slow:
            until = time.monotonic() + 5 * PATIENCE
            while time.monotonic() < until and any(each.closed_after is None for each in slow):
                for each in slow:
                    each.go_on()
                assert classifier.classify(image, timeout=5.0)[0].label == "green"  # beside other tests
                time.sleep(0.1)
            assert all(each.closed_after is not None for each in slow)
            assert min(each.closed_after for each in slow) > PATIENCE / 2  # cut off for being slow, not refused
            assert tritonserver.num_fds() <= handles + 5
            assert tritonserver.memory_info().rss < memory + 50e6


def test_one_address_has_a_quarter_of_the_connections(proxy, trusted):
    host, port = proxy.http.split(":")
    with contextlib.ExitStack() as stack:
        many = [
            stack.enter_context(socket.create_connection((host, int(port)), 10, source_address=SLOW_ADDRESS))
            for _ in range(LIMIT + 20)
        ]
        ended, _, _ = select.select(many, [], [], PATIENCE / 2)
        assert ended  # before their time is over
        assert ask(proxy, trusted)[0] == 200  # another address
    until = time.monotonic() + PATIENCE
    while True:  # they have gone, and the address may ask again
        with contextlib.suppress(ConnectionError):
            assert ask(proxy, trusted, source=SLOW_ADDRESS)[0] == 200
            return
        assert time.monotonic() < until
        time.sleep(0.05)

"""The gRPC transport against a server that misbehaves on purpose."""

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from asking import CAT, ask
from stub_grpc import GrpcStub, serve
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import (
    TLS,
    ClassifierError,
    ConnectionBrokenError,
    ConnectionFailedError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ModelNotFoundError,
    ProtocolError,
    QueueFullError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from client._address import Address
from client._request import Request
from client._transport_grpc import GrpcTransport
from client._wire_grpc import channel_arguments, encode_request


@pytest.fixture
def stub() -> GrpcStub:
    return GrpcStub()


@pytest.fixture
def transport(stub: GrpcStub) -> Iterator[GrpcTransport]:
    server, port = serve(stub)
    transport = GrpcTransport(Address("127.0.0.1", port))
    yield transport
    transport.close()
    server.stop(0).wait()


def test_request_and_answer(stub: GrpcStub, transport: GrpcTransport) -> None:
    assert ask(transport, 3, 2.5, image=b"picture") == CAT
    (request,) = stub.requests
    assert (request.model_name, request.id) == ("m", "id-1")
    (image,) = request.inputs
    assert (image.name, image.datatype, list(image.shape)) == ("image", "BYTES", [1, 1])
    assert list(request.raw_input_contents) == [struct.pack("<I", 7) + b"picture"]
    (output,) = request.outputs
    assert output.name == "probabilities"
    assert output.parameters["classification"].int64_param == 3
    assert request.parameters["timeout"].int64_param == 312_500


@pytest.mark.parametrize("size", [1, 123, 124, 16_379, 16_380, 2_097_147, 2_097_148])
def test_the_image_is_the_message_s_field(size: int) -> None:
    """The hand-written length equals protobuf's, also around the sizes where it takes one byte more."""
    image = bytes(size)
    message = encode_request(Request("m", image, 5, 1.0, "id"))
    parsed = service_pb2.ModelInferRequest.FromString(message)
    assert list(parsed.raw_input_contents) == [struct.pack("<I", size) + image]
    assert parsed.ByteSize() == len(message)


def test_large_messages_both_ways(stub: GrpcStub, transport: GrpcTransport) -> None:
    stub.raw = [struct.pack("<I", 12_000_004) + b"1:0:" + b"x" * 12_000_000]
    assert len(ask(transport, 1, 20, image=bytes(12_000_000))[0].label) == 12_000_000
    assert len(stub.requests[0].raw_input_contents[0]) == 12_000_004


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "in ensemble 'm', not a JPEG", InvalidImageError),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference input 'image' for model 'm'", ProtocolError),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found", ModelNotFoundError),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", QueueFullError),
        (grpc.StatusCode.UNAVAILABLE, "not ready", ServerNotReadyError),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", ConnectionBrokenError),
        (grpc.StatusCode.UNAVAILABLE, "errors resolving box:1: not found", ConnectionFailedError),
        (grpc.StatusCode.UNAVAILABLE, "DNS resolution failed for box:1", ConnectionFailedError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", DeadlineExceededError),
        (grpc.StatusCode.INTERNAL, "it broke", InferenceError),
        (grpc.StatusCode.PERMISSION_DENIED, "no", ProtocolError),
    ],
)
def test_statuses(
    stub: GrpcStub, transport: GrpcTransport, code: grpc.StatusCode, details: str, kind: type[ClassifierError]
) -> None:
    stub.act = lambda context: context.abort(code, details)
    with pytest.raises(ClassifierError) as caught:
        ask(transport)
    assert type(caught.value) is kind
    assert transport.url in str(caught.value)


DIES = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import grpc

class Dies(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: os._exit(0))

server = grpc.server(ThreadPoolExecutor(1), handlers=[Dies()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def test_a_server_that_dies_is_told_from_one_that_is_not_there() -> None:
    with subprocess.Popen([sys.executable, "-c", DIES], stdout=subprocess.PIPE, text=True) as server:
        transport = GrpcTransport(Address("127.0.0.1", int(server.stdout.readline())))
        with pytest.raises(ConnectionBrokenError):
            ask(transport)
        server.wait(10)
    deadline = time.monotonic() + 10
    kind: type = ConnectionBrokenError
    while kind is ConnectionBrokenError and time.monotonic() < deadline:  # gRPC may not have noticed yet
        with pytest.raises(ConnectionFailedError) as caught:
            ask(transport)
        kind = type(caught.value)
    assert kind is ConnectionFailedError


@pytest.mark.parametrize("raw", [[], [b"\x05\x00\x00\x00abc"], [b"\x05\x00"]])
def test_answer_that_is_none(stub: GrpcStub, transport: GrpcTransport, raw: list[bytes]) -> None:
    stub.raw = raw
    with pytest.raises(ProtocolError, match="holds no probabilities"):
        ask(transport)


def test_labels_that_are_not_utf8(stub: GrpcStub, transport: GrpcTransport) -> None:
    stub.raw = [b"".join(struct.pack("<I", len(entry)) + entry for entry in (b"0.5:0:a\xff", b"0.25:1"))]
    assert [each.label for each in ask(transport)] == ["a\N{REPLACEMENT CHARACTER}", "1"]
    stub.raw = [b""]
    assert list(ask(transport)) == []


def test_no_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        transport = GrpcTransport(Address("127.0.0.1", taken.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="refused"):
            ask(transport)
        assert time.monotonic() - started < 1
        transport.close()


def test_silent_server(stub: GrpcStub, transport: GrpcTransport) -> None:
    stub.act = lambda context: time.sleep(1)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.6 s"):
        ask(transport, 1, 0.6)
    assert 0.59 < time.monotonic() - started < 0.9


def test_deadline_is_for_connecting_too(unreachable: int) -> None:
    transport = GrpcTransport(Address("127.0.0.1", unreachable))
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(transport, 1, 0.6)
    assert 0.59 < time.monotonic() - started < 0.9
    transport.close()


def test_connecting_may_have_a_bound_of_its_own(unreachable: int) -> None:
    """With several servers, connecting has a shorter time limit than the request."""
    transport = GrpcTransport(Address("127.0.0.1", unreachable, None, 0.3))
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError):
        ask(transport)
    assert time.monotonic() - started < 2
    transport.close()


def test_frozen_server_before_the_first_word() -> None:
    """It accepts the connection and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        transport = GrpcTransport(Address("127.0.0.1", frozen.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            ask(transport, 1, 0.6)
        assert 0.59 < time.monotonic() - started < 0.9
        transport.close()


def test_server_that_is_back_is_found(stub: GrpcStub) -> None:
    server, port = serve(stub)
    transport = GrpcTransport(Address("127.0.0.1", port))
    ask(transport)
    server.stop(0).wait()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        with pytest.raises(ServerUnavailableError):
            ask(transport)
        time.sleep(0.02)
    server, _ = serve(stub, port)
    until = time.monotonic() + 2
    while not answers(transport) and time.monotonic() < until:
        time.sleep(0.02)
    assert answers(transport)
    transport.close()
    server.stop(0).wait()


def answers(transport: GrpcTransport) -> bool:
    try:
        return bool(ask(transport))
    except ServerUnavailableError:
        return False


def test_close_ends_a_request_in_flight(stub: GrpcStub, transport: GrpcTransport) -> None:
    waiting = threading.Event()
    stub.act = lambda context: waiting.set() or time.sleep(1)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ask, transport, 1, 10)
        assert waiting.wait(5)
        started = time.monotonic()
        transport.close()
        with pytest.raises(ServerUnavailableError):
            future.result(5)
        assert time.monotonic() - started < 0.5
    with pytest.raises(ServerUnavailableError, match="closed"):
        ask(transport)


@pytest.mark.parametrize("tls", [None, TLS()])
def test_channels_are_told_everything(monkeypatch: pytest.MonkeyPatch, tls: TLS | None) -> None:
    """The options whose defaults in gRPC do not suit are set."""
    seen = {}
    name = "insecure_channel" if tls is None else "secure_channel"
    real = getattr(grpc, name)
    monkeypatch.setattr(grpc, name, lambda *where, options: seen.update(options) or real(*where, options))
    transport = GrpcTransport(Address("::1", 1, tls))
    assert transport.url == f"{'grpc' if tls is None else 'grpcs'}://[::1]:1"
    assert seen["grpc.max_send_message_length"] == seen["grpc.max_receive_message_length"] == -1
    assert seen["grpc.max_reconnect_backoff_ms"] <= 5_000  # gRPC's own 2 minutes would refuse a server that is back
    assert seen["grpc.keepalive_time_ms"] >= 30_000  # servers hang up on those who ask more often
    transport.close()


def test_the_address_that_is_given_is_called(stub: GrpcStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is ignored, as over HTTP."""
    for variable in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    server, port = serve(stub)
    transport = GrpcTransport(Address("127.0.0.1", port))
    assert ask(transport) == CAT
    transport.close()
    server.stop(0).wait()


def test_all_addresses_of_a_name_take_turns() -> None:
    """This is a headless service; here gRPC gets the addresses as a list, as from resolving a name."""
    stubs = GrpcStub(), GrpcStub()
    one, port = serve(stubs[0])
    other, same = serve(stubs[1], port, host="127.0.0.2")
    assert same == port
    _, options = channel_arguments(Address("name", port))
    with grpc.insecure_channel(f"ipv4:127.0.0.1:{port},127.0.0.2:{port}", options=options) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        end = time.monotonic() + 10
        while not all(len(stub.requests) > 2 for stub in stubs):
            assert time.monotonic() < end, [len(stub.requests) for stub in stubs]
            infer(service_pb2.ModelInferRequest(), timeout=5)
    assert abs(len(stubs[0].requests) - len(stubs[1].requests)) <= 6
    for server in (one, other):
        server.stop(0).wait()

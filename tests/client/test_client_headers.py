"""What a gateway in front of the server needs: headers with every request, and a path."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import CAT
from stub_grpc import GrpcStub, serve
from stub_http import HttpStub

from client import AsyncClassifier, Classifier, ServerStatus, parse_headers
from client.__main__ import main
from client._headers import reader

SENT = {"Authorization": "Bearer a b", "traceparent": "00-1-2-01"}


@pytest.fixture(params=["grpc", "http"])
def gateway(request: pytest.FixtureRequest, stub: HttpStub) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """Protocol, address, and the headers of each inference request."""
    seen: list[dict[str, str]] = []
    if request.param == "http":
        stub.act = lambda handler: bool(seen.append({key.lower(): value for key, value in handler.headers.items()}))
        yield "http", f"127.0.0.1:{stub.server_address[1]}", seen
        return
    grpc_stub = GrpcStub()
    grpc_stub.act = lambda context: seen.append(dict(context.invocation_metadata()))
    server, port = serve(grpc_stub)
    yield "grpc", f"127.0.0.1:{port}", seen
    server.stop(None)


def test_headers_go_with_every_request(gateway: tuple[str, str, list[dict[str, str]]]) -> None:
    protocol, address, seen = gateway

    async def ask() -> None:
        async with AsyncClassifier(address, protocol, headers=SENT) as classifier:
            assert await classifier.classify(b"x") == CAT

    with Classifier(address, protocol, headers=SENT) as classifier:
        assert classifier.classify(b"x") == CAT
    asyncio.run(ask())
    assert len(seen) == 2
    for each in seen:
        assert SENT.items() <= {**each, "Authorization": each["authorization"]}.items()


def test_a_key_may_be_renewed(gateway: tuple[str, str, list[dict[str, str]]]) -> None:
    protocol, address, seen = gateway
    keys = iter(["one", "two"])
    with Classifier(address, protocol, headers=lambda: {"key": next(keys)}) as classifier:
        classifier.classify(b"x")
        classifier.classify(b"x")
    assert [each["key"] for each in seen] == ["one", "two"]
    with (
        Classifier(address, protocol, headers=lambda: {"key": 1}) as classifier,  # type: ignore[dict-item, return-value]
        pytest.raises(ValueError, match="header 'key': its value"),
    ):
        classifier.classify(b"x")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_function_that_fails_is_not_the_servers_failure(
    gateway: tuple[str, str, list[dict[str, str]]], asynchronous: bool
) -> None:
    """Neither repeated, nor a `ClassifierError`: the server was not asked."""
    protocol, address, seen = gateway
    calls = []

    def headers() -> dict[str, str]:
        calls.append(1)
        raise FileNotFoundError("the key's file")

    async def ask() -> None:
        async with AsyncClassifier(address, protocol, headers=headers) as classifier:
            await classifier.classify(b"x")

    with (
        Classifier(address, protocol, headers=headers) as classifier,
        pytest.raises(FileNotFoundError, match="the key's file"),
    ):
        asyncio.run(ask()) if asynchronous else classifier.classify(b"x")
    assert len(calls) == 1
    assert seen == []


def test_a_gateways_path(stub: HttpStub) -> None:
    address = f"http://127.0.0.1:{stub.server_address[1]}/gate/way/"

    async def ask() -> None:
        async with AsyncClassifier(address, "http") as classifier:
            assert await classifier.classify(b"x") == CAT

    with Classifier(address, "http") as classifier:
        assert classifier.classify(b"x") == CAT
        assert classifier.urls == [address.rstrip("/")]
    asyncio.run(ask())
    assert [path for path, _ in stub.requests] == ["/gate/way/v2/models/classifier/infer"] * 2
    body = b'{"name": "triton", "version": "2", "model_stats": []}'
    stub.pages = {f"/gate/way{path}": (200, body) for path in ("/v2", "/v2/health/ready", "/v2/models/stats")}
    with Classifier(address, "http") as classifier:
        assert [type(each) for each in classifier.status()] == [ServerStatus]


def test_the_command_sends_them(stub: HttpStub, tmp_path: Path) -> None:
    keys, picture = tmp_path / "keys", tmp_path / "x.jpg"
    keys.write_text("Authorization: Bearer secret\n\nx-user: me:you\n")
    picture.write_bytes(b"x")
    seen = []
    stub.act = lambda handler: seen.append(dict(handler.headers)) or False
    more = ["--protocol", "http", "--url", f"127.0.0.1:{stub.server_address[1]}", "--header", f"@{keys}"]
    assert main(["classify", str(picture), *more, "--header", "trace:1"]) == 0
    assert {"authorization": "Bearer secret", "x-user": "me:you", "trace": "1"}.items() <= seen[0].items()


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"a b": "c"}, "header 'a b': its name"),
        ({"": "c"}, "header '': its name"),
        ({1: "c"}, "header 1: its name"),
        ({"Content-Type": "c"}, "header 'Content-Type' is the client's own"),
        ({"grpc-timeout": "1"}, "is the client's own, or the protocol's"),
        ({"key-bin": "1"}, "is the client's own, or the protocol's"),
        ({"key": "secret\r\nHost: x"}, "header 'key': its value"),
        ({"key": " secret"}, "header 'key': its value"),
        ({"key": "secrét"}, "header 'key': its value"),
        ({"key": b"secret"}, "header 'key': its value"),
        ([("key", "secret")], "headers are a list: give a dict"),
    ],
)
def test_headers_that_cannot_be_sent(headers: Any, words: str) -> None:
    for kind in (Classifier, AsyncClassifier):
        with pytest.raises(ValueError, match=words) as caught:
            kind(headers=headers)
        assert "secr" not in str(caught.value)
    assert reader({"Key": "", "other": "a"})() == {"key": "", "other": "a"}


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a: 1\n\n")
    (tmp_path / "nested").write_text("a: 1\n@authorization: secret\n")
    assert parse_headers(["b:2", f"@{tmp_path}/lines"]) == {"b": "2", "a": "1"}
    for line, words in (
        (f"@{tmp_path}", "cannot be read .*name a file of lines"),
        (f"@{tmp_path}/nested", "nested has a line that begins with @"),
        ("Bearer secret", "has no colon"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            parse_headers([line])
        assert "secret" not in str(caught.value)

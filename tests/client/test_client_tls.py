"""Encrypted connections over both protocols, blocking and asyncio."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from asking import CAT
from authority import Authority, https_stub, start
from stub_grpc import GrpcStub, serve
from stub_http import HttpStub, close_unsaid, refuse

from client import TLS, AsyncClassifier, Classifier, ConnectionFailedError, InvalidImageError
from client._tls import system_roots


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=["grpc", "http"])
def secure(request: pytest.FixtureRequest, authority: Authority) -> Iterator[tuple[str, str]]:
    """Protocol and address of a server that wants no client certificate."""
    yield from start(request.param, authority, client_needed=False)


@pytest.fixture(params=["grpc", "http"])
def mutual(request: pytest.FixtureRequest, authority: Authority) -> Iterator[tuple[str, str]]:
    """Protocol and address of a server that wants the client's certificate."""
    yield from start(request.param, authority, client_needed=True)


@pytest.fixture
def closing(authority: Authority) -> Iterator[HttpStub]:
    """An HTTPS server that closes every connection after its answer, unannounced, as after an idle timeout."""
    stub = https_stub(authority)
    stub.act = close_unsaid
    yield stub
    stub.stop()


def both(protocol: str, address: str, tls: Any) -> None:
    """Classify with a Classifier and an AsyncClassifier; raise what either raises."""

    async def main() -> None:
        async with AsyncClassifier(address, protocol, timeout=10, retries=0, tls=tls) as classifier:
            assert await classifier.classify(b"x") == CAT
            assert await classifier.classify_many([b"x"] * 9) == [CAT] * 9

    with Classifier(address, protocol, timeout=10, retries=0, tls=tls) as classifier:
        assert classifier.classify(b"x") == CAT
        assert classifier.classify_many([b"x"] * 9) == [CAT] * 9
    asyncio.run(main())


def test_own_root(secure: tuple[str, str], authority: Authority) -> None:
    both(*secure, authority.root)
    both(*secure, TLS(root=str(authority.root)))


def test_system_roots(secure: tuple[str, str], authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))  # OpenSSL's own way to name them
    protocol, address = secure
    both(protocol, address, True)
    both(protocol, f"{protocol}s://{address}", None)


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
def test_a_stranger_is_not_trusted(secure: tuple[str, str], tmp_path: Path, kind: Any) -> None:
    protocol, address = secure
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    classifier = kind(address, protocol, timeout=10, retries=0, tls=other)
    with pytest.raises(
        ConnectionFailedError, match=r": name the authority that signed its certificate with --tls-root"
    ):
        asyncio.run(finish(classifier))


async def finish(classifier: Any, image: bytes = b"x") -> None:
    answer = classifier.classify(image)
    if isinstance(classifier, AsyncClassifier):
        await answer


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
def test_plain_text_to_an_encrypted_port(secure: tuple[str, str], kind: Any) -> None:
    protocol, address = secure
    with pytest.raises(ConnectionFailedError, match=r"; where it speaks TLS, give --tls or --tls-root "):
        asyncio.run(finish(kind(address, protocol, timeout=10, retries=0)))


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
def test_an_encrypted_client_of_a_plain_port(stub: HttpStub, authority: Authority, kind: Any) -> None:
    server, port = serve(GrpcStub())
    for protocol, where in (("grpc", port), ("http", stub.server_address[1])):
        with pytest.raises(ConnectionFailedError, match="it does not speak TLS: leave out --tls and the like"):
            asyncio.run(finish(kind(f"127.0.0.1:{where}", protocol, timeout=10, retries=0, tls=authority.root)))
    server.stop(0).wait()


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
def test_a_plain_port_that_hangs_up_on_an_encrypted_client(authority: Authority, kind: Any) -> None:
    """tritonserver's HTTP port does so."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.recv(2**16)
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionFailedError, match="; where it does not speak TLS, leave out --tls and the like"):
            asyncio.run(finish(kind(address, "http", timeout=10, retries=0, tls=authority.root)))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_certificate_of_another_name(tmp_path: Path, protocol: str) -> None:
    own = Authority(tmp_path)
    own.server = own.ca.issue_cert("elsewhere.example")
    with contextlib.contextmanager(start)(protocol, own, client_needed=False) as (_, address):
        for kind in (Classifier, AsyncClassifier):
            with pytest.raises(ConnectionFailedError, match=": give an address that its certificate names"):
                asyncio.run(finish(kind(address, protocol, timeout=10, retries=0, tls=own.root)))


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
def test_client_certificate(mutual: tuple[str, str], authority: Authority, kind: Any) -> None:
    protocol, address = mutual
    both(*mutual, TLS(authority.root, authority.certificate, authority.key))
    with pytest.raises(ConnectionFailedError, match="give --tls-certificate and --tls-key"):
        asyncio.run(finish(kind(address, protocol, timeout=10, retries=0, tls=authority.root)))


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
def test_a_client_certificate_of_a_stranger(
    mutual: tuple[str, str], authority: Authority, tmp_path: Path, kind: Any
) -> None:
    protocol, address = mutual
    stranger = Authority(tmp_path)
    tls = TLS(authority.root, stranger.certificate, stranger.key)
    with pytest.raises(ConnectionFailedError, match=r"one that is given must be valid, signed by an authority"):
        asyncio.run(finish(kind(address, protocol, timeout=10, retries=0, tls=tls)))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_leaves_out_the_intermediate_certificate(tmp_path: Path, protocol: str) -> None:
    own = Authority(tmp_path)
    whole = own.ca.create_child_ca().issue_cert("127.0.0.1")
    own.server = trustme.LeafCert(whole.private_key_pem.bytes(), whole.cert_chain_pems[0].bytes(), [])
    with contextlib.contextmanager(start)(protocol, own, client_needed=False) as (_, address):
        for kind in (Classifier, AsyncClassifier):
            with pytest.raises(ConnectionFailedError, match="where it is named, the server leaves out an intermediate"):
                asyncio.run(finish(kind(address, protocol, timeout=10, retries=0, tls=own.root)))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_files_that_are_none(authority: Authority, tmp_path: Path, protocol: str) -> None:
    words = tmp_path / "words.pem"
    words.write_text("no certificate")
    with pytest.raises(ValueError, match="give PEM files"):
        Classifier(protocol=protocol, tls=words)
    with pytest.raises(ValueError, match="give PEM files"):
        Classifier(protocol=protocol, tls=TLS(authority.root, authority.certificate, words))
    with pytest.raises(ValueError, match=r"no such file: none\.pem"):
        Classifier(protocol=protocol, tls="none.pem")
    with pytest.raises(ValueError, match="both or neither"):
        TLS(certificate=authority.certificate)


def test_system_roots_are_a_file_or_left_to_grpc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def paths(cafile: str | None, capath: str | None) -> None:
        found = ssl.DefaultVerifyPaths(cafile, capath, "", "", "", "")
        monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: found)

    paths(None, str(tmp_path))
    assert system_roots() is None
    (tmp_path / "ca-certificates.crt").touch()
    assert system_roots() == tmp_path / "ca-certificates.crt"
    paths(None, None)
    assert system_roots() is None


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_connection_that_died_idle_is_replaced(closing: HttpStub, authority: Authority, size: int) -> None:
    address = f"127.0.0.1:{closing.server_address[1]}"

    async def main() -> None:
        async with AsyncClassifier(address, "http", timeout=10, retries=0, tls=authority.root) as classifier:
            for _ in range(3):
                assert await classifier.classify(bytes(size)) == CAT
                await asyncio.sleep(0.05)

    with Classifier(address, "http", timeout=10, retries=0, tls=authority.root) as classifier:
        for _ in range(3):
            assert classifier.classify(bytes(size)) == CAT
            time.sleep(0.05)
    asyncio.run(main())
    assert closing.connections == 6


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
def test_a_refusal_before_the_body_was_read(authority: Authority, kind: Any) -> None:
    """It is read although sending the rest fails, which TLS does not call a broken pipe."""
    stub = https_stub(authority)
    stub.act = refuse
    address = f"127.0.0.1:{stub.server_address[1]}"
    with pytest.raises(InvalidImageError, match="the server takes no request that large"):
        asyncio.run(finish(kind(address, "http", timeout=10, retries=0, tls=authority.root), bytes(20_000_000)))
    stub.stop()

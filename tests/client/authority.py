"""Certificates, and stubs that show them."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import trustme
from stub_grpc import GrpcStub, serve
from stub_http import HttpStub


class Authority:
    """PEM files: an authority, a server's certificate for 127.0.0.1 and a client's."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.server = self.ca.issue_cert("127.0.0.1", "localhost")
        client = self.ca.issue_cert("client@example.org")
        self.root, self.certificate, self.key = (folder / name for name in ("root.pem", "client.pem", "client.key"))
        self.ca.cert_pem.write_to_path(self.root)
        client.cert_chain_pems[0].write_to_path(self.certificate)
        client.private_key_pem.write_to_path(self.key)


def start(
    protocol: str, authority: Authority, client_needed: bool, stub: GrpcStub | None = None
) -> Iterator[tuple[str, str]]:
    if protocol == "grpc":
        pair = (authority.server.private_key_pem.bytes(), authority.server.cert_chain_pems[0].bytes())
        root = authority.ca.cert_pem.bytes()
        credentials = grpc.ssl_server_credentials([pair], root if client_needed else None, client_needed)
        server, port = serve(stub or GrpcStub(), credentials=credentials)
        yield protocol, f"127.0.0.1:{port}"
        server.stop(0).wait()
        return
    http = https_stub(authority, client_needed)
    yield protocol, f"127.0.0.1:{http.server_address[1]}"
    http.stop()


def https_stub(authority: Authority, client_needed: bool = False) -> HttpStub:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.server.configure_cert(context)
    if client_needed:
        authority.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return HttpStub(context)

"""TLS and mutual TLS of gRPC on the real server, and what is said of files that cannot be used."""

import shutil

import grpc
import pytest
from certificates import ready, refused
from cryptography.hazmat.primitives import serialization
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server import OptionError, TritonServer
from server.__main__ import main
from server.tls import Tls, tls_of


@pytest.mark.server
def test_mutual_tls(secured_server, authority, stranger):
    url = secured_server.grpc_url
    assert ready(url, authority.ca, authority.issue("client"))
    assert refused(url, authority.ca)  # no certificate
    assert refused(url, authority.ca, stranger.issue("client"))  # another's
    assert refused(url, stranger.ca, authority.issue("client"))  # the client does not trust the server
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.server
def test_tls_of_the_server_alone(light_repository, authority, stranger):
    """gRPC listens on every address, with TLS; HTTP, which has none, on this machine only."""
    import psutil

    with TritonServer(light_repository, host="0.0.0.0", tls=Tls(*authority.issue("server"))) as server:
        assert ready(server.grpc_url, authority.ca)
        assert refused(server.grpc_url, stranger.ca)
        http, grpc_port = (int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url))
        listening = {c.laddr.port: c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
        assert listening[http].removeprefix("::ffff:") == "127.0.0.1"
        assert listening[grpc_port] in ("0.0.0.0", "::")


@pytest.fixture
def files(authority, tmp_path):
    certificate, key = authority.issue("server")
    for source, name in ((certificate, "crt"), (key, "key"), (authority.ca, "ca")):
        shutil.copy(source, tmp_path / name)
    return tmp_path


def test_files_that_fit(files):
    Tls(files / "crt", files / "key", files / "ca").check()
    assert tls_of(None, None, None) is None


def with_passphrase(files, authority):
    key = serialization.load_pem_private_key((files / "key").read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"x")
    (files / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )


SECP112R1 = """-----BEGIN PRIVATE KEY-----
ME4CAQAwEAYHKoZIzj0CAQYFK4EEAAYENzA1AgEBBA7GhO2aysMhmwBPdEuq6qEg
Ax4ABEwOp3oFqIss8DDbrtcyTVR9trwJsUQTkUCvKCg=
-----END PRIVATE KEY-----
"""  # of a curve that cryptography does not know


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda files, authority: (files / "crt").unlink(), r"--tls-certificate .*crt cannot be read \(No such file"),
        (lambda files, authority: (files / "key").unlink(), r"--tls-key .*key cannot be read \(No such file"),
        (lambda files, authority: (files / "ca").unlink(), r"--tls-client-ca .*ca cannot be read \(No such file"),
        (lambda files, authority: (files / "crt").write_text("x"), "--tls-certificate .* holds no certificate"),
        (lambda files, authority: (files / "key").write_text("x"), "--tls-key .* holds no private key"),
        (lambda files, authority: (files / "key").write_text(SECP112R1), "--tls-key .* that can be used"),
        (lambda files, authority: (files / "ca").write_text("x"), "--tls-client-ca .* holds no certificate"),
        (
            lambda files, authority: shutil.copy(authority.issue("other")[1], files / "key"),
            "--tls-key .* does not belong to --tls-certificate",
        ),
        (with_passphrase, "--tls-key .* has a passphrase"),
        (
            lambda files, authority: [
                shutil.copy(path, files / path.suffix[1:]) for path in authority.issue("old", days=0)
            ],
            r"CN=old expired on 20\d\d-\d\d-\d\d: renew it",
        ),
        (
            lambda files, authority: [
                shutil.copy(path, files / path.suffix[1:]) for path in authority.issue("new", begins=1)
            ],
            r"CN=new is valid from 20\d\d-\d\d-\d\d only",
        ),
    ],
)
def test_files_that_cannot_be_used(files, authority, harm, message):
    harm(files, authority)
    with pytest.raises(OptionError, match=message):
        Tls(files / "crt", files / "key", files / "ca").check()


@pytest.mark.parametrize("option", ["certificate", "key", "client-ca"])
def test_half_of_a_pair(capsys, option):
    assert main([f"--tls-{option}", "file.pem"]) == 2
    assert "error: TLS needs both --tls-certificate and --tls-key" in capsys.readouterr().err


def test_an_empty_path_is_no_path(capsys, light_repository, files):
    """An empty shell variable gives one: without the authorities every client would be accepted."""
    given = ["--tls-certificate", str(files / "crt"), "--tls-key", str(files / "key"), "--tls-client-ca", ""]
    assert main(["--model-repository", str(light_repository), "--http-port", "0", "--grpc-port", "0", *given]) == 2
    assert "error: --tls-client-ca . cannot be read (Is a directory): name a PEM file" in capsys.readouterr().err


def test_the_command_line_checks_the_files(capsys, light_repository, files):
    (files / "key").unlink()
    arguments = ["--model-repository", str(light_repository), "--http-port", "0", "--grpc-port", "0"]
    for spelling in ("--tls-certificate", "--tls-cert"):
        assert main([*arguments, spelling, str(files / "crt"), "--tls-key", str(files / "key")]) == 2
    assert "error: --tls-key" in capsys.readouterr().err

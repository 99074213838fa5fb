"""The restricted interfaces of both protocols: closed without the key and with a wrong one, open with it."""

import http.client
import os
import string
import subprocess
import sys
from pathlib import Path

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from server import OptionError, ReleaseError, TritonServer
from server.management import SHARED_MEMORY_VARIABLE, VARIABLE, Management, read_token
from server.tritonserver_options import MANAGEMENT_HEADER, SHARED_MEMORY_HEADER

ROOT = Path(__file__).parents[2]
PREFIX = "triton-grpc-protocol-"  # tritonserver's own
WRONG = [None, "", "wrong", "s3cret ", "S3CRET", "s3cre", "s3crets"]
OVER_HTTP = [
    ("POST", "/v2/repository/index", MANAGEMENT_HEADER),
    ("GET", "/v2/models/classifier/config", MANAGEMENT_HEADER),
    ("GET", "/v2/systemsharedmemory/status", SHARED_MEMORY_HEADER),
    ("GET", "/v2/cudasharedmemory/status", SHARED_MEMORY_HEADER),
    ("GET", "/v2/trace/setting", MANAGEMENT_HEADER),
    ("GET", "/v2/logging", MANAGEMENT_HEADER),
]
OVER_GRPC = {
    "RepositoryIndex": (messages.RepositoryIndexRequest(), MANAGEMENT_HEADER),
    "ModelConfig": (messages.ModelConfigRequest(name="classifier"), MANAGEMENT_HEADER),
    "SystemSharedMemoryStatus": (messages.SystemSharedMemoryStatusRequest(), SHARED_MEMORY_HEADER),
    "CudaSharedMemoryStatus": (messages.CudaSharedMemoryStatusRequest(), SHARED_MEMORY_HEADER),
    "TraceSetting": (messages.TraceSettingRequest(), MANAGEMENT_HEADER),
    "LogSettings": (messages.LogSettingsRequest(), MANAGEMENT_HEADER),
}


@pytest.mark.server
@pytest.mark.parametrize(("method", "path", "header"), OVER_HTTP)
def test_http_asks_for_the_key(secured_server, tokens, method, path, header):
    def status(token, name=header):
        connection = http.client.HTTPConnection(secured_server.http_url, timeout=10)
        headers = {} if token is None else {name: token}
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        assert response.status == 200 or "restricted" in body
        return response.status

    assert {status(token) for token in WRONG if token != "s3cret "} == {403}  # HTTP drops spaces at the end
    for other in tokens.keys() - {header}:  # each opens its own interfaces alone
        assert status(tokens[other]) == status(tokens[other], other) == status(tokens[header], other) == 403
    assert status(tokens[header]) == 200


@pytest.mark.server
@pytest.mark.parametrize("name", OVER_GRPC)
def test_grpc_asks_for_the_key(secured_server, tokens, authority, name):
    message, header = OVER_GRPC[name]
    (other,) = tokens.keys() - {header}
    wrong = [[] if token is None else [(PREFIX + header, token)] for token in (*WRONG, tokens[other])]
    wrong += [[(PREFIX + other, token)] for token in tokens.values()]
    certificate, key = authority.issue("client")
    credentials = grpc.ssl_channel_credentials(*(f.read_bytes() for f in (authority.ca, key, certificate)))
    with grpc.secure_channel(secured_server.grpc_url, credentials) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), name)
        for metadata in wrong:
            with pytest.raises(grpc.RpcError) as refused:
                call(message, metadata=metadata, timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "restricted" in refused.value.details()
        call(message, metadata=[(PREFIX + header, tokens[header])], timeout=10)


@pytest.mark.server
@pytest.mark.parametrize("token", ["abc==", "a:b,c=d", string.punctuation])
def test_signs_that_part_tritonservers_option_are_a_tokens_too(light_repository, token):
    assert read_token(token, None) == token
    with TritonServer(light_repository, management_token=token, shared_memory_token=token[::-1]) as server:
        assert Management(server.http_url, token, 10).ready_versions("sleepy") == [1]
        with grpc.insecure_channel(server.grpc_url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stub.RepositoryIndex(messages.RepositoryIndexRequest(), metadata=[(PREFIX + MANAGEMENT_HEADER, token)])
            shown = [(PREFIX + SHARED_MEMORY_HEADER, token[::-1])]
            stub.SystemSharedMemoryStatus(messages.SystemSharedMemoryStatusRequest(), metadata=shown)
            for part in (token[:-1], token[1:], token.partition(":")[0], token.partition("=")[0]):
                if part == token:
                    continue
                with pytest.raises(ReleaseError, match="refuses the token"):
                    Management(server.http_url, part, 10).ready_versions("sleepy")
                wrong = [(PREFIX + MANAGEMENT_HEADER, part)]
                with pytest.raises(grpc.RpcError, match="restricted"):
                    stub.RepositoryIndex(messages.RepositoryIndexRequest(), metadata=wrong)


def test_where_the_token_comes_from(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(None, None) is None
    monkeypatch.setenv(VARIABLE, "")
    assert read_token(None, None) is None
    monkeypatch.setenv(VARIABLE, "from-environment")
    assert read_token(None, None) == "from-environment"
    assert read_token(None, file) == "from-file"
    assert read_token("given", None) == "given"


def test_the_other_token(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("\n")
    monkeypatch.setenv(VARIABLE, "management")
    monkeypatch.setenv(SHARED_MEMORY_VARIABLE, "memory")
    assert read_token(None, None, name="shared-memory") == "memory"
    with pytest.raises(OptionError, match=r"--shared-memory-token-file .*token is empty"):
        read_token(None, tmp_path / "token", name="shared-memory")
    with pytest.raises(OptionError, match="the shared-memory token is empty, or has spaces"):
        read_token("two words", None, name="shared-memory")


@pytest.mark.parametrize("text", ["", "\n", "two words", "a\tb", "a\x7f", "\u00e4"])
def test_a_token_that_cannot_be_used(tmp_path, text):
    (tmp_path / "token").write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match="token"):
        read_token(None, tmp_path / "token")


def test_a_token_file_that_is_not_there(tmp_path):
    with pytest.raises(
        OptionError,
        match=r"--management-token-file .*none cannot be read \(No such file or directory\): name",
    ):
        read_token(None, tmp_path / "none")


@pytest.mark.server
@pytest.mark.parametrize("way", ["file", pytest.param("environment", marks=pytest.mark.slow)])
def test_what_is_visible_of_the_token(light_repository, tmp_path, way):
    """It is visible only on tritonserver's command line, the only place where tritonserver accepts it."""
    command = [sys.executable, "-m", "server", "--model-repository", str(light_repository)]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    environment = {**os.environ}
    if way == "file":
        (tmp_path / "token").write_text("hidden-token\n")
        (tmp_path / "memory").write_text("hidden-memory\n")
        command += ["--management-token-file", str(tmp_path / "token")]
        command += ["--shared-memory-token-file", str(tmp_path / "memory")]
    else:
        environment[VARIABLE] = "hidden-token"
        environment[SHARED_MEMORY_VARIABLE] = "hidden-memory"
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline().startswith("  HTTP")
        processes = psutil.Process(server.pid).children(recursive=True)
        for token in ("hidden-token", "hidden-memory"):
            seen = {each.name() for each in processes if token in " ".join(each.cmdline())}
            assert seen == {"tritonserver"}
        assert not [each for each in processes if "hidden-token" in each.environ().values()]
        assert "hidden-token" not in " ".join(psutil.Process(server.pid).cmdline())
    finally:
        server.terminate()
        server.communicate(timeout=40)


def test_what_is_no_list_of_models_names_no_version(monkeypatch):
    monkeypatch.setattr("server.management.ask", lambda *_: {"models": []})
    assert Management("127.0.0.1:1", "token", 1).ready_versions("backbone") == []

"""The calls that docs/client.md shows, against a real server."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, json_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

pytestmark = pytest.mark.server

PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text()
EXPECTED = ["0:red: warm", "3:naïve grey", "2:blue [cold]"]


def block(language: str, word: str) -> str:
    (found,) = (code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in code)
    return found


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    (tmp_path / "photo.jpg").write_bytes(picture("red", "JPEG"))
    return tmp_path


def needs(program: str, remedy: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program}: {remedy}")


def answer(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"0\.\d+:(\d:[^\"\n]+)", done.stdout) == EXPECTED, done.stdout
    return done.stdout


@needs("curl", "apt-get install curl")
def test_curl(tiny_server: "TritonServer", folder: Path) -> None:  # noqa: F821
    answer(["bash", "-ec", block("bash", "curl -s").replace("127.0.0.1:8000", tiny_server.http_url)], folder)


@needs("node", "apt-get install nodejs")
def test_javascript(tiny_server: "TritonServer", folder: Path) -> None:  # noqa: F821
    (folder / "call.mjs").write_text(block("javascript", "fetch").replace("127.0.0.1:8000", tiny_server.http_url))
    answer(["node", "call.mjs"], folder)


@pytest.mark.slow
@needs("go", "apt-get install golang-go")
def test_go(tiny_server: "TritonServer", folder: Path) -> None:  # noqa: F821
    (folder / "main.go").write_text(block("go", "package").replace("127.0.0.1:8000", tiny_server.http_url))
    assert answer(["go", "run", "main.go"], folder).startswith("200 OK")


@needs("grpcurl", "https://github.com/fullstorydev/grpcurl")
def test_grpcurl(tiny_server: "TritonServer", folder: Path) -> None:  # noqa: F821
    """The descriptors in tritonclient take the place of the .proto files."""
    files = [model_config_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR]
    descriptors = descriptor_pb2.FileDescriptorSet()
    for file in files:
        file.CopyToProto(descriptors.file.add())
    (folder / "kserve.protoset").write_bytes(descriptors.SerializeToString())
    command = block("bash", "grpcurl").replace("127.0.0.1:8001", tiny_server.grpc_url)
    command = command.replace("-proto grpc_service.proto", "-protoset kserve.protoset")
    done = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)["raw_output_contents"]
    found = base64.b64decode(output).decode(errors="replace")
    assert [each in found for each in EXPECTED] == [True] * 3


def test_message_of_grpcurl(tiny_server: "TritonServer", folder: Path) -> None:  # noqa: F821
    """grpcurl reads protobuf's JSON form."""
    (message,) = re.findall(r"<<END\n(.*)END\n", block("bash", "grpcurl"), re.DOTALL)
    image = base64.b64encode((folder / "photo.jpg").read_bytes()).decode()
    message = message.replace("$(base64 -w0 photo.jpg)", image)
    request = json_format.Parse(message, service_pb2.ModelInferRequest())
    with grpc.insecure_channel(tiny_server.grpc_url) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    found = response.raw_output_contents[0].decode(errors="replace")
    assert [each in found for each in EXPECTED] == [True] * 3

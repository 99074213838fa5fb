"""The image's entry point names a variable that cannot be used, before it starts tritonserver."""

import os
import shutil
import subprocess
import sys

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from manifests import lay_out


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """said(**variables): by the entry point, as it stands in the image; empty where all can be used."""
    image, models = tmp_path_factory.mktemp("image"), tmp_path_factory.mktemp("models")
    lay_out(image)
    (models / "plain").mkdir()
    (models / "plain" / "config.pbtxt").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WIDEFIELD_")}
    environment |= {"TRITONSERVER": "/bin/true", "WIDEFIELD_MODELS": str(models)}

    def run(**variables):
        command = [sys.executable, "-S", str(image / "serve.py")]
        named = {f"WIDEFIELD_{name}": value for name, value in variables.items()}
        done = subprocess.run(command, env=environment | named, input="", capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (done.stderr == "")
        return done.stderr.removesuffix("\n")

    return run


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HTTP_PORT": "", "HOST": "", "GPU": "", "DRAIN_SECONDS": "", "MANAGEMENT_TOKEN": "", "TLS_KEY": ""},
        {"HTTP_PORT": "1", "METRICS_PORT": "65535", "HOST": "127.0.0.2", "HTTP_HOST": "127.0.0.1", "GPU": "true"},
        {"DRAIN_SECONDS": "0", "MANAGEMENT_TOKEN": "secret\r\n", "SHARED_MEMORY_TOKEN": "~!"},
    ],
)
def test_what_can_be_used(said, variables):
    assert said(**variables) == ""


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        *(
            ({name: value}, f"WIDEFIELD_{name} is {value!r}: give a whole number from 1 to 65535")
            for name, value in (
                ("HTTP_PORT", "http"),
                ("HTTP_PORT", "0"),
                ("GRPC_PORT", "65536"),
                ("METRICS_PORT", " 8000"),
                ("METRICS_PORT", "8" * 10),
            )
        ),
        ({"HTTP_PORT": "8001"}, "WIDEFIELD_GRPC_PORT is 8001, and so is WIDEFIELD_HTTP_PORT: give each its own"),
        ({"DRAIN_SECONDS": "30s"}, "WIDEFIELD_DRAIN_SECONDS is '30s': give a whole number from 0 to 86400"),
        ({"GPU": "yes"}, "WIDEFIELD_GPU is 'yes': give true or false"),
        *(
            ({name: host}, f"WIDEFIELD_{name} is {host!r}: give an address without brackets, such as 0.0.0.0 or ::1")
            for name, host in (("HOST", "localhost"), ("HTTP_HOST", "[::1]"))
        ),
        (
            {"HOST": "192.0.2.1"},  # kept for documentation by RFC 5737
            "WIDEFIELD_HOST is 192.0.2.1, which is not an address of this container (Cannot assign requested address): "
            "use 0.0.0.0",
        ),
        *(
            ({name: token}, f"WIDEFIELD_{name} has spaces or non-ASCII characters: `openssl rand -hex 16` makes one")
            for name, token in (("MANAGEMENT_TOKEN", "a b"), ("SHARED_MEMORY_TOKEN", "gänse"))
        ),
    ],
)
def test_what_cannot_be_used(said, variables, message):
    assert said(**variables) == f"serve.py: {message}"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def files(authority, tmp_path):
    certificate, key = authority.issue("server")
    return {
        "TLS_CERT": shutil.copy(certificate, tmp_path / "crt"),
        "TLS_KEY": shutil.copy(key, tmp_path / "key"),
        "TLS_CLIENT_CA": shutil.copy(authority.ca, tmp_path / "ca"),
    }


def test_files_that_fit(said, files):
    assert said(**{name: str(path) for name, path in files.items()}) == ""


def rewritten(path, encoding, encryption=None):
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    kind = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, kind, encryption or serialization.NoEncryption()))


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("TLS_CERT", lambda path, _: path.unlink(), "which is not a readable file: mount it"),
        ("TLS_KEY", lambda path, _: [path.unlink(), path.mkdir()], "which is not a readable file: mount it"),
        ("TLS_CERT", lambda path, _: path.write_text("x"), "which holds no certificate: give a PEM file"),
        ("TLS_CLIENT_CA", lambda path, _: path.write_text(""), "which holds no certificate: give a PEM file"),
        (
            "TLS_KEY",
            lambda path, authority: shutil.copy(authority.issue("other")[1], path),
            "which does not belong to WIDEFIELD_TLS_CERT ({crt}): give its own key",
        ),
        *(
            (
                "TLS_KEY",
                lambda path, _, arguments=arguments: rewritten(path, *arguments),
                "which holds no private key that can be used: give a PEM file without a passphrase",
            )
            for arguments in (
                (serialization.Encoding.DER,),
                (serialization.Encoding.PEM, serialization.BestAvailableEncryption(b"x")),
            )
        ),
    ],
)
def test_files_that_cannot_be_used(said, files, authority, name, harm, message):
    harm(files[name], authority)
    found = said(**{each: str(path) for each, path in files.items()})
    assert found == f"serve.py: WIDEFIELD_{name} is {files[name]}, {message.format(crt=files['TLS_CERT'])}"

"""The options of python -m server and server.tune, and what docs/serving.md says of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server import rollback
from server.__main__ import main
from server.management import VARIABLE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["server", "server.release", "server.rollback", "server.tune"])
@pytest.mark.parametrize("package", ["psutil", "cryptography"])
def test_what_is_not_installed_is_named_with_its_extra(tmp_path, module, package):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"server needs {package}: pip install '.[serve]' in the checkout" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["server", "server.tune"])
def test_every_option_is_described(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    options = set(re.findall(r"^ +(?:-h, )?(--[a-z0-9-]+)", done.stdout, re.MULTILINE)) - {"--help"}
    assert len(options) >= 6
    text = (ROOT / "docs" / "serving.md").read_text()
    assert {option for option in options if f"`{option}`" not in text and f"`{option} " not in text} == set()


def test_a_release_is_told_of_the_servers_token(capsys):
    with pytest.raises(SystemExit):
        rollback.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"file whose first line is the server's token (default: ${VARIABLE})" in said
    assert "closed" not in said


def test_command_line_does_not_warn_of_a_host_that_is_none(tmp_path, capsys):
    assert main(["--model-repository", str(tmp_path / "none"), "--host", "300.1.1.1"]) == 2
    expected = "server: error: host '300.1.1.1' is not an address: use 127.0.0.1 or 0.0.0.0\n"
    assert capsys.readouterr().err == expected


def test_one_repository_alone(capsys):
    assert main(["--model-repository", "a", "--model-repository", "b"]) == 2
    expected = "server: error: --model-repository is given twice (a, b): one server serves one folder\n"
    assert capsys.readouterr().err == expected


def test_a_rollback_without_a_token_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert rollback.main([]) == 2
    assert "no management token: give the server and this command the same" in capsys.readouterr().err


def test_a_word_that_is_no_option_is_not_passed_on(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    expected = f"server: error: {str(tmp_path)!r} is not an option: did you mean --model-repository {tmp_path}?\n"
    assert capsys.readouterr().err == expected
    assert main(["--drain-seconds", "1", "start", "--", "--log-verbose=1"]) == 2
    assert capsys.readouterr().err == "server: error: 'start' is not an option: see --help\n"
    assert main(["--model-repository", str(tmp_path / "none"), "--", "--log-verbose", "1"]) == 1  # goes on
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("drain-seconds", "-1", "0 or more"),
        ("max-restarts", "-1", "0 or more"),
        ("start-timeout", "0", "more than 0"),
        ("probe-interval", "inf", "more than 0"),
        ("probe-timeout", "nan", "more than 0"),
    ],
)
def test_numbers_that_cannot_be(tmp_path, capsys, option, value, least):
    assert main(["--model-repository", str(tmp_path), f"--{option}", value]) == 2
    assert capsys.readouterr().err == f"server: error: --{option} is {value}: give {least}\n"


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("--http-port=9", "give --http-port before --"),
        ("--grpc-port=9", "give --grpc-port before --"),
        ("--metrics-port", "give --metrics-port before --"),
        ("--http-address=127.0.0.1", "give --host before --"),
        ("--grpc-address=127.0.0.1", "give --host before --"),
        ("--metrics-address=127.0.0.1", "give --metrics-host before --"),
        ("--exit-timeout-secs=3", "give --drain-seconds before --"),
        ("--allow-http=false", "leave it out"),
    ],
)
def test_what_the_launcher_knows_tritonserver_by_is_not_passed_on(tmp_path, capsys, option, remedy):
    assert main(["--model-repository", str(tmp_path / "none"), "--", "--log-verbose=1", option, "9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"server: error: {option.partition('=')[0]} cannot be passed on, ")
    assert line.endswith(remedy)

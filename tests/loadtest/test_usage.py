"""Wrong usage that is refused before any load is sent, and its messages."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.__main__ import main

ROOT = Path(__file__).parents[2]
Loadtest = Callable[..., subprocess.CompletedProcess]
Here = Callable[..., tuple[int, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """here("--users", "1") -> the command's status and what it wrote to stderr; it measures nothing, and imports no
    locust, which patches the standard library of its process."""

    def measured(*_: object) -> None:
        pytest.fail("the load generator was measured")

    for module in ("loadtest.__main__", "loadtest.capacity_command"):
        monkeypatch.setattr(f"{module}.null_rate", measured)
    for module in ("locust.main", "locust.argument_parser"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("loadtest.__main__.SIGNALS", ())

    def run(*arguments: str) -> tuple[int, str]:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["--users", "1"],
        ["--seconds", "0"],
        ["--protocol", "smtp"],
        ["--users", "4", "--rate", "3"],
        ["--levels", "1,2"],
        ["--peak", "2"],
        ["--shape", "step", "--users", "4"],
        ["--shape", "step", "--levels", "1,4"],
        ["--shape", "step", "--levels", "0.4", "--protocol", "http"],
        ["--shape", "spike", "--peak", "0.2"],
        ["--shape", "step", "--levels", "1,x"],
        ["--shape", "step", "--levels", "4,8", "--users", "8"],
        ["--top", "0"],
        ["--top", "x"],
        ["--seconds", "x"],
        ["--results", "tests"],
        ["report", "README.md", "report.html"],
        ["--sizes", "4000"],
        ["--images", "none"],
        ["null", "--images", "none"],
        ["null", "--sizes", "4000"],
        ["--report", "no/such/folder/report.html"],
        ["capacity", "--repeats", "0", "--slo", "x"],
        ["capacity", "--precision", "5", "--slo", "x"],
        ["capacity", "--processes", "-1", "--slo", "x"],
        ["null", "--processes", "0"],
        ["--processes", "-5"],
        ["run", "--processes", "0"],
        ["--slo", "no/such/slo.toml"],
        ["capacity", "--slo", "no/such/slo.toml"],
        ["report", "no/such/results.json", "report.html"],
    ],
)
def test_wrong_usage(here: Here, arguments: list[str]) -> None:
    """It is refused before the load generator is measured."""
    status, error = here(*arguments)
    assert status == 2
    assert not re.search(r"invalid \w+ value", error)  # argparse's, with a function's name


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["foo"], ["--csv"]])
def test_wrong_usage_of_locust(loadtest: Loadtest, arguments: list[str]) -> None:
    done = loadtest(*arguments)
    assert done.returncode == 2
    assert "go to a server that does nothing" not in done.stderr


@pytest.mark.parametrize("command", [[], ["capacity", "--slo", "x"]])
@pytest.mark.parametrize(("protocol", "host"), [("grpc", "http://box:9000/"), ("both", "https://gate/way")])
def test_grpcs_port_is_not_guessed(here: Here, command: list[str], protocol: str, host: str) -> None:
    """Port 8001 may be another server's, which would be measured in the place of the one that was named."""
    status, error = here(*command, "--protocol", protocol, "--host", host)
    assert status == 2
    assert f"--host {host} says nothing of gRPC's port: give --grpc-host HOST:PORT too" in error


def test_nor_by_the_locust_command(locust: Loadtest, pictures: Path) -> None:
    done = locust("-t", "1s", "-u", "2", "--host", "box:9000/gate", "--images", str(pictures))
    assert done.returncode == 2
    assert done.stderr.count("loadtest: --host box:9000/gate says nothing of gRPC's port") == 1


def test_an_unknown_option_is_named_and_not_its_value(loadtest: Loadtest) -> None:
    assert loadtest("--url", "box:8001").stderr == "loadtest: --url: not an option of loadtest or locust; see --help\n"


def test_no_images_is_said(locust: Loadtest, loadtest: Loadtest, tmp_path: Path) -> None:
    for done in (
        locust("-t", "1s", "--images", str(tmp_path)),
        loadtest("--null-check", "off", "--images", str(tmp_path)),
    ):
        assert done.returncode == 2
        assert f"loadtest: no image below {tmp_path}: name another folder with --images" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seconds=1"], "--seconds is for --shape or --rate: give one"),
        (["--warm-up=1"], "--warm-up is for --shape or --rate: give one"),
        (["--levels=1,2"], "--levels is for --shape step: give that"),
        (["--shape=step", "--peak=2"], "--peak is for --shape spike: give that"),
    ],
)
def test_options_of_a_shape_need_it(locust: Loadtest, options: list[str], words: str) -> None:
    done = locust("-t", "1s", *options, "--images", "none")
    assert done.returncode == 2
    assert f"loadtest: {words}, or leave it out" in done.stderr


def test_steps_of_locust_need_users(locust: Loadtest, pictures: Path) -> None:
    done = locust("-t", "1s", "--shape", "step", "--images", str(pictures))
    assert done.returncode == 2
    assert "loadtest: warm-up has 0 users: give at least 2, one for each protocol" in done.stderr


@pytest.mark.parametrize("file", ["--report", "--results"])
def test_capacity_looks_for_the_folders_first(here: Here, tmp_path: Path, file: str) -> None:
    (tmp_path / "slo.toml").write_text("[errors]\nrate = 0")
    told = here("capacity", "--slo", str(tmp_path / "slo.toml"), file, "none/r.html")
    assert told == (2, "loadtest: none/r.html cannot be written: no folder none\n")


@pytest.mark.parametrize("text", ["{}", "[1]", '{"runs": []}', "1"])
def test_what_holds_no_results(here: Here, tmp_path: Path, text: str) -> None:
    (tmp_path / "saved.json").write_text(text)
    status, error = here("report", str(tmp_path / "saved.json"), str(tmp_path / "report.html"))
    assert status == 2
    assert "saved.json holds no results: name a file that --results has written" in error


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ([], "locust"),
        (["capacity"], "locust"),
        (["null"], "locust"),
        (["--help"], "locust"),
        (["report", "a.json", "a.html"], "locust, matplotlib"),
        (["capacity", "--report=a.html"], "locust, matplotlib"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(tmp_path: Path, arguments: list[str], needed: str) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(locust=None, matplotlib=None)\n")
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"loadtest needs {needed}: pip install '.[loadtest]' in the checkout\n"

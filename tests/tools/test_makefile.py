"""What make refuses, and the files that it does not remove."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")
    }
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that is set up, for Python 2.7."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 2 7\n")
    python.chmod(0o755)
    (tmp_path / ".ready").touch()
    return tmp_path


@pytest.mark.parametrize(("target", "variable"), [("setup", "VENV"), ("page", "PAGE_VENV")])
def test_an_environment_of_another_python_is_refused(target: str, variable: str, environment: Path) -> None:
    done = make(target, f"{variable}={environment}", f"PYTHON={sys.executable}")
    assert done.returncode == 2
    words = f"widefield: {environment} is of another Python than {sys.executable}: rm -r {environment}"
    assert words in done.stderr.splitlines()
    assert make(target, f"{variable}={environment}").returncode == 0, "none was named"
    (environment / "bin/python").write_text(f"#!/bin/sh\necho {sys.version_info[0]} {sys.version_info[1]}\n")
    assert make(target, f"{variable}={environment}", f"PYTHON={sys.executable}").returncode == 0


@pytest.mark.parametrize("target", ["setup", "check"])
def test_a_python_that_is_not_there_is_named(target: str, environment: Path) -> None:
    done = make(target, f"VENV={environment}", "PYTHON=none")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if not line.startswith("make: ")] == [
        "widefield: there is no Python none: 3.10 to 3.14 are supported; name one: make PYTHON=python3.11"
    ]


@pytest.mark.parametrize(("target", "marked"), [("test", "not gpu and not slow"), ("test-all", "not gpu")])
def test_every_test_runs_once_and_the_client_s_with_coverage(target: str, marked: str, environment: Path) -> None:
    """And both runs are made, though one fails."""
    words = make("-n", target, f"VENV={environment}", f"PAGE_VENV={environment}").stdout
    options = re.findall(r" -m pytest -n 3 (.*?) \|\| failed=1", words)
    assert options == [f'-m "{marked}" --ignore=tests/client', f'-m "{marked}" --cov=client tests/client']


def test_clean_leaves_checkpoints_and_data() -> None:
    taken = {name: " ".join(make("-n", name).stdout.split()) for name in ("clean", "distclean")}
    assert not {"runs", "data"} & set(taken["clean"].split())
    assert taken["distclean"] == f"{taken['clean']} rm -rf runs data"


def test_help_has_a_line_for_every_target() -> None:
    lines = dict(line.split(maxsplit=1) for line in make("help").stdout.splitlines())
    phony = (ROOT / "Makefile").read_text().split(".PHONY: ")[1].partition("\n\n")[0]
    assert lines.keys() == set(phony.replace("\\\n", "").split()) - {"same-python", "same-page-python"}
    assert lines["check"] == "check lint, format, types and import contracts"

"""Programs are found where only root's PATH leads."""

import pytest

from benchmarks.programs import PACKAGES, find_program, missing


@pytest.mark.parametrize("name", PACKAGES)
def test_found_outside_of_path(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("benchmarks.programs.DAEMONS", (str(tmp_path / "sbin"),))
    assert find_program(name) is None
    program = tmp_path / "sbin" / name
    program.parent.mkdir()
    program.touch(mode=0o755)
    assert find_program(name) == str(program)
    assert missing(name) == f"{name} is not installed: apt-get install {PACKAGES[name]}"

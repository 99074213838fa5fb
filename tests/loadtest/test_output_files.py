"""Reports and results that cannot be written."""

import errno
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.options import write_file

Loadtest = Callable[..., subprocess.CompletedProcess]


def test_a_file_that_cannot_be_written_is_an_error(
    loadtest: Loadtest, pictures: Path, counting_server: Callable, tmp_path: Path
) -> None:
    """The exit status says so even if the objective was met; the other file is written."""
    (tmp_path / "slo.toml").write_text("[errors]\nrate = 0")
    saved = tmp_path / "saved.json"
    load = ["--protocol", "http", "--users", "1", "--seconds", "1", "--warm-up", "0", "--null-check", "off"]
    load += ["--images", str(pictures), "--host", counting_server().address, "--slo", str(tmp_path / "slo.toml")]
    for full, other in (("--report", "--results"), ("--results", "--report")):
        saved.unlink(missing_ok=True)
        done = loadtest(*load, full, "/dev/full", other, str(saved))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        line = "loadtest: /dev/full cannot be written (No space left on device): name another file"
        assert line in done.stderr.splitlines()
        assert saved.stat().st_size > 1000


def test_half_a_file_does_not_stay(tmp_path: Path) -> None:
    path, limits = tmp_path / "report.html", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a disk that is full after a kilobyte
    try:
        with pytest.raises(OSError, match=r"report\.html cannot be written \(File too large\): name another file"):
            write_file(path, 2000 * "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()


def test_a_name_that_is_not_utf8_is_written_escaped(tmp_path: Path) -> None:
    """The name may be that of --images."""
    write_file(tmp_path / "report.html", "from caf\udce9")
    assert (tmp_path / "report.html").read_text() == r"from caf\udce9"


def test_a_file_that_cannot_be_opened_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match=r"report\.html cannot be written \(Permission denied\)"):
        write_file(path, "")
    assert path.exists()

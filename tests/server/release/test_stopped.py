"""Ctrl-C and SIGTERM in a release or a rollback: what is live is said, and stays so."""

import errno
import io
import os
import signal
import threading
from typing import ClassVar

import numpy as np
import pytest

from server import release as release_module
from server import rollback as rollback_module
from server.management import Management
from server.versions import Versions

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def handlers():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def options(served, management_token, tmp_path):
    (tmp_path / "token").write_text(management_token)
    options = ["--model-repository", str(served.folder), "--url", served.http_url]
    return [*options, "--management-token-file", str(tmp_path / "token")]


class Interrupted(Management):
    """The signal comes while tritonserver loads, the first time."""

    number: ClassVar[int] = signal.SIGINT
    loads: ClassVar[list[str]] = []

    def load(self, model):
        if not self.loads:  # it is being warmed up then
            threading.Timer(0.3, os.kill, (os.getpid(), self.number)).start()
        self.loads.append("begun")
        super().load(model)
        self.loads.append("ended")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_the_new_version_is_loaded(served, build, load, classify, image, options, monkeypatch, capsys, number):
    monkeypatch.setattr(release_module, "Management", Interrupted)
    monkeypatch.setattr(Interrupted, "number", number)
    monkeypatch.setattr(Interrupted, "loads", [])
    live = served.management.ready_versions("backbone")
    old = classify(served, [image])
    with load():
        assert release_module.main([str(build("slow")), *options]) == 128 + number
    assert served.events == []
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"server.release: stopped: version {live[0]} is live"
    assert Interrupted.loads == ["begun", "ended"] * 2  # never two at once
    assert served.management.ready_versions("backbone") == live == Versions(served.folder).numbers()[-1:]
    np.testing.assert_array_equal(classify(served, [image]), old)


def test_before_anything_was_changed(served, build, options, monkeypatch, capsys):
    """Stopped during the trial: its server ends too."""
    live, before = served.management.ready_versions("backbone"), sorted(served.folder.rglob("*"))
    monkeypatch.setattr(release_module, "check_answers", lambda address: os.kill(os.getpid(), signal.SIGINT))
    assert release_module.main([str(build()), *options]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"stopped: version {live[0]} is live")
    assert sorted(served.folder.rglob("*")) == before


def test_in_a_rollback(served, build, options, monkeypatch, capsys):
    assert release_module.main([str(build()), *options]) == 0
    live = served.management.ready_versions("backbone")
    answers = release_module.check_answers

    def interrupted(address):
        monkeypatch.setattr(release_module, "check_answers", answers)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(release_module, "check_answers", interrupted)
    assert rollback_module.main(options) == 143
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"server.rollback: stopped: version {live[0]} is live"
    assert served.management.ready_versions("backbone") == live == Versions(served.folder).numbers()[-1:]
    assert rollback_module.main(options) == 0


def test_an_error_of_the_file_system_does_not_hide_what_is_live(served, build, options, monkeypatch, capsys):
    """Somebody builds in place meanwhile, so that the number is taken."""
    live = served.management.ready_versions("backbone")
    folder = Versions(served.folder).folder(Versions(served.folder).unused_number())
    answers = release_module.check_answers

    def build_in_place(address):
        monkeypatch.setattr(release_module, "check_answers", answers)
        (folder / "another").mkdir(parents=True)

    monkeypatch.setattr(release_module, "check_answers", build_in_place)
    assert release_module.main([str(build()), *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Directory not empty" in said
    assert said.endswith(f"; version {live[0]} is live")
    assert (folder.parent / f".{folder.name}.withdrawn" / "another").is_dir()
    assert served.management.ready_versions("backbone") == live


def test_what_is_done_is_done_though_nobody_reads_it(options, monkeypatch, capsys):
    """A script that was told "not released" would do it once more."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    parsed = release_module.parser_of("server.release", None).parse_args(options)
    assert release_module.run(parsed, "release", "released", lambda management, say: "version 2 is live") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("again", [False, True])
def test_while_a_server_that_went_away_is_waited_for(tmp_path, monkeypatch, capsys, again):
    """Or while it is asked what it serves."""
    (tmp_path / "backbone" / "3").mkdir(parents=True)
    if again:
        monkeypatch.setattr(
            Management, "ready_versions", lambda management, model: os.kill(os.getpid(), signal.SIGTERM)
        )
    options = ["--model-repository", str(tmp_path), "--url", "127.0.0.1:1", "--management-token", "token"]
    parsed = release_module.parser_of("server.release", None).parse_args(options)

    def action(management, say):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return release_module.restore(management, 3, say)

    assert release_module.run(parsed, "release", "released", action) == 130
    waits, stopped = capsys.readouterr().err.splitlines()
    assert waits.startswith("server.release: waiting 120 s at most for the server to serve version 3 (")
    assert stopped.startswith("server.release: stopped: version 3 is in place; ")
    expected = "what the server serves was not asked" if again else "no server answers over HTTP at 127.0.0.1:1 ("
    assert expected in stopped

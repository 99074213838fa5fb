"""A server's private folder: nobody cleans it while the server lives, and the next start cleans up what was killed."""

import fcntl
import os
import shutil
import tempfile
import time

import pytest

from server.locate import find_tritonserver
from server.private_folder import MARK, NEW_SECONDS, PREFIX, PrivateFolder
from server.release import staged
from server.repository import Repository
from server.runtime import Runtime
from server.tune import copied


def age(folder):
    then = time.time() - NEW_SECONDS - 1
    os.utime(folder, (then, then))


def killed(folder):
    """A folder as SIGKILL leaves it: complete, and without its lock."""
    (folder.path / MARK).touch()
    folder._unlock()
    age(folder.path)
    return folder.path


def test_locked_while_it_is_there(tmp_path, monkeypatch):
    """systemd-tmpfiles takes the lock of a folder before it looks for what is old there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runtime = Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))
    handles = [os.open(folder, os.O_RDONLY) for folder in (runtime.folder, tmp_path)]  # the second for build_models.py
    for handle in handles:
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    runtime.remove()
    for handle in handles:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
    runtime.remove()  # once more, as `stop` may: that number may be another file's by now
    assert list(tmp_path.iterdir()) == []


def test_what_was_killed_is_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))
    left = killed(PrivateFolder(str(tmp_path)))
    age(first.folder)
    second = Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))
    assert not left.exists()
    assert (first.folder / "backends").is_dir()  # that server lives
    first.remove()
    second.remove()


def test_ctrl_c_while_it_is_removed_leaves_nothing(tmp_path, monkeypatch):
    folder, remove = PrivateFolder(str(tmp_path)), shutil.rmtree
    (folder.path / MARK).touch()

    def interrupted(path, **how):
        monkeypatch.setattr(shutil, "rmtree", remove)
        (path / MARK).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["release", "tune"])
def test_what_a_killed_command_left_is_removed_at_its_next_start(tmp_path, monkeypatch, command):
    """Its links are removed, not the files that they point to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    version = tmp_path / "repository" / "backbone" / "1"
    version.mkdir(parents=True)
    (version / "model.pt").touch()

    def stage():
        return staged(tmp_path / "repository", version, 2) if command == "release" else copied(tmp_path / "repository")

    with stage() as left:
        kept = shutil.copytree(left, tmp_path / f"widefield-{command}-12345678" / "models", symlinks=True)
    (kept.parent / "backbone").mkdir()
    age(kept.parent)
    with stage():
        assert not kept.parent.exists()
        assert len(list(tmp_path.glob("widefield-*"))) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "repository"]
    assert (version / "model.pt").exists()


@pytest.mark.parametrize("kind", ["new", "another's", "unmarked", "another name", "a link", "a pipe"])
def test_what_may_not_be_ours_stays(tmp_path, monkeypatch, kind):
    path = killed(PrivateFolder(str(tmp_path)))
    if kind == "new":
        os.utime(path)
    elif kind == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    elif kind == "unmarked":
        (path / MARK).unlink()
        age(path)
    elif kind == "another name":
        path = path.rename(tmp_path / f"{PREFIX}of-mine")
    elif kind == "a link":
        link = tmp_path / f"{PREFIX}abcd_123"
        link.symlink_to(path.rename(tmp_path / "mine"))
        path = link
    else:
        path = tmp_path / f"{PREFIX}abcd_123"
        os.mkfifo(path)  # to open it for reading would be to wait for a writer
    PrivateFolder(str(tmp_path)).remove()
    assert path.exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refused(handle, how):
        raise OSError("No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    folder = PrivateFolder(str(tmp_path))
    (folder.path / MARK).touch()
    age(folder.path)
    PrivateFolder(str(tmp_path)).remove()
    assert folder.path.exists()
    folder.remove()

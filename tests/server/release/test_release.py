"""A new version goes live, or is refused, on a real server under load, and no request fails."""

import concurrent.futures
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc

from server import ReleaseError, TritonServer
from server.management import Management
from server.release import release
from server.rollback import rollback
from server.versions import Versions

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[3]


def test_release_and_rollback_under_load(served, build, load, classify, image):
    live = served.management.ready_versions("backbone")[-1]
    old = classify(served, [image]).max()
    with load() as asked:
        assert release(build(), served.folder, served.management, None, print) == live + 1
        new = classify(served, [image]).max()
        assert new > old + 0.05
        asked.wait()
        assert rollback(served.folder, served.management, print) == (live + 1, live)
        assert classify(served, [image]).max() == pytest.approx(old)
    assert set(asked.answers) == {round(float(old), 3), round(float(new), 3)}
    assert served.restarts == 0


def test_an_old_version_that_stays_is_no_failure(served, build, monkeypatch):
    def refused(versions, kept):
        raise PermissionError(13, "Permission denied", "backbone/1")

    monkeypatch.setattr(Versions, "remove_all_but", refused)
    said = []
    new = release(build(), served.folder, served.management, None, said.append)
    assert served.management.ready_versions("backbone") == [new]
    expected = f"version {new} is live; an old one could not be removed ([Errno 13] Permission denied: 'backbone/1')"
    assert said[1:] == [expected]
    rollback(served.folder, served.management, print)


def test_a_request_in_flight_is_answered_by_the_version_that_took_it(
    light_repository, tmp_path, sleep, management_token
):
    """The supervisor does not take the end of the old version's processes for a failure."""
    root = shutil.copytree(light_repository, tmp_path / "light", ignore=shutil.ignore_patterns("__pycache__"))
    with (
        TritonServer(root, management_token=management_token) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        management = Management(server.http_url, management_token, 60)
        request = pool.submit(sleep, server.grpc_url, 4.0)
        time.sleep(0.5)
        shutil.copytree(root / "sleepy" / "1", root / "sleepy" / "2")
        management.load("sleepy")
        assert management.ready_versions("sleepy") == [2]
        assert sleep(server.grpc_url, 0.0) == 0.0
        assert not request.done()
        assert request.result(60) == 4.0
        assert not server.wait(1.5)
        assert server.restarts == 0


def test_a_restart_serves_the_live_version(served, build, classify, image, management_token):
    """The commands as they are typed, and kill -9 of tritonserver after each."""
    options = ["--model-repository", str(served.folder), "--url", served.http_url]
    token = served.folder.parent / "token"
    token.write_text(f"{management_token}\n")

    def command(*words):
        done = subprocess.run(
            [sys.executable, "-m", *words, *options, "--management-token-file", str(token)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    old = classify(served, [image])
    live, new = Versions(served.folder).numbers()[-1], Versions(served.folder).unused_number()
    for words, expected in (
        (["server.release", str(build())], new),
        (["server.rollback"], live),
    ):
        assert f"version {expected} is live" in command(*words)
        answer, restarts = classify(served, [image]), served.restarts
        psutil.Process(served._process.guard.pid).children()[0].kill()
        deadline = time.monotonic() + 60
        while served.restarts == restarts or not served.ready:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert served.management.ready_versions("backbone") == [expected]
        np.testing.assert_array_equal(classify(served, [image]), answer)
    np.testing.assert_array_equal(answer, old)


def test_nothing_to_go_back_to(served):
    versions = Versions(served.folder)
    older = versions.numbers()[:-1]
    for number in older:
        shutil.rmtree(versions.folder(number))
    with pytest.raises(ReleaseError, match="nothing to go back to"):
        rollback(served.folder, served.management, print)


def test_withdrawn_versions(tmp_path):
    """Numbers are not used again; what is hidden gives way to a newer one; the newest are kept."""
    model = tmp_path / "backbone"
    for name in ("1", "2", "3", "4", "notes"):
        (model / name).mkdir(parents=True)
        (model / name / "file").write_text(name)
    versions = Versions(tmp_path)
    versions.withdraw(4)
    versions.withdraw(9)  # not there
    assert (versions.numbers(), versions.unused_number()) == ([1, 2, 3], 5)
    (model / "4").mkdir()  # another one, built in place
    (model / "4" / "other").touch()
    versions.withdraw(4)
    assert not (model / ".4.withdrawn" / "file").exists()
    versions.withdraw(3)
    versions.bring_back(3)
    versions.bring_back(3)  # it is there: it could not be withdrawn
    assert (model / "3" / "file").read_text() == "3"
    versions.withdraw(3)
    (model / "5").mkdir()
    (model / "5" / "file").touch()
    versions.withdraw(5, keep=False)
    assert list((model / ".5.withdrawn").iterdir()) == []
    assert versions.unused_number() == 6
    versions.remove_all_but(1)
    assert sorted(each.name for each in model.iterdir()) == [".4.withdrawn", "2", "notes"]


def test_what_a_killed_release_has_copied_gives_way(tmp_path):
    for name in ("backbone/.incoming/old", "built/new"):
        (tmp_path / name).mkdir(parents=True)
    with Versions(tmp_path).incoming(tmp_path / "built") as copy:
        assert [each.name for each in copy.iterdir()] == ["new"]
    assert not copy.exists()


def test_the_embedded_server_reads_the_config_that_is_its_own(served, management_token):
    key = {"triton-grpc-protocol-widefield-management": management_token}
    with triton_grpc.InferenceServerClient(served.grpc_url) as client:
        batching = client.get_model_config("backbone", headers=key).config.dynamic_batching
    assert list(batching.preferred_batch_size) == [4]

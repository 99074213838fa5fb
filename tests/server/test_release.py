"""A new version goes live, or is refused, on a real server under load, and no request fails."""

import concurrent.futures
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from server import ReleaseError, RepositoryError, ServerError, TritonServer
from server import release as release_module
from server.management import Management
from server.release import release, rollback
from server.versions import Versions

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
TOKEN = "s3cret"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """kind -> TorchScript bytes: "sharp" answers otherwise than version 1, the others are no good."""
    import torch

    class Sharp(torch.nn.Module):
        def forward(self, pixels):
            return pixels.to(torch.float32).mean(dim=(1, 2)) / 8.0

    class NotANumber(torch.nn.Module):
        def forward(self, pixels):
            return pixels.to(torch.float32).mean(dim=(1, 2)) * float("nan")

    class FourClasses(torch.nn.Module):
        def forward(self, pixels):
            return torch.zeros([pixels.size(0), 4])

    folder = tmp_path_factory.mktemp("weights")
    made = {"garbage": b"no archive"}
    for kind, model in {
        "sharp": Sharp(),
        "nan": NotANumber(),
        "four classes": FourClasses(),
    }.items():
        torch.jit.script(model).save(str(folder / "model.pt"))
        made[kind] = (folder / "model.pt").read_bytes()
    return made


@pytest.fixture
def build(repository, weights, tmp_path):
    """build(kind) -> a repository as build_models.py leaves it, with these weights and their checksums."""

    def run(kind="sharp"):
        root = shutil.copytree(repository, tmp_path / "built")
        version = root / "backbone" / "1"
        (version / "model.pt").write_bytes(weights[kind])
        digest = hashlib.sha256(weights[kind]).hexdigest()
        (version / "build.json").write_text(json.dumps({"files_sha256": {"model.pt": digest}}))
        return root

    return run


@pytest.fixture(scope="module")
def served(repository, tmp_path_factory):
    """A server with a management token, and its own repository."""
    root = tmp_path_factory.mktemp("served") / "models"
    shutil.copytree(repository, root, ignore=shutil.ignore_patterns("__pycache__"))
    with TritonServer(root, management_token=TOKEN, probe_interval=0.5) as server:
        server.management = Management(server.http_url, TOKEN, 60)
        server.folder = root
        yield server


class Load:
    """Four clients that ask without a pause, two by gRPC and two by HTTP; what they got."""

    def __init__(self, server, image):
        self.server, self.image = server, image
        self.answers, self.failures = [], []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(index % 2 == 0,), daemon=True) for index in range(4)]

    def run(self, by_grpc):
        module, url = (triton_grpc, self.server.grpc_url) if by_grpc else (triton_http, self.server.http_url)
        with module.InferenceServerClient(url) as client:
            tensor = module.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[self.image]], dtype=np.object_))
            while not self.stopping.is_set():
                try:
                    answer = client.infer("classifier", [tensor]).as_numpy("probabilities")
                    self.answers.append(round(float(answer.max()), 3))
                except Exception as error:
                    self.failures.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.wait()
        return self

    def wait(self):
        """Until as many again have been answered: by every client."""
        enough = len(self.answers) + 40
        deadline = time.monotonic() + 30
        while len(self.answers) < enough and not self.failures:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __exit__(self, *error):
        self.wait()
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)


@pytest.fixture
def image(encode):
    return encode((100, 90, 80))  # so that both versions' probabilities are far from 0 and 1


@pytest.fixture
def load(served, image):
    """load(): no request may fail while it runs."""
    loads = []

    def run():
        loads.append(Load(served, image))
        return loads[-1]

    yield run
    assert loads
    for each in loads:
        assert each.failures == []
        assert len(each.answers) >= 80


def say(line):
    pass


def test_release_and_rollback_under_load(served, build, load, classify, image):
    live = served.management.ready_versions("backbone")[-1]
    old = classify(served, [image]).max()
    with load() as asked:
        assert release(build(), served.folder, served.management, None, say) == live + 1
        new = classify(served, [image]).max()
        assert new > old + 0.05
        asked.wait()
        assert rollback(served.folder, served.management) == (live + 1, live)
        assert classify(served, [image]).max() == pytest.approx(old)
    assert set(asked.answers) == {round(float(old), 3), round(float(new), 3)}
    assert served.restarts == 0


REFUSED = {  # a harm to a good build -> what the refusal says
    "truncated": (
        lambda root: (root / "backbone/1/model.pt").write_bytes((root / "backbone/1/model.pt").read_bytes()[:-9]),
        "is not what was built",
    ),
    "no checksums": (lambda root: (root / "backbone/1/build.json").unlink(), "no checksums to compare it with"),
    "label count": (
        lambda root: (root / "classifier/labels.txt").write_text("red\ngreen\n"),
        "has 2 labels for 3 classes",
    ),
    "labels": (lambda root: (root / "classifier/labels.txt").write_text("a\nb\nc\n"), "labels.txt differs"),
    "classes": (
        lambda root: edit(root / "backbone/config.pbtxt", "dims: [3]", "dims: [4]"),
        r"logits\[4\], not logits\[3\]",
    ),
    "half a config": (lambda root: edit(root / "backbone/config.pbtxt", "]", ""), "config.pbtxt cannot be read"),
    "preparation": (lambda root: edit(root / "preprocess/config.pbtxt", "36", "40"), "prepares images otherwise"),
    "code": (lambda root: edit(root / "preprocess/1/model.py", "import", "import  "), "model.py differs"),
    "no model": (lambda root: shutil.rmtree(root / "softmax"), "softmax/config.pbtxt cannot be read"),
}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_what_does_not_fit_is_refused(served, build, load):
    """Each before anything is touched."""
    before = sorted(served.folder.rglob("*"))
    with load() as asked:
        for harm, message in REFUSED.values():
            root = build()
            harm(root)
            with pytest.raises(ServerError, match=message) as refused:
                release(root, served.folder, served.management, None, say)
            assert isinstance(refused.value, ReleaseError | RepositoryError)
            shutil.rmtree(root)
    assert sorted(served.folder.rglob("*")) == before
    assert len(set(asked.answers)) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "canary image"),
        pytest.param("four classes", r"Expected \[-1,3\], got \[1,4\]", marks=pytest.mark.slow),
        ("garbage", "is damaged"),
    ],
)
def test_weights_that_do_not_work_never_go_live(served, build, load, kind, message):
    """Their checksums are right. The proof on a server of its own finds them."""
    before = sorted(served.folder.rglob("*"))
    with load() as asked, pytest.raises(ServerError, match=message):
        release(build(kind), served.folder, served.management, None, say)
    assert sorted(served.folder.rglob("*")) == before
    assert len(set(asked.answers)) == 1


class NoProof:
    """In the place of the proof's server, for what only the live one shows."""

    def __init__(self, server):
        self.http_url = server.http_url

    def __call__(self, *arguments, **options):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"canary image .*; version \d+ is live"),
        ("garbage", r"load failed .*PytorchStreamReader.*; version \d+ is live"),
    ],
)
def test_the_old_version_comes_back_by_itself(served, build, monkeypatch, classify, image, kind, message):
    monkeypatch.setattr(release_module, "TritonServer", NoProof(served))
    monkeypatch.setattr(release_module, "read_repository", lambda path: None)
    live = served.management.ready_versions("backbone")
    old = classify(served, [image])
    with pytest.raises(ReleaseError, match=message):
        release(build(kind), served.folder, served.management, None, say)
    assert served.management.ready_versions("backbone") == live
    np.testing.assert_array_equal(classify(served, [image]), old)
    assert served.restarts == 0


class Fatal(Management):
    """tritonserver dies of the first load."""

    def __init__(self, server):
        super().__init__(server.http_url, TOKEN, 60)
        self.victims = psutil.Process(server._process.guard.pid).children()

    def load(self, model):
        if self.victims:
            self.victims.pop().kill()
        super().load(model)


@pytest.mark.slow
def test_a_server_that_dies_of_the_new_version_comes_back_with_the_old_one(served, build, monkeypatch, classify, image):
    monkeypatch.setattr(release_module, "TritonServer", NoProof(served))
    live, restarts = served.management.ready_versions("backbone"), served.restarts
    old = classify(served, [image])
    with pytest.raises(ReleaseError, match=r"; version \d+ is live"):
        release(build(), served.folder, Fatal(served), None, say)
    assert served.management.ready_versions("backbone") == live
    np.testing.assert_array_equal(classify(served, [image]), old)
    assert served.restarts == restarts + 1


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
    versions.withdraw(4)
    assert not (model / ".4.withdrawn" / "file").exists()
    versions.withdraw(3)
    versions.bring_back(3)
    assert (model / "3" / "file").read_text() == "3"
    versions.withdraw(3)
    versions.remove_all_but(1)
    assert sorted(each.name for each in model.iterdir()) == [".4.withdrawn", "2", "notes"]


def test_a_version_that_cannot_be_loaded_fails_no_request(served, build, load, monkeypatch):
    """Only the live server refuses it: tritonserver keeps what it serves until the new version is up."""
    monkeypatch.setattr(release_module, "TritonServer", NoProof(served))
    monkeypatch.setattr(release_module, "read_repository", lambda path: None)
    with load(), pytest.raises(ReleaseError, match="load failed"):
        release(build("garbage"), served.folder, served.management, None, say)


def test_a_request_in_flight_is_answered_by_the_version_that_took_it(light_repository, tmp_path, sleep):
    """And the supervisor takes the end of the old version's processes for no death."""
    root = shutil.copytree(light_repository, tmp_path / "light", ignore=shutil.ignore_patterns("__pycache__"))
    with TritonServer(root, management_token=TOKEN) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        management = Management(server.http_url, TOKEN, 60)
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


def test_a_restart_serves_the_live_version(served, build, classify, image):
    """The commands as they are typed, and kill -9 of tritonserver after each."""
    options = ["--model-repository", str(served.folder), "--url", served.http_url]
    token = served.folder.parent / "token"
    token.write_text(f"{TOKEN}\n")

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


def test_what_a_command_says_when_it_cannot(served, build, tmp_path, repository):
    built = build()
    with pytest.raises(ReleaseError, match="refuses the token: give the server and this command the same"):
        release(built, served.folder, Management(served.http_url, "wrong", 5), None, say)
    with pytest.raises(ReleaseError, match="Connection refused"):
        release(built, served.folder, Management("127.0.0.1:1", TOKEN, 5), None, say)
    other = shutil.copytree(repository, tmp_path / "other")
    (other / "backbone" / "1").rename(other / "backbone" / "99")
    with pytest.raises(ReleaseError, match=r"serves version \d+ of backbone and the newest in .* is 99"):
        release(built, other, served.management, None, say)
    with pytest.raises(ReleaseError, match="is the served repository"):
        release(served.folder, served.folder, served.management, None, say)
    with (
        Versions(served.folder).locked(),
        pytest.raises(ReleaseError, match="another release or rollback"),
    ):
        rollback(served.folder, served.management)


def test_nothing_to_go_back_to(served):
    versions = Versions(served.folder)
    older = versions.numbers()[:-1]
    for number in older:
        shutil.rmtree(versions.folder(number))
    with pytest.raises(ReleaseError, match="nothing to go back to"):
        rollback(served.folder, served.management)

"""A new version that is refused, before it is live or as soon as it is, on a real server under load."""

import errno
import json
import os
import shutil
from contextlib import nullcontext

import numpy as np
import psutil
import pytest

from server import ReleaseError, RepositoryError, ServerError
from server import release as release_module
from server import rollback as rollback_module
from server.canary import CanaryBusyError, CanaryError
from server.compatibility import check_compatible, check_running
from server.management import Management
from server.release import release
from server.rollback import rollback
from server.versions import Versions
from tests.full_disk import files_up_to

pytestmark = pytest.mark.server


REFUSED = {  # a harm to a good build -> what the refusal says
    "truncated": (
        lambda root: (root / "backbone/1/model.pt").write_bytes((root / "backbone/1/model.pt").read_bytes()[:-9]),
        r"is not what was built \(.*\): build it again$",  # without build.json it would be refused too
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
    "preparation": (
        lambda root: edit(root / "preprocess/config.pbtxt", "36", "40"),
        r"does not prepare images as .* does \(resize_size 40, not 36\): serve",
    ),
    "code": (lambda root: edit(root / "preprocess/1/model.py", "import", "import  "), "model.py differs"),
    "no model": (lambda root: shutil.rmtree(root / "softmax"), "softmax/config.pbtxt cannot be read"),
}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_tensor_that_one_of_them_lacks_is_named(build, repository):
    path = build() / "backbone/config.pbtxt"
    edit(path, "output [", 'output [{ name: "class_map" data_type: TYPE_FP32 dims: [7, 7] },')
    with pytest.raises(ReleaseError, match=r"output differs .* \(class_map is new: build without --class-map\): "):
        check_compatible(path.parents[1], repository)
    with pytest.raises(ReleaseError, match=r"output differs .* \(class_map is missing: build with --class-map\): "):
        check_compatible(repository, path.parents[1])
    edit(path, "class_map", "features")
    with pytest.raises(ReleaseError, match=r"\(features is new\): "):
        check_compatible(path.parents[1], repository)
    with pytest.raises(ReleaseError, match=r"\(features is missing\): "):
        check_compatible(repository, path.parents[1])


@pytest.mark.parametrize(
    ("model", "old", "new", "part"),
    [
        ("backbone", 'backend: "pytorch"', 'backend: "onnxruntime"', "backend"),
        ("classifier", 'platform: "ensemble"', "", "platform"),
        ("classifier", "model_version: -1", "model_version: 1", "ensemble_scheduling"),
    ],
)
def test_another_way_to_the_answer_is_named(build, repository, model, old, new, part):
    path = build() / model / "config.pbtxt"
    edit(path, old, new)
    with pytest.raises(ReleaseError, match=rf"built/{model}: its {part} differs from what .* serves: serve it as"):
        check_compatible(path.parents[1], repository)


def test_a_label_is_a_line_as_tritonserver_reads_it(build, repository):
    """tritonserver splits labels.txt only at newlines."""
    root = build()
    edit(root / "classifier/labels.txt", "red", "r\red")
    with pytest.raises(ReleaseError, match=r"labels\.txt differs from the one"):
        check_compatible(root, repository)


@pytest.mark.parametrize("name", ["max_pixels", "max_file_bytes"])
def test_limits_are_no_preparation(served, build, name):
    """docs/operations.md has them lowered: the served configs' hold on, and the same images get the same pixels."""
    path = build() / "preprocess/config.pbtxt"
    path.write_text(f'{path.read_text()}parameters {{ key: "{name}" value {{ string_value: "1000000" }} }}\n')
    check_compatible(path.parents[1], served.folder)
    check_compatible(served.folder, path.parents[1])


def test_configs_that_were_changed_since_the_start_are_told_to_need_a_restart(served, build, load):
    """server.tune changes them: the backbone would take smaller batches, and the ensemble above it would end."""
    paths = [path for name in ("backbone", "classifier") for path in (served.folder / name).rglob("*.pbtxt")]
    before = {path: path.read_text() for path in paths}
    try:
        for path in paths:
            edit(path, "max_batch_size: 16", "max_batch_size: 4")
        with load() as asked:
            for change in (
                lambda: release(build(), served.folder, served.management, None, print),
                lambda: rollback(served.folder, served.management, print),
            ):
                with pytest.raises(ReleaseError, match=r"changed since the server started \(max_batch_size\): restart"):
                    change()
        assert len(set(asked.answers)) == 1
    finally:
        for path, text in before.items():
            path.write_text(text)


def test_the_config_that_another_server_reads_may_differ(tmp_path):
    """The embedded server's, or the container's: a load reads one of them."""
    (tmp_path / "backbone/configs").mkdir(parents=True)
    for file, size in (("config.pbtxt", 16), ("configs/embedded.pbtxt", 8)):
        (tmp_path / "backbone" / file).write_text(f"max_batch_size: {size}\n")
        check_running(tmp_path, lambda name, size=size: {"max_batch_size": size})
    check_running(tmp_path, lambda name: {"max_batch_size": 16})
    with pytest.raises(ReleaseError, match=r"changed since the server started \(max_batch_size\)"):
        check_running(tmp_path, lambda name: {"max_batch_size": 4})


def test_what_does_not_fit_is_refused(served, build, load):
    """Each before anything is touched."""
    before = sorted(served.folder.rglob("*"))
    with load() as asked:
        for harm, message in REFUSED.values():
            root = build()
            harm(root)
            with pytest.raises(ServerError, match=message) as refused:
                release(root, served.folder, served.management, None, print)
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
        release(build(kind), served.folder, served.management, None, print)
    assert sorted(served.folder.rglob("*")) == before
    assert len(set(asked.answers)) == 1


class NoProof:
    """A stand-in for the separate server of the trial, for errors that only the live one shows."""

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
    monkeypatch.setattr(release_module, "read_repository", lambda path, suggest_removal: None)
    live = served.management.ready_versions("backbone")
    old = classify(served, [image])
    with pytest.raises(ReleaseError, match=message):
        release(build(kind), served.folder, served.management, None, print)
    versions = Versions(served.folder)
    left = versions.model / f".{versions.unused_number() - 1}.withdrawn"
    assert os.listdir(left) == []  # its number stays taken
    assert served.management.ready_versions("backbone") == live
    np.testing.assert_array_equal(classify(served, [image]), old)
    assert served.restarts == 0


class Fatal(Management):
    """tritonserver dies of the first load."""

    def __init__(self, server, token):
        super().__init__(server.http_url, token, 60)
        self.victims = psutil.Process(server._process.guard.pid).children()

    def load(self, model):
        if self.victims:
            self.victims.pop().kill()
        super().load(model)


@pytest.mark.slow
def test_a_server_that_dies_of_the_new_version_comes_back_with_the_old_one(
    served, build, monkeypatch, classify, image, management_token
):
    monkeypatch.setattr(release_module, "TritonServer", NoProof(served))
    live, restarts = served.management.ready_versions("backbone"), served.restarts
    old = classify(served, [image])
    with pytest.raises(ReleaseError, match=r"; version \d+ is live"):
        release(build(), served.folder, Fatal(served, management_token), None, print)
    assert served.management.ready_versions("backbone") == live
    np.testing.assert_array_equal(classify(served, [image]), old)
    assert served.restarts == restarts + 1


def test_a_version_that_cannot_be_loaded_fails_no_request(served, build, load, monkeypatch):
    """Only the live server refuses it: tritonserver keeps what it serves until the new version is up."""
    monkeypatch.setattr(release_module, "TritonServer", NoProof(served))
    monkeypatch.setattr(release_module, "read_repository", lambda path, suggest_removal: None)
    with load(), pytest.raises(ReleaseError, match="load failed"):
        release(build("garbage"), served.folder, served.management, None, print)


def test_a_server_of_another_folder_is_noticed(served, build, monkeypatch, tmp_path):
    """A copy has the same configs and versions: only what the server says after the load tells them apart."""
    monkeypatch.setattr(release_module, "TritonServer", NoProof(served))
    live = served.management.ready_versions("backbone")
    other = Versions(shutil.copytree(served.folder, tmp_path / "other"))
    number, before = other.unused_number(), other.numbers()
    message = rf"has not taken version {number}: does it serve this repository\?; version {live[0]} is live"
    with pytest.raises(ReleaseError, match=message):
        release(build(), other.model.parent, served.management, None, print)
    assert other.numbers() == before


def test_a_copy_that_differs_is_not_proved(repository, build, monkeypatch, tmp_path):
    """A disk may damage a copy: weights can be damaged and give probabilities all the same."""
    served, built = shutil.copytree(repository, tmp_path / "served"), build()
    copytree = shutil.copytree

    def harmed(source, target):
        copytree(source, target)
        (target / "model.pt").write_bytes((served / "backbone/1/model.pt").read_bytes())

    monkeypatch.setattr(release_module, "check_live", lambda versions, management: 1)
    monkeypatch.setattr(shutil, "copytree", harmed)
    with pytest.raises(RepositoryError, match=r"\.incoming/model\.pt is not what was built"):
        release(built, served, None, None, print)
    assert sorted(os.listdir(served / "backbone")) == sorted(os.listdir(repository / "backbone"))


def test_a_version_that_has_changed_since_does_not_come_back(monkeypatch, tmp_path):
    for name in ("1", "2"):
        (tmp_path / "backbone" / name).mkdir(parents=True)
    (tmp_path / "backbone/1/model.pt").touch()
    (tmp_path / "backbone/1/build.json").write_text(json.dumps({"files_sha256": {"model.pt": "0" * 64}}))
    monkeypatch.setattr(rollback_module, "check_live", lambda versions, management: 2)
    with pytest.raises(RepositoryError, match=r"backbone/1/model\.pt is not what was built"):
        rollback(tmp_path, None, print)
    assert Versions(tmp_path).numbers() == [1, 2]


def test_a_rollback_goes_back_by_one(monkeypatch, tmp_path):
    for name in ("1", "2", "10"):
        (tmp_path / "backbone" / name).mkdir(parents=True)
    went = []
    monkeypatch.setattr(rollback_module, "check_live", lambda versions, management: 10)
    monkeypatch.setattr(rollback_module, "switch", lambda management, wanted, before, *_: went.append((wanted, before)))
    assert rollback(tmp_path, None, print) == (10, 2)
    assert went == [(2, 10)]


def test_a_copy_that_fails_is_one_line(repository, tmp_path):
    served = shutil.copytree(repository, tmp_path / "served")
    source = repository / "backbone" / "1"
    with files_up_to(100), pytest.raises(ReleaseError) as error, Versions(served).incoming(source):
        pass
    assert str(error.value).startswith(f"{source} cannot be copied into {served}/backbone ([Errno 27] File too large")
    assert str(error.value).endswith("): raise the limit on a file's size (ulimit -f)")
    assert sorted(os.listdir(served / "backbone")) == sorted(os.listdir(repository / "backbone"))


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room there, or have the quota raised"),
        (errno.EROFS, "mount it writable"),
        (errno.EACCES, "fix that, or release as a user who may read the one and write the other"),
    ],
)
@pytest.mark.parametrize("where", [(os, "makedirs"), (shutil, "copyfile")])  # the folder, a file in it
def test_the_remedy_for_a_copy_that_fails_is_the_reasons(repository, tmp_path, monkeypatch, where, code, remedy):
    def refused(*arguments, **options):
        raise OSError(code, os.strerror(code), "a path")

    source = repository / "backbone" / "1"
    (tmp_path / "backbone").mkdir()
    monkeypatch.setattr(*where, refused)
    with pytest.raises(ReleaseError) as error, Versions(tmp_path).incoming(source):
        pass
    assert str(error.value).endswith(f"([Errno {code}] {os.strerror(code)}: 'a path'): {remedy}")


def test_what_a_command_says_when_it_cannot(served, build, tmp_path, repository, management_token):
    built = build()
    with pytest.raises(ReleaseError, match="refuses the token: give the server and this command the same"):
        release(built, served.folder, Management(served.http_url, "wrong", 5), None, print)
    with pytest.raises(ReleaseError, match="Connection refused"):
        release(built, served.folder, Management("127.0.0.1:1", management_token, 5), None, print)
    other = shutil.copytree(repository, tmp_path / "other")
    (other / "backbone" / "1").rename(other / "backbone" / "99")
    with pytest.raises(ReleaseError, match=r"serves version \d+ of backbone and the newest in .* is 99"):
        release(built, other, served.management, None, print)
    with pytest.raises(ReleaseError, match="is the served repository"):
        release(served.folder, served.folder, served.management, None, print)
    with (
        Versions(served.folder).locked(),
        pytest.raises(ReleaseError, match="another build, release or rollback"),
    ):
        rollback(served.folder, served.management, print)


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ([0.25, 0.75], None),
        ([0.25, 0.7], "got values that are not probabilities: \\[0.25, 0.7\\]"),
        ([float("nan"), 1.0], "not probabilities"),
        (["NaN", 1.0], "not probabilities"),
        (CanaryError("it is grey"), "was not classified: it is grey"),
        (CanaryBusyError("busy"), None),
    ],
)
def test_the_canary_images_answer(monkeypatch, values, refused):
    """A server that is busy is asked again."""
    answers = [values, [0.25, 0.75]]

    def classify_canary(*arguments):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [{"name": "probabilities", "data": answer}]

    monkeypatch.setattr(release_module, "classify_canary", classify_canary)
    with nullcontext() if refused is None else pytest.raises(ReleaseError, match=refused):
        release_module.check_answers("127.0.0.1:1")
    assert len(answers) == (0 if isinstance(values, CanaryBusyError) else 1)


def test_a_server_that_stays_busy_is_not_asked_for_ever(monkeypatch):
    def busy(address, model, timeout):
        raise CanaryBusyError("Exceeds maximum queue size")

    monkeypatch.setattr(release_module, "BUSY_SECONDS", 0.3)
    monkeypatch.setattr(release_module, "classify_canary", busy)
    with pytest.raises(ReleaseError, match="the canary image got no answer: Exceeds maximum queue size"):
        release_module.check_answers("127.0.0.1:1")


def test_a_server_that_stays_away_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(release_module, "AGAIN_SECONDS", 0.7)
    said = []
    state = release_module.restore(Management("127.0.0.1:1", "token", 5), 3, said.append)
    assert state.startswith("version 3 is in place again, but is not served: ")
    assert "Connection refused" in state
    (waiting,) = said
    assert waiting.startswith("waiting 0.7 s at most for the server to serve version 3 (no server answers over HTTP at")
    assert waiting.endswith("; Ctrl-C leaves version 3 in place")


def test_the_version_before_is_live_once_it_answers(monkeypatch):
    """A load that went well says nothing of the processes behind it."""
    said = []

    def check_answers(address):
        if not said:
            raise ReleaseError("the canary image was not classified")

    monkeypatch.setattr(Management, "load", lambda management, model: None)
    monkeypatch.setattr(release_module, "check_answers", check_answers)
    assert release_module.restore(Management("127.0.0.1:1", "token", 5), 3, said.append) == "version 3 is live"
    assert "the canary image was not classified" in said[0]

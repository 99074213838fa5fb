"""``classify --output --resume``: no image is asked twice, no answer is lost."""

import csv
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from stub_grpc import GrpcStub, serve

from client import InvalidImageError, QueueFullError, _session
from client.commands import main
from client.commands._journal import Journal
from client.options import UsageError
from client.testing import FakeTransport
from tests.full_disk import files_up_to

NAMES = [f"{number:02}.png" for number in range(12)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    fake = FakeTransport(lambda request: [(request.image.decode(), 0, 0.75), ("other", 1, 0.25)])
    monkeypatch.setattr(_session, "open_transports", lambda *arguments: [fake])
    return fake


def classify(*arguments: str) -> int:
    return main(["classify", "photos", "--retries", "0", "--output", *arguments])


def images(file: str) -> list[str]:
    """The answered images in the file's order, each as often as it has an answer."""
    text = Path(file).read_text()
    if file.endswith(".csv"):
        return [row["image"] for row in csv.DictReader(text.splitlines()) if row["rank"] == "1"]
    return [entry["image"] for entry in map(json.loads, text.splitlines()) if "predictions" in entry]


ALL = [f"photos/{name}" for name in NAMES]


@pytest.mark.parametrize("file", ["out.jsonl", "out.csv"])
def test_resume_after_any_cut(folder: Path, fake: FakeTransport, file: str) -> None:
    """After a kill at any byte the rest is asked, and the file becomes as if nothing had happened."""
    assert classify(file) == 0
    whole = Path(file).read_bytes()
    assert images(file) == ALL
    for length in (*range(0, len(whole), 97), len(whole) - 1, len(whole)):
        Path(file).write_bytes(whole[:length])
        fake.requests.clear()
        assert classify(file, "--resume") == 0
        assert sorted(images(file)) == ALL
        assert sorted(Path(file).read_bytes().splitlines()) == sorted(whole.splitlines())
    assert len(fake.requests) <= 1  # CSV: the last image's rows might not be all


def test_what_the_server_did_not_answer_is_asked_again(folder: Path, fake: FakeTransport) -> None:
    answers = fake.reply

    def half(request: Any) -> Any:
        number = int(request.image[:2])
        if number == 3:
            return InvalidImageError("no picture")
        return QueueFullError("full") if number % 2 else answers(request)

    fake.reply = half
    for file in ("out.jsonl", "out.csv"):
        fake.reply = half
        assert classify(file) == 1
        fake.reply = answers
        fake.requests.clear()
        assert classify(file, "--resume") == 1  # one is no picture
        asked = sorted(request.image.decode() for request in fake.requests)
        assert asked == [name for name in NAMES if int(name[:2]) % 2 and name != "03.png"]
        assert sorted(images(file)) == [name for name in ALL if name != "photos/03.png"]
        assert Path(file).read_text().count("no picture") == 1
        fake.requests.clear()
        assert classify(file, "--resume") == 1
        assert len(fake.requests) <= 1


@pytest.mark.parametrize("file", ["out.jsonl", "out.csv"])
def test_what_never_reached_the_server_is_asked_again(folder: Path, fake: FakeTransport, file: str) -> None:
    """A file that was not there yet, one that was empty."""
    Path("photos/00.png").write_bytes(b"")
    command = ["classify", "photos/late.png", "photos", "--retries", "0", "--output", file]
    assert main(command) == 1
    assert images(file) == ALL[1:]
    Path("photos/00.png").write_bytes(b"00.png")
    Path("photos/late.png").write_bytes(b"late.png")
    fake.requests.clear()
    assert main([*command, "--resume"]) == 0
    assert {"00.png", "late.png"} <= {request.image.decode() for request in fake.requests}
    assert sorted(images(file)) == [*ALL, "photos/late.png"]


@pytest.mark.parametrize("more", [[], ["--resume"]])
@pytest.mark.parametrize("output", ["/dev/full", "."])
def test_what_is_no_file(folder: Path, fake: FakeTransport, capsys: Any, output: str, more: list[str]) -> None:
    """A device would be read to its end, and some have none."""
    assert classify(output, "--json", *more) == 2
    assert f"--output {output} is not a file that can be continued: name one" in capsys.readouterr().err
    assert fake.requests == []


def test_a_full_disk(folder: Path, fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    words = "python -m client classify: --output out.jsonl: File too large: make room, then go on with --resume\n"
    with files_up_to(10):
        assert classify("out.csv") == 1
    assert capsys.readouterr().err == words.replace("jsonl", "csv")
    Path("out.csv").unlink()
    with files_up_to(1000):
        assert classify("out.jsonl") == 1
    assert capsys.readouterr().err == words
    before = Path("out.jsonl").read_bytes()
    assert 0 < before.count(b"\n") < len(ALL)
    with files_up_to(100):
        assert classify("out.jsonl", "--resume") == 1
    assert capsys.readouterr().err == words
    assert Path("out.jsonl").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["out.jsonl", "photos"]
    assert classify("out.jsonl", "--resume") == 0
    assert sorted(images("out.jsonl")) == ALL


@pytest.mark.parametrize("modes", [True, False])
def test_a_link_stays_one_and_the_mode_too(
    folder: Path, fake: FakeTransport, modes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_modes(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not modes:
        monkeypatch.setattr("os.fchmod", no_modes)
    (folder / "big").mkdir()
    answers = folder / "big" / "out.jsonl"
    answers.write_text('{"image": "photos/other.png", "error": {"type": "ServerError", "message": "x"}}\n')
    answers.chmod(0o600)
    (folder / "out.jsonl").symlink_to(answers)
    assert classify("out.jsonl", "--resume") == 0
    assert (folder / "out.jsonl").is_symlink()
    assert sorted(images(str(answers))) == ALL
    assert answers.stat().st_mode & 0o777 == 0o600 or not modes


def test_a_kill_in_the_middle(folder: Path) -> None:
    """A real process, a real SIGKILL, a real server that counts."""
    stub = GrpcStub()
    stub.act = lambda context: time.sleep(0.05)
    server, port = serve(stub)
    command = [sys.executable, "-m", "client", "classify", "photos", "--output", "out.jsonl", "--concurrency", "2"]
    command += ["--url", f"127.0.0.1:{port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment)
    until = time.monotonic() + 30
    while len(stub.requests) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = images("out.jsonl")
    assert 0 < len(kept) < len(ALL)
    sent = len(stub.requests)
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=60)
    server.stop(0).wait()
    assert done.returncode == 0, done.stderr
    assert images("out.jsonl") == ALL
    assert len(stub.requests) - sent == len(ALL) - len(kept)


def test_refusals(
    folder: Path, fake: FakeTransport, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(words: str, *arguments: str) -> None:
        assert classify(*arguments) == 2
        assert words in capsys.readouterr().err

    refused("name it .jsonl or .csv", "out.txt")
    refused("none/out.csv cannot be written (No such file or directory): name another file", "none/out.csv")
    assert classify("out.txt", "--csv") == classify("OUT.JSONL") == 0
    refused("continue it with --resume", "out.txt", "--csv")
    with open("out.csv", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused("another process is writing it", "out.csv", "--resume")
    assert main(["classify", "photos", "--resume"]) == 2
    assert "needs the --output" in capsys.readouterr().err
    assert main(["classify", "-", "--output", "new.csv", "--resume"]) == 2
    assert "may be another image each time" in capsys.readouterr().err
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    refused("new.csv cannot be locked (No locks available): name a file on another disk", "new.csv")


@pytest.mark.parametrize(("before", "now", "sent"), [("2", "1", False), ("1", "2", True)])
@pytest.mark.parametrize("file", ["out.jsonl", "out.csv"])
def test_another_top_is_refused(
    folder: Path, fake: FakeTransport, capsys: pytest.CaptureFixture, file: str, before: str, now: str, sent: bool
) -> None:
    """With more classes only the first answer tells whether the model has them."""
    answer = fake.reply
    fake.reply = lambda request: answer(request)[: request.top]
    assert classify(file, "--top", before) == 0
    whole = Path(file).read_bytes()
    fake.requests.clear()
    Path("photos/new.png").write_bytes(b"new")
    assert classify(file, "--top", now, "--resume") == 2
    words = f"--output {file} was written with --top {before}, not {now}: give --top {before}, or name another file\n"
    assert capsys.readouterr().err.endswith(words)
    assert bool(fake.requests) == sent
    assert whole.startswith(Path(file).read_bytes())
    assert classify(file, "--top", before, "--resume") == 0


def test_a_model_of_fewer_classes_than_asked_for_is_resumed(folder: Path, fake: FakeTransport) -> None:
    assert classify("out.jsonl", "--top", "5") == 0
    Path("photos/new.png").write_bytes(b"new")
    assert classify("out.jsonl", "--top", "7", "--resume") == 0
    assert len(images("out.jsonl")) == len(ALL) + 1


ANSWER = '{"image": "a.png", "predictions": []}\n'
HEADER = "image,rank,label,index,probability,error,message,request_id\n"


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("labels.csv", "file,label,split\na.png,cat,train\n", 1),
        ("labels.csv", "file,label", 1),
        ("labels.csv", HEADER + "a.png,1,cat,0,0.9,,,\na.png,cat,train\nb.png,1,cat,0,0.9,,,\n", 3),
        ("labels.csv", HEADER + "a.png,cat,train\n", 2),
        ("labels.csv", HEADER + "a" * (csv.field_size_limit() + 1), 2),
        ("answers.csv", ANSWER, 1),
        ("answers.jsonl", ANSWER + HEADER, 2),
        ("answers.jsonl", ANSWER + '{"image": "b.png"}\n' + ANSWER, 2),
        ("answers.jsonl", ANSWER + "my notes", 2),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(
    folder: Path, fake: FakeTransport, capsys: pytest.CaptureFixture, file: str, text: str, line: int
) -> None:
    Path(file).write_text(text)
    assert classify(file, "--resume") == 2
    assert f"--output {file}: line {line} was not written by classify" in capsys.readouterr().err
    assert Path(file).read_text() == text
    assert fake.requests == []


def test_names_that_are_no_text(folder: Path, fake: FakeTransport) -> None:
    odd = os.fsdecode(b'photos/\xff",\n.png')
    Path(odd).write_bytes(b"odd")
    Path(os.fsdecode(b"photos/\xff\xff.png")).write_bytes(b"last")  # of a CSV the last image is asked again
    for file in ("out.jsonl", "out.csv"):
        assert classify(file) == 0
        fake.requests.clear()
        assert classify(file, "--resume") == 0
        assert b"odd" not in [request.image for request in fake.requests]
    whole = Path("out.csv").read_bytes()
    Path("out.csv").write_bytes(whole[: whole.index(b"\n.png") + 1])  # cut off in the name, where a line ends
    assert classify("out.csv", "--resume") == 0
    assert sorted(Path("out.csv").read_bytes().splitlines()) == sorted(whole.splitlines())


def test_failures_are_counted_beside_the_file(folder: Path, fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    fake.reply = QueueFullError("full")
    assert classify("out.jsonl") == 1
    assert capsys.readouterr().err == "12 not answered: see out.jsonl\n"


def test_a_file_stays_locked_when_lines_of_it_were_dropped(folder: Path) -> None:
    Path("out.jsonl").write_text(ANSWER + '{"image": "b.p')
    with (
        Journal(Path("out.jsonl"), "json", resume=True, top=5),
        pytest.raises(UsageError, match="another process is writing it"),
    ):
        Journal(Path("out.jsonl"), "json", resume=True, top=5)
    assert Path("out.jsonl").read_text() == ANSWER


@pytest.mark.parametrize("line", ["mine\n", "[" * 100_000 + "\n"])
def test_a_refused_file_is_not_kept_locked(folder: Path, line: str) -> None:
    Path("other.jsonl").write_text(line)
    refusals = []
    for _ in range(2):
        with pytest.raises(UsageError, match="line 1 was not written by classify") as refused:
            Journal(Path("other.jsonl"), "json", resume=True, top=5)
        refusals.append(refused.value)  # with what it came through

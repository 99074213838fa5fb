"""``python -m client``: what it prints, and its exit status."""

import argparse
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client import _session
from client._sources import expand, find_images
from client.commands import bench, classify, explain, main, watch
from client.commands import status as status_command


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/{a.png,b.JPG,notes.txt,.hidden.png,sub/{c.webp,d.gif},.cache/e.png}, and the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.JPG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/d.gif", ".cache/e.png"):
        file = Path("photos", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(Path(name).stem.encode())
    return Path("photos")


@pytest.fixture
def opened(fake: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, str]]:
    """(url, protocol) of every connection; all lead to the fake."""
    calls: list[tuple[str | None, str]] = []
    monkeypatch.setattr(
        _session, "open_transports", lambda url, protocol, *more: calls.append((url, protocol)) or [fake]
    )
    return calls


def status(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


PASSED_OVER = "passed over, no image by suffix: 1 .txt\n"
ALL = ["photos/a.png", "photos/b.JPG", "photos/sub/c.webp", "photos/sub/d.gif"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["photos"], ALL),
        (["photos/sub", "photos/a.png", "photos"], [ALL[2], ALL[3], ALL[0], ALL[1]]),  # each once
        (["photos/notes.txt"], ["photos/notes.txt"]),  # named, so meant
        (["photos/*.png"], ["photos/a.png"]),
        (["photos/**/*.gif"], ["photos/sub/d.gif"]),
        (["photos/**/*.png"], ["photos/a.png"]),
        (["phot*"], ALL),  # a pattern may match a folder
        (["missing.png"], ["missing.png"]),
    ],
)
def test_paths(photos: Path, arguments: list[str], expected: list[str]) -> None:
    assert list(expand(arguments)) == [(path, None) for path in expected]


def test_paths_that_lead_nowhere(photos: Path) -> None:
    Path("photos/none").mkdir()
    found = list(expand(["photos/none", "*.tiff"]))
    assert [path for path, _ in found] == ["photos/none", "*.tiff"]
    assert "holds no image" in str(found[0][1])
    assert "matches no file" in str(found[1][1])


def test_file_with_a_pattern_in_its_name(photos: Path) -> None:
    Path("photos/a[1].png").write_bytes(b"x")
    assert list(expand(["photos/a[1].png"])) == [("photos/a[1].png", None)]


def test_an_empty_path_is_not_the_current_folder(photos: Path) -> None:
    ((argument, problem),) = expand([""])
    assert argument == ""
    assert problem is not None
    assert problem.startswith("an empty path")


def test_find_images(photos: Path) -> None:
    assert [str(path) for path in find_images(str(photos))] == ALL


def test_find_images_in_a_folder_that_is_missing_or_none(photos: Path) -> None:
    """Not an empty list: a job that classifies it would end as if all had been done."""
    with pytest.raises(FileNotFoundError, match="phtoos"):
        find_images("phtoos")
    with pytest.raises(NotADirectoryError):
        find_images(ALL[0])
    unread: list[OSError] = []
    assert find_images("phtoos", unread) == []
    assert [error.filename for error in unread] == ["phtoos"]


def test_find_images_follows_links_as_training_does(photos: Path) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/e.png").touch()
    Path("photos/label").symlink_to(Path("elsewhere").resolve())
    Path("photos/sub/up").symlink_to(photos.resolve())  # a loop
    assert [str(path) for path in find_images(photos)] == [*ALL[:2], "photos/label/e.png", *ALL[2:]]


def test_json(photos: Path, fake: Any, opened: list, capsys: pytest.CaptureFixture) -> None:
    arguments = ["classify", "photos", "--json", "--url", "box:1", "--protocol", "http", "--model", "m", "--top", "2"]
    assert main([*arguments, "--timeout", "3.5"]) == 0
    out, err = capsys.readouterr()
    assert [line["image"] for line in lines(out)] == ALL
    assert lines(out)[0]["predictions"] == [
        {"label": "a", "index": 0, "probability": 0.75},
        {"label": "second of a", "index": 1, "probability": 0.25},
    ]
    assert err == PASSED_OVER
    assert opened == [(["box:1"], "http")]
    assert sorted(fake.calls) == [("m", name, 2) for name in (b"a", b"b", b"c", b"d")]
    assert all(3.4 < request.timeout <= 3.5 for request in fake.requests)
    assert fake.closed == 1


def test_defaults(photos: Path, fake: Any, opened: list) -> None:
    assert main(["classify", "photos/a.png"]) == 0
    assert opened == [(None, "grpc")]
    assert fake.calls == [("classifier", b"a", 5)]


@pytest.mark.parametrize("command", [bench, classify, explain, status_command, watch])
def test_the_help_tells_the_defaults(command: Any) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    told = [(each, re.search(r"default: ([\w.]+)\)?$", each.help or "")) for each in parser._actions]
    defaults = [(str(each.default).removesuffix(".0"), found.group(1)) for each, found in told if found]
    assert len(defaults) >= 4
    assert all(default == said for default, said in defaults)


def test_json_errors_are_in_their_place(photos: Path, opened: list, capsys: pytest.CaptureFixture) -> None:
    Path("photos/b.JPG").write_bytes(b"!")
    assert main(["classify", "photos", "no.png", "*.tiff", "--json"]) == 1
    found = lines(capsys.readouterr().out)
    assert [line["image"] for line in found] == [*ALL, "no.png", "*.tiff"]
    assert ["predictions" in line for line in found] == [True, False, True, True, False, False]
    assert found[1]["error"].pop("request_id")  # the server's log has it
    assert found[1]["error"] == {"type": "ClassifierError", "message": "refused"}
    assert found[4]["error"] == {"type": "InvalidImageError", "message": "no such file: check the path"}


def test_table(photos: Path, opened: list, capsys: pytest.CaptureFixture) -> None:
    Path("photos/a.png").write_bytes(b"[red]naked:mole[/red]")
    Path("photos/b.JPG").write_bytes(b"!")
    assert main(["classify", "photos", "--top", "2"]) == 1
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows[0] == ["photos/a.png", "[red]naked:mole[/red]", "0", "75.00%"]
    assert [row[0] for row in rows if row[0]] == [ALL[0], ALL[2], ALL[3]]
    assert err == f"{PASSED_OVER}photos/b.JPG: refused\n1 not answered\n"


@pytest.mark.parametrize("arguments", [["classify"], ["classify", "--csv"], ["watch", "--interval", "0.01"]])
def test_a_name_that_is_not_utf8(
    tmp_path: Path, fake: Any, opened: list, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"a")

    def enough(*found: object) -> None:
        raise KeyboardInterrupt

    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, "utf-8", errors="strict"))
    monkeypatch.setattr("client.commands.watch.Arrivals.answered", enough)
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*arguments, str(tmp_path)]) == (130 if arguments[0] == "watch" else 0)
    sys.stdout.flush()
    assert b"\xff.png" in printed.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_path_is_folded_for_a_terminal_alone(
    photos: Path, opened: list, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    name = f"photos/{'long' * 50}.png"
    Path(name).write_bytes(b"a")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(["classify", name]) == 0
    assert (name in capsys.readouterr().out) is not terminal


@pytest.mark.parametrize("arguments", [["classify", "--csv"], ["watch", "--interval", "0.01"]])
def test_a_name_that_standard_output_cannot_say(
    tmp_path: Path,
    opened: list,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
) -> None:
    (tmp_path / "größe.png").write_bytes(b"a")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main([*arguments, str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"python -m client {arguments[0]}: ascii has no '\\xf6\\xdf': set PYTHONIOENCODING=utf-8"


def test_a_closed_output_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit):
        main(["none"])
    with sys.stderr as replaced:
        assert replaced.name == os.devnull


@pytest.mark.parametrize(("options", "said"), [("--json 2>&-", 1), ("2>&-", 0), ("--json >&-", 0), (">&-", 1)])
def test_a_closed_output(photos: Path, options: str, said: int) -> None:
    """Text for a closed stream is not written to the other one."""
    command = f"{sys.executable} -m client classify {photos}/empty.png {options}"
    (photos / "empty.png").write_bytes(b"")  # an error without a server
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("empty (0 bytes)") == said
    assert "Traceback" not in done.stderr


def test_only_errors_make_no_table(photos: Path, opened: list, capsys: pytest.CaptureFixture) -> None:
    assert main(["classify", "no.png"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["classify"], "PATH"),
        (["classify", "a.png", "--top", "0"], "--top"),
        (["classify", "a.png", "--top", "many"], "--top"),
        (["classify", "a.png", "--top", "99999999999999999999"], "below 2147483648"),
        (["classify", "a.png", "--tls-root", ""], "no such file"),
        (["classify", "a.png", "--timeout", "0"], "--timeout"),
        (["classify", "a.png", "--concurrency", "0"], "--concurrency"),
        (["classify", "a.png", "--protocol", "smtp"], "smtp"),
        (["classify", "a.png", "--url", "ftp://box"], "ftp"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert status(arguments) == 2
    assert words in capsys.readouterr().err


def test_interrupt(photos: Path, fake: Any, opened: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.commands._results.JsonResults.write", interrupt)
    assert main(["classify", "photos", "--json"]) == 130
    assert fake.closed == 1


def test_reader_that_has_seen_enough(photos: Path) -> None:
    for number in range(300):
        (photos / f"{number:03}.png").write_bytes(b"")  # errors without a server
    root = Path(__file__).parents[2]
    command = f"{sys.executable} -m client classify photos --json | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == PASSED_OVER


def test_what_the_system_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def full(options: Any) -> int:
        raise OSError(28, "No space left on device", "out.jsonl")

    monkeypatch.setattr("client.commands.classify.run", full)
    assert main(["classify", "a.png"]) == 1
    assert capsys.readouterr().err == "python -m client classify: [Errno 28] No space left on device: 'out.jsonl'\n"

"""The folder of ``python -m client explain``: whose each picture is, and what is never written over."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands_fakes import CAT
from PIL import Image

from client import Answer, Prediction
from client.commands import main
from client.commands._overlays import Overlays
from client.testing import FakeTransport


@pytest.fixture(autouse=True)
def explaining(served: FakeTransport) -> None:
    served.reply = lambda request: Answer([*CAT, Prediction("dog", 4, 0.1)], np.ones((2, 2), np.float32))
    for folder, grey in (("one", 10), ("two", 200)):
        Path(folder).mkdir()
        Image.new("L", (8, 8), grey).save(f"{folder}/a.png")


def table() -> list[dict[str, str]]:
    with Path("explained/explained.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def owners() -> dict[str, str]:
    return {row["picture"]: str(Path(row["image"]).relative_to(Path.cwd())) for row in table()}


def test_another_image_of_the_same_name_does_not_take_its_picture() -> None:
    assert main(["explain", "one/a.png"]) == 0
    first = Path("explained/a.png.explained.png").read_bytes()
    assert main(["explain", "two/a.png"]) == 0
    assert Path("explained/a.png.explained.png").read_bytes() == first
    assert owners() == {"a.png.explained.png": "one/a.png", "a.png.explained.2.png": "two/a.png"}
    assert {(row["label"], row["probability"]) for row in table()} == {(CAT[0].label, str(CAT[0].probability))}
    Image.new("L", (8, 8), 100).save("one/a.png")
    assert main(["explain", "two/a.png", "one/a.png", f"{Path.cwd()}/one/a.png"]) == 0
    assert Path("explained/a.png.explained.png").read_bytes() != first, "its own is replaced"
    assert owners()["a.png.explained.png"] == "one/a.png"
    assert owners()["a.png.explained.3.png"] == "one/a.png", "named twice, it has two"
    Path("explained/a.png.explained.2.png").unlink()
    assert main(["explain", "one/a.png"]) == 0
    assert "a.png.explained.2.png" not in owners(), "it is gone"


def test_a_file_of_somebody_else_stays() -> None:
    Path("explained").mkdir()
    Path("explained/a.png.explained.png").write_text("mine")
    assert main(["explain", "one/a.png"]) == 0
    assert Path("explained/a.png.explained.png").read_text() == "mine"
    assert owners() == {"a.png.explained.2.png": "one/a.png"}


def test_standard_input_is_another_image_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path("one/a.png").read_bytes())))
        assert main(["explain", "-"]) == 0
    assert [(row["image"], row["picture"]) for row in table()] == [
        ("-", "stdin.explained.png"),
        ("-", "stdin.explained.2.png"),
    ]


@pytest.mark.parametrize("content", ["", "file,label\n", "file,label,probability,picture\na,b\n"])
def test_a_table_of_somebody_else_is_kept(
    content: str, served: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("explained").mkdir()
    Path("explained/explained.csv").write_text(content)
    assert main(["explain", "one/a.png"]) == 2
    assert (
        "explained/explained.csv was not written by this command: name another --output, or remove"
        in capsys.readouterr().err
    )
    assert Path("explained/explained.csv").read_text() == content
    assert served.requests == []


def test_what_is_interrupted_is_in_the_table(served: FakeTransport) -> None:
    def reply(request: Any) -> Answer:
        if len(served.requests) > 1:
            raise KeyboardInterrupt
        return Answer(CAT, np.ones((2, 2), np.float32))

    served.reply = reply
    assert main(["explain", "one", "two", "--concurrency", "1"]) == 130
    assert owners() == {"a.png.explained.png": "one/a.png"}


def test_long_urls_are_cut_in_names_and_whole_in_the_table(tmp_path: Path) -> None:
    names = [f"http://host/a?token={'x' * 300}{end}" for end in "yyz"]
    overlays = Overlays(tmp_path, names[1:])
    for name in names:
        overlays.save(name, Image.new("L", (1, 1)), CAT[0])
    overlays.finish()
    with (tmp_path / "explained.csv").open(newline="") as file:
        found = {row["image"]: row["picture"] for row in csv.DictReader(file)}
    assert found == {name: f"{'x' * 199}{name[-1]}.explained.png" for name in names[1:]}

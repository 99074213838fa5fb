"""Files and folders are replaced completely or not at all; labels are read."""

import errno
import os
from pathlib import Path

import pytest

from models.files import read_labels, replace_file, staged_folder, write_file


def test_a_file_that_does_not_reach_the_disk_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    replace_file(path, lambda place: place.write_text("before"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"x cannot be written \(.*No space left.*\): what was there is kept"):
        replace_file(path, lambda place: place.write_text("after"))
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_file_is_on_the_disk_before_its_name_and_its_name_when_this_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flush(handle), done.append((tmp_path / "x").exists())))
    replace_file(tmp_path / "x", lambda place: place.write_text("all"))
    assert done == [False, True]


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("pipe", "deeper/file"):
        write_file(tmp_path / name, lambda place: place.write_text("all"))
    assert os.read(reader, 10) == b"all"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "deeper/file").read_text() == "all"


def test_a_folder_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "deeper" / "folder"
    with staged_folder(folder) as staging:
        (staging / "x").write_text("all")
        assert not folder.exists()
    assert [entry.name for entry in folder.iterdir()] == ["x"]
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


def test_a_folder_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staged_folder(tmp_path / "folder") as staging:
            (staging / "x").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_labels_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("ant\nbee\n", encoding="utf-8-sig")
    assert read_labels(tmp_path / "labels.txt") == ["ant", "bee"]


def test_labels_in_another_encoding_are_named(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("ant\n\u00e9lan\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.txt: line 2 is not UTF-8 \(.*\): convert the file"):
        read_labels(tmp_path / "labels.txt")


def test_an_empty_label_is_named(tmp_path: Path) -> None:
    for text, line in (("ant\nbee\n\n", 3), ("ant\n \nbee\n", 2), ("", 1)):
        (tmp_path / "labels.txt").write_text(text)
        with pytest.raises(ValueError, match=rf"labels\.txt: line {line} is empty: a label is needed in each"):
            read_labels(tmp_path / "labels.txt")


def test_labels_end_with_their_line_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("ant\u2028eater\r\nbee\x85\r\n".encode())
    assert read_labels(tmp_path / "labels.txt") == ["ant\u2028eater", "bee\x85"]

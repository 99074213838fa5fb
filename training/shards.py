"""WebDataset shards: plain tar files whose members come in groups, KEY.jpg beside KEY.cls or KEY.json.

The headers are read once, so that every image has a number: shuffling, weighted sampling, several processes and exact
resumption then work as for folders. Images are read at their offset in the shard.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.files import HIDDEN, read_labels
from training.images import IMAGE_SUFFIXES, DataError, Labelled, Transform, label_numbers
from training.names import Names
from training.settings import first_of

LABELS_FILE = "labels.txt"
NO_CLASS = -1
Texts = dict[str, tuple[str, str]]  # suffix (cls, json) -> the text of the member with the class, and its name


def shard_files(folder: str | Path) -> list[Path]:
    return sorted(path for path in Path(folder).glob("*.tar") if not HIDDEN.search(path.name))


class Member(NamedTuple):
    """One image: the number of its shard, and its offset and size there, in bytes."""

    shard: int
    offset: int
    size: int


class Shards(Labelled):
    """The images of FOLDER/*.tar.

    A class is an integer (KEY.cls) or the value of "label" or "cls" in KEY.json; an integer is an index, a text one of
    the labels. The labels are the lines of FOLDER/labels.txt or `labels`, which must agree if both are given; without
    them classes are numbered. If not `labelled`, no class is read, and every target is `NO_CLASS`. `sizes`: images of
    each shard. Raises `DataError` naming the shard and key, or the labels that differ.
    """

    def __init__(
        self,
        folder: str | Path,
        transform: Transform | None,
        labels: list[str] | None = None,
        *,
        labelled: bool = True,
    ) -> None:
        super().__init__(transform)
        self.paths, self.labelled = shard_files(folder), labelled
        names = Path(folder) / LABELS_FILE
        try:
            own = read_labels(names) if labelled and names.exists() else None
        except ValueError as error:
            raise DataError(str(error)) from error
        if labels is None:
            labels = own
        elif own is not None and own != labels[: len(own)]:  # its indices would mean other classes
            known = f"the {len(labels)} labels ({first_of(labels)})"
            raise DataError(f"{folder}/{LABELS_FILE} differs from {known}: give it those, in this order")
        self._first = label_numbers(labels or [])
        self._numbers: dict[int, int] = {}  # one int object for each class
        self.sizes: list[int] = []
        images: list[tuple[str, Member]] = []
        for number, path in enumerate(self.paths):
            found = list(self._index(number, path, labels))
            images += found
            self.sizes.append(len(found))
        if not images:
            what = "pair of KEY.jpg and KEY.cls" if labelled else f"image ({', '.join(sorted(IMAGE_SUFFIXES))})"
            raise DataError(f"{folder}: its {len(self.paths)} shards hold no {what}")
        self.names = Names(name for name, _ in images)
        self.members = np.array([member for _, member in images])  # [N,3]; no objects, see `Names`
        if labels is None:
            most = max(self.targets)
            if most >= len(self.names):  # as many labels might not fit in memory
                place = self.names[self.targets.index(most)]
                raise DataError(
                    f"{place}: class {most}, but {folder} has {len(self.names)} images: without {LABELS_FILE} classes "
                    "are numbered from 0, and each has an image"
                )
            labels = [str(index) for index in range(most + 1)]
        self.classes = labels

    def _index(self, number: int, path: Path, labels: list[str] | None) -> Iterator[tuple[str, Member]]:
        """Yield the images of one shard with their names, and append their targets."""
        for key, image, said, unread in self._keys(number, path):
            if image is None and unread:
                suffix = unread.rpartition("/")[2].partition(".")[2]
                what = f"a key ends at its first dot, so .{suffix} is not read"
                raise DataError(f"{path}:{unread}: {what}: rename it")
            suffix = "cls" if "cls" in said else "json"  # beside a .cls a .json may hold anything
            target = self._target(*said[suffix], suffix, labels) if said else None
            if image is None and target is not None:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                what = f"{key} has a class and no image that is read ({suffixes})"
                raise DataError(f"{path}: {what}: add it or take it out")
            if image is not None and target is None and self.labelled:
                raise DataError(f"{path}: {key} has an image and no .cls or .json with its class")
            if image is not None:
                self.targets.append(NO_CLASS if target is None else self._numbers.setdefault(target, target))
                yield image

    def _keys(self, number: int, path: Path) -> Iterator[tuple[str, tuple[str, Member] | None, Texts, str]]:
        """Yield each key with its image, its `Texts` and the name of another image of it, such as KEY.seg.png.

        Members of a key are neighbours, as the format asks.
        """
        key = ""
        image: tuple[str, Member] | None = None  # and its name
        said: Texts = {}
        unread = ""
        try:
            with tarfile.open(path, "r:") as shard:
                for member in shard:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if not member.isfile() or not suffix or HIDDEN.search(member.name):
                        continue
                    if (stem := f"{folder}/{stem}") != key:
                        yield key, image, said, unread
                        key, image, said, unread = stem, None, {}, ""
                    if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                        if image is not None:
                            raise DataError(f"{image[0]} and {name} are two images of one key: keep one")
                        image = f"{path}:{member.name}", Member(number, member.offset_data, member.size)
                    elif Path(name).suffix.lower() in IMAGE_SUFFIXES:
                        unread = member.name
                    elif self.labelled and suffix in ("cls", "json"):
                        content = shard.extractfile(member)
                        text = content.read().decode(errors="replace") if content else ""
                        said[suffix] = text, f"{path}:{member.name}"
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{path} cannot be read ({error}): shards are whole, uncompressed tar files") from error
        yield key, image, said, unread

    def _target(self, text: str, name: str, suffix: str, labels: list[str] | None) -> int:
        value: Any = text.strip()
        if suffix == "json":
            try:
                content = json.loads(text)
                value = content["label"] if "label" in content else content["cls"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f'{name} is not a JSON object with "label" or "cls"') from error
        elif value.removeprefix("-").isdecimal():
            value = int(value)  # an index, even if a label looks like one
        if isinstance(value, str) and value in self._first:
            return self._first[value]
        try:
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise TypeError
            index = int(value)
        except (TypeError, ValueError):
            raise DataError(f"{name}: the class {value!r} is neither an index nor in {LABELS_FILE}") from None
        if index < 0 or (labels is not None and index >= len(labels)):
            known = "0 is the least" if labels is None else f"there are {len(labels)} labels"
            raise DataError(f"{name}: class {index} is out of range: {known}")
        return index

    def source(self, index: int) -> BytesIO:
        member = Member(*self.members[index].tolist())
        shard = os.open(self.paths[member.shard], os.O_RDONLY | os.O_CLOEXEC)  # thousands cannot all stay open
        try:
            return BytesIO(os.pread(shard, member.size, member.offset))
        finally:
            os.close(shard)

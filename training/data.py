"""Images in folders or shards, FOLDER/{train,val}/LABEL/* or FOLDER/{train,val}/*.tar, or in lists."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from models.config import is_one_line
from models.files import HIDDEN
from training.images import (
    IMAGE_SUFFIXES,
    DataError,
    Labelled,
    Transform,
    image_files,
    is_image,
    label_numbers,
    load_image,
)
from training.lists import Listed, is_list, read_list
from training.names import Names
from training.settings import first_of
from training.shards import Shards, shard_files


class LabelledFolder(Labelled):
    """Images of FOLDER/LABEL/*, at any depth, without hidden files and folders; a class may have no images.

    `passed_over`: how many files of each suffix in the class folders are not read; `outside`: how many images are in no
    class folder; `hidden`: folders of images that are left out because their names are hidden. Raises `DataError` if
    there is no class.
    """

    def __init__(self, folder: Path, transform: Transform | None) -> None:
        super().__init__(transform)
        self.root = str(folder)
        self.passed_over: Counter[str] = Counter()
        with os.scandir(folder) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries}
        hidden = {name for name in is_folder if HIDDEN.match(name)}
        folders = (folder / name for name in sorted(hidden) if is_folder[name])
        self.hidden = [path.name for path in folders if any(is_image(file.name) for file in path.glob("*"))]
        self.outside = sum(is_image(name) for name in is_folder if not is_folder[name])
        self.classes = sorted(name for name in is_folder.keys() - hidden if is_folder[name])
        if not self.classes:
            found, others = "", ""
            if self.outside:
                found = f", only {self.outside} images"
                others = "; training.explain answers images without labels, training.pretrain trains on them"
            raise DataError(f"{folder} holds no folder{found}: images are expected in {folder}/LABEL/FILE{others}")
        names: list[str] = []
        for index, name in enumerate(self.classes):
            files = image_files(folder / name, self.passed_over)
            files.sort(key=os.path.split)  # folder by folder, as torchvision has them
            names += files
            self.targets += [index] * len(files)
        self.names = Names(names)


def folder_errors(dataset: LabelledFolder, labels: list[str] | None) -> list[str]:
    """Return why a folder cannot be trained on, or evaluated with `labels`: labels that no checkpoint can hold, that
    are unknown or have no images.
    """
    folder, errors, used, known = dataset.root, [], set(dataset.targets), set(labels or [])
    if labels is not None and set(labels).isdisjoint(dataset.classes):
        below = sorted(path for depth in ("*", "*/*") for path in Path(folder).glob(depth) if path.is_dir())
        parts = [path for path in below if any((path / label).is_dir() for label in labels)]
        held_out = [path for path in parts if path.name != "train"]
        if named := (held_out or parts)[:4]:
            return [f"{folder} holds no label, but has folders that do: give {' or '.join(map(str, named))}"]
    for index, name in enumerate(dataset.classes):
        if name.encode(errors="replace").decode() != name:
            errors.append(f"{folder} has the label {os.fsencode(name)!r}, which is not UTF-8: rename that folder")
        elif labels is not None and name not in known:
            errors.append(
                f"{folder}/{name} is not one of the {len(labels)} labels ({first_of(labels)}): rename or remove it"
            )
        elif index not in used:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            errors.append(f"{folder}/{name} holds no image: fill or remove it. Images are {suffixes}")
    return errors


def label_errors(labels: Sequence[str]) -> list[str]:
    """Return an error for each label that no served model can have."""
    wrong = [label for label in labels if not is_one_line(label)]
    return [f"the label {label!r} is empty or has a line break, and cannot be served: rename it" for label in wrong]


def image_folder(folder: str | Path, transform: Transform | None, labels: list[str] | None = None) -> LabelledFolder:
    """Open FOLDER/LABEL/* as (image, class index); `labels` fixes the order of the classes, else it is alphabetical.

    Raises `DataError` for a folder that is missing, a class without images, or a label that is not in `labels`.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder: images are expected in {folder}/LABEL/FILE")
    dataset = LabelledFolder(Path(folder), transform)
    for error in folder_errors(dataset, labels):
        raise DataError(error)
    if labels is not None:
        number = label_numbers(labels)
        index = [number[name] for name in dataset.classes]
        dataset.targets = [index[target] for target in dataset.targets]
        dataset.classes = labels
    return dataset


def open_images(folder: str | Path, transform: Transform | None, labels: list[str] | None = None) -> Labelled:
    """Open (image, class index) of a folder of label folders, a folder of WebDataset shards (*.tar), or a list (.csv).

    Raises `DataError` as `image_folder`, for a shard that is damaged or has an image without a class or with one out of
    range, and for a list whose images do not exist.
    """
    if is_list(folder):
        return Listed(Path(folder), transform, labels)
    if not shard_files(folder):
        return image_folder(folder, transform, labels)
    dataset = Shards(folder, transform, labels)
    empty = sorted(set(range(len(dataset.classes))) - set(dataset.targets))
    if empty and labels is None:
        raise DataError(f"{folder}: class {dataset.classes[empty[0]]} has no image: leave it out of the labels")
    return dataset


class Unlabelled(Dataset[Image.Image]):
    """PIL RGB images of every file below a folder, of the shards (*.tar) in it, or of a list; labels are ignored.

    `names`: the file of each, or SHARD:MEMBER; `passed_over`: as in `LabelledFolder`. Raises `DataError` for a folder
    that is missing or without images, and for a shard, an image or a list that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.root = str(folder)
        self.passed_over: Counter[str] = Counter()
        self.shards: Shards | None = None
        if is_list(folder):
            self.names: Sequence[str] = Names(name for name, _ in read_list(folder))
            return
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder: images or shards are expected in it")
        if shard_files(folder):
            self.shards = Shards(folder, None, labelled=False)
            self.names = self.shards.names
        else:
            self.names = Names(image_files(folder, self.passed_over))
        if not self.names:
            raise DataError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) and no .tar")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        return self.image(index)

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        if self.shards is not None:
            return self.shards.image(index, short_side)
        return load_image(self.names[index], short_side=short_side)

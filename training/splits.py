"""Which images are trained on and which are held out: two folders of --data, or a share of every class in it."""

import os
from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from models.files import HIDDEN
from training.data import LabelledFolder, Unlabelled, image_folder, open_images
from training.images import DataError, Labelled
from training.names import Names
from training.outputs import check_outside
from training.settings import SettingsError, first_of
from training.shards import shard_files


@dataclass(frozen=True)
class SplitConfig:
    """Which images are held out."""

    data: Path
    """Folder of the images"""
    val_share: float = 0.0
    """Hold out this share (below 1) of each class of DATA/LABEL/FILE; 0: DATA has train/ and val/.
    Every seed and script holds out the same images; fine-tuning lists them in OUTPUT/val.csv."""
    val_folder: str = "val"
    """Name of the folder of held-out images beside train/, such as valid or test"""


def open_split(config: SplitConfig) -> tuple[Labelled, Labelled]:
    """The images to train on and those held out, without a transform. Raises `DataError`, `SettingsError`."""
    if config.val_share:
        whole = image_folder(_flat(config), None)
        kept, held_out = _divide(config, whole.names)
        return _part(whole, kept), _part(whole, held_out)
    train, val = two_folders(config)
    images = open_images(train, None)
    return images, open_images(val, None, images.classes)


def open_unlabelled_split(config: SplitConfig) -> tuple[Unlabelled, Unlabelled]:
    """Open images at any depth, otherwise as `open_split`; of DATA/LABEL/FILE the same ones are held out."""
    if config.val_share:
        whole = Unlabelled(_flat(config))
        kept, held_out = _divide(config, whole.names)
        parts = copy(whole), copy(whole)
        for part, indices in zip(parts, (kept, held_out), strict=True):
            part.names = Names(whole.names[index] for index in indices)
        return parts
    train, val = two_folders(config)
    return Unlabelled(train), Unlabelled(val)


def check_output(config: SplitConfig, output: Path) -> None:
    """Raise `SettingsError` for an output among the images: it would be a class, or its pictures trained on."""
    parts = [config.data] if config.val_share else [config.data / "train", config.data / config.val_folder]
    for part in parts:
        check_outside(output, part)


def held_out_of(files: Sequence[str], share: float) -> list[int]:
    """Return the indices, sorted, of `share` of the paths in each top folder: those with the smallest SHA-256.

    The choice depends on no seed and no version, and changes little when files are added or removed. A folder with two
    files or more has one on either side; the file of a folder with only one is not held out.
    """
    folders: defaultdict[str, list[int]] = defaultdict(list)
    for place, file in enumerate(files):
        folder, slash, _ = file.partition("/")
        folders[folder if slash else ""].append(place)
    chosen: list[int] = []
    for places in folders.values():
        count = min(max(1, round(share * len(places))), len(places) - 1)
        chosen += sorted(places, key=lambda place: sha256(os.fsencode(files[place])).digest())[:count]
    return sorted(chosen)


def names_digest(*datasets: Labelled | Unlabelled) -> list[str]:
    """Return, for each data set, the number of images and a SHA-256 of their relative names and classes, which are
    compared when a run is resumed, so that the folder may move.
    """
    return [_names_digest(dataset) for dataset in datasets]


def ignored(*datasets: Labelled | Unlabelled) -> str:
    """Return one line about the files that are not read; empty if there are none."""
    # Two parts of one folder have the same lines.
    lines = dict.fromkeys(line for dataset in datasets for line in passed_over_lines(dataset))
    return f"ignored: {'; '.join(lines)}" if lines else ""


def passed_over_lines(dataset: Labelled | Unlabelled) -> list[str]:
    """Describe files that are not read, by suffix, and images outside class folders or in hidden ones."""
    if not isinstance(dataset, LabelledFolder | Unlabelled):
        return []
    name = f"{Path(dataset.root).name}/"
    suffixes = ", ".join(f"{count} {suffix}" for suffix, count in dataset.passed_over.most_common())
    lines = [f"{suffixes} in {name}"] if suffixes else []
    if isinstance(dataset, LabelledFolder):
        if dataset.outside:
            lines.append(f"{dataset.outside} images outside the class folders of {name}")
        lines += [f"images in the hidden folder {name}{hidden}" for hidden in dataset.hidden]
    return lines


def _names_digest(dataset: Labelled | Unlabelled) -> str:
    names, targets = dataset.names, [] if isinstance(dataset, Unlabelled) else dataset.targets
    shared = len(os.path.commonprefix(names).rpartition("/")[0])  # noqa: RUF071 (a list may mix relative and absolute)
    content = "\0".join([*(name[shared:].lstrip("/") for name in names), *map(str, targets)])
    return f"{len(names)} images, sha256 {sha256(os.fsencode(content)).hexdigest()}"


def _divide(config: SplitConfig, paths: Sequence[str]) -> tuple[list[int], list[int]]:
    root = str(config.data)
    held_out = held_out_of([path.removeprefix(root).lstrip("/") for path in paths], config.val_share)
    if not held_out:
        raise DataError(f"--val-share {config.val_share}: no class in {root} has a second image to hold out: add some")
    return sorted(set(range(len(paths))).difference(held_out)), held_out


def _part(whole: LabelledFolder, indices: list[int]) -> LabelledFolder:
    part = copy(whole)
    part.names = Names(whole.names[index] for index in indices)
    part.targets = [whole.targets[index] for index in indices]
    return part


def _flat(config: SplitConfig) -> Path:
    """Return --data. Raises `SettingsError` unless a share of it can be held out."""
    data, asked = config.data, f"--val-share {config.val_share}"
    if not 0 < config.val_share < 1:
        raise SettingsError(f"{asked}: it must be at least 0 and below 1")
    if config.val_folder != SplitConfig.val_folder:
        raise SettingsError(f"{asked} and --val-folder {config.val_folder}: give only one of them")
    if shard_files(data):
        raise SettingsError(f"{asked}: {data} holds shards: put some into {data}/train and some into {data}/val")
    if _folders(data / "train"):
        raise SettingsError(f"{asked}: {data} has a train/ of folders: add it to --data, or leave --val-share out")
    return data


def two_folders(config: SplitConfig) -> tuple[Path, Path]:
    """Return the folders of training and held-out images. Raises `DataError`, `SettingsError` unless both exist."""
    data, train, val = config.data, config.data / "train", config.data / config.val_folder
    if not data.is_dir():
        raise DataError(f"--data {data} is not a folder: name one with train/ and {config.val_folder}/")
    if not train.is_dir():
        raise DataError(
            f"{train} is not a folder: --data holds train/ and {config.val_folder}/. "
            "Does it hold LABEL/FILE itself? --val-share 0.2 holds out a fifth of every class"
        )
    if not val.is_dir():
        others = [f"{name}/" for name in _folders(data) if name != "train"]
        found = f"--val-folder names another ({first_of(others)}), or " if others else ""
        share = f"--data {train} --val-share 0.2 holds out a fifth of every class"
        raise DataError(f"{val} is not a folder: {found}{share}")
    if val.samefile(train):
        raise SettingsError(f"--val-folder {config.val_folder} is what is trained on: name another")
    return train, val


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not HIDDEN.match(path.name))

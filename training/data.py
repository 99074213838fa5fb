"""Images in folders or shards, FOLDER/{train,val}/LABEL/* or FOLDER/{train,val}/*.tar."""

import os
import signal
import sys
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from training import distributed
from training.augment import Transform
from training.lists import Listed, is_list, read_list
from training.randomness import IMAGE, seeded
from training.samplers import EpochBatches, Weights
from training.settings import LoopConfig
from training.shards import HIDDEN, IMAGE_SUFFIXES, Shards, image_files, is_image, shard_files

BITS_PER_SAMPLE = 258  # TIFF's tag


class DataError(ValueError):
    """A folder or an image that cannot be trained on; the message names the path."""


def load_image(file: str | BytesIO, name: str | None = None) -> Image.Image:
    """`read_image`, whose refusal says what to do in a run that has begun."""
    try:
        return read_image(file, name)
    except DataError as error:
        what = "replace it, since removing it makes another data set (python -m training.check DATA lists all of them)"
        raise DataError(f"{error}: {what}") from error


def read_image(file: str | BytesIO, name: str | None = None) -> Image.Image:
    """RGB, upright, from a path or from a file in memory called `name`.

    Raises `DataError` if it is no whole image, or one whose numbers do not say what is white.
    """
    try:
        with Image.open(file) as image:
            unsaid = bits_without_a_range(image)
            if not unsaid:
                return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name or file} cannot be decoded ({error})") from error
    raise DataError(f"{name or file} has {unsaid}, which do not say what is white (scale it to 8 or 16 bits)")


def bits_without_a_range(image: Image.Image) -> str:
    """What the pixels are, if neither 8 nor 16 bits without a sign: Pillow has 16-bit PNG as I or I;16 and PGM as I."""
    if image.mode == "F":
        return "pixels in floating point"
    if image.format == "TIFF" and image.mode.startswith("I"):
        bits = cast(Any, image).tag_v2.get(BITS_PER_SAMPLE, (1,))[0]
        if image.mode == "I" or bits != 16:
            return f"{'signed ' if bits == 16 else ''}pixels of {bits} bits"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """As the served `preprocess` does: 16-bit grey keeps its high byte, which PIL's own conversion would clip."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


class LabelledFolder(ImageFolder):
    """torchvision's, without hidden files and folders; a class may be without images.

    `passed_over`: how many files of each suffix in the class folders are not read; `outside`: images in none of them.
    """

    def __init__(self, folder: Path, transform: Transform | None) -> None:
        self.folder = str(folder)
        self.passed_over: Counter[str] = Counter()
        self.outside = 0
        super().__init__(self.folder, transform, loader=load_image)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        with os.scandir(directory) as entries:
            shown = [entry for entry in entries if not HIDDEN.match(entry.name)]
        names = sorted(entry.name for entry in shown if entry.is_dir())
        self.outside = sum(is_image(entry.name) for entry in shown if not entry.is_dir())
        if not names:
            found = f", only {self.outside} images" if self.outside else ""
            raise DataError(f"{directory} holds no folder{found}: images are expected in {directory}/LABEL/FILE")
        return names, {name: index for index, name in enumerate(names)}

    def make_dataset(self, directory: str, class_to_idx: dict[str, int], **_: Any) -> list[tuple[str, int]]:
        """(path, class index), folder by folder as torchvision has them."""
        found: list[tuple[str, int]] = []
        for name, index in sorted(class_to_idx.items()):
            files = image_files(Path(directory, name), self.passed_over)
            found += [(str(path), index) for path in sorted(files, key=lambda path: (str(path.parent), path.name))]
        return found


def folder_errors(dataset: LabelledFolder, labels: list[str] | None) -> list[str]:
    """Why a folder cannot be trained on, or evaluated with `labels`: of an unknown label, and of one without images."""
    folder, errors, used = dataset.root, [], set(dataset.targets)
    if labels is not None and "train" in set(dataset.classes).difference(labels):  # one level too high
        parts = [f"{folder}/{name}" for name in dataset.classes if name != "train"] or [f"{folder}/train"]
        return [f"{folder} holds train/ and no labels: give {' or '.join(parts)}"]
    for index, name in enumerate(dataset.classes):
        if labels is not None and name not in labels:
            known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
            errors.append(f"{folder}/{name} is not one of the {len(labels)} labels ({known}): rename or remove it")
        elif index not in used:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            errors.append(f"{folder}/{name} holds no image: fill or remove it. Images are {suffixes}")
    return errors


def image_folder(folder: str | Path, transform: Transform | None, labels: list[str] | None = None) -> LabelledFolder:
    """(image, class index) of FOLDER/LABEL/*; `labels` fixes the order of the classes, else it is alphabetical.

    Raises `DataError` for a folder that is missing, a class without images, or a label that is not in `labels`.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder: images are expected in {folder}/LABEL/FILE")
    dataset = LabelledFolder(Path(folder), transform)
    for error in folder_errors(dataset, labels):
        raise DataError(error)
    if labels is not None:
        index = [labels.index(name) for name in dataset.classes]
        dataset.samples = dataset.imgs = [(path, index[target]) for path, target in dataset.samples]
        dataset.targets = [target for _, target in dataset.samples]
        dataset.classes, dataset.class_to_idx = labels, {name: i for i, name in enumerate(labels)}
    return dataset


Images: TypeAlias = LabelledFolder | Shards | Listed


def open_images(folder: str | Path, transform: Transform | None, labels: list[str] | None = None) -> Images:
    """(image, class index) of a folder of folders, of the WebDataset shards (*.tar) that it holds, or of a list (.csv).

    Raises `DataError` as `image_folder`, for a shard that is damaged or holds a class out of range or none at all, and
    for a list whose images are not there.
    """
    if is_list(folder) and Path(folder).is_file():
        try:
            return Listed(Path(folder), load_image, transform, labels)
        except ValueError as error:
            raise DataError(str(error)) from error
    if not shard_files(folder):
        return image_folder(folder, transform, labels)
    try:
        dataset = Shards(folder, load_image, transform, labels)
    except ValueError as error:
        raise DataError(str(error)) from error
    empty = sorted(set(range(len(dataset.classes))) - set(dataset.targets))
    if empty and labels is None:
        raise DataError(f"{folder}: class {dataset.classes[empty[0]]} has no image: leave it out of the labels")
    return dataset


class Unlabelled(Dataset[Image.Image]):
    """PIL RGB images of every file below a folder, of the shards (*.tar) in it, or of a list; labels are not looked at.

    `names`: the file of each, or SHARD:MEMBER; `passed_over`: as a `LabelledFolder` has it. Raises `DataError` for a
    folder that is missing or without images, and for a shard, an image or a list that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.root = str(folder)
        self.passed_over: Counter[str] = Counter()
        self.shards: Shards | None = None
        if is_list(folder) and folder.is_file():
            try:
                self.names = [name for name, _ in read_list(folder)]
            except ValueError as error:
                raise DataError(str(error)) from error
            return
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: images or shards are expected in it")
        if shard_files(folder):
            try:
                self.shards = Shards(folder, load_image, None, labelled=False)
            except ValueError as error:
                raise DataError(str(error)) from error
            self.names = [member.key for member in self.shards.samples]
        else:
            self.names = [str(path) for path in image_files(folder, self.passed_over)]
        if not self.names:
            raise DataError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) and no .tar")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        return self.shards[index][0] if self.shards is not None else load_image(self.names[index])


class Numbered(Dataset[Any]):
    """`dataset` by (index, number of the image in the run): the number seeds what is random about the image."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, number = item
        with seeded(self.seed, IMAGE, number):
            return self.dataset[index]


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    train: bool,
    workers: int,
    seed: int = 0,
    pin_memory: bool = False,
    weights: Weights | None = None,
) -> DataLoader[Any]:
    """This process's batches (images [B,3,S,S], targets [B]).

    In training as `EpochBatches` says, and `loader.batch_sampler.set_position` is where to start. In evaluation every
    image once, in order, each process a part of them.
    """
    size = len(cast(Any, dataset))
    rank, world = distributed.rank(), distributed.world_size()
    common: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        "worker_init_fn": _begin_worker,
        "generator": torch.Generator().manual_seed(seed),  # or each iterator would draw from the run's own
    }
    if not train:
        return DataLoader(dataset, batch_size, sampler=range(rank, size, world), **common)
    windows = dataset.sizes if isinstance(dataset, Shards) else None
    batches = EpochBatches(size, batch_size, seed=seed, rank=rank, world=world, weights=weights, windows=windows)
    return DataLoader(Numbered(dataset, seed), batch_sampler=batches, **common)


def make_loaders(
    train_set: Dataset[Any], val_set: Dataset[Any], config: LoopConfig, weights: Weights | None = None
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Of the training and of the held-out images, as `config` has it."""
    loading: dict[str, Any] = {"workers": config.workers, "seed": config.seed}
    loading["pin_memory"] = config.device.startswith("cuda")
    return (
        make_loader(train_set, config.batch_size, train=True, weights=weights, **loading),
        make_loader(val_set, config.batch_size, train=False, **loading),
    )


def _begin_worker(_: int) -> None:
    """SIGTERM to all processes is the main one's to answer, which needs its workers to end the step.

    The main one's own SIGTERM still ends a worker: ignored, a main process that ends by an error would wait for ever.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    sys.excepthook = _but_for_an_ended_run


def _but_for_an_ended_run(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A main process that ends leaves batches that it was told of: no news to a user who has pressed Ctrl-C."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

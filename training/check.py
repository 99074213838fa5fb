"""Check a data set before training: decode every image, list the errors that would stop a run, and duplicate images.

Examples:
    python -m training.check my_images
    python -m training.check FOLDER_OF_LABELS --workers 8 --duplicates duplicates.csv
"""

import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import tyro
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from models.cores import usable_cores
from training.data import LabelledFolder, folder_errors, label_errors, open_images
from training.images import DataError, Labelled, read_image
from training.lists import write_csv
from training.loaders import forked
from training.logs import standard_output
from training.outputs import check_file
from training.script import exit_code, parse
from training.settings import SettingsError, check_ranges
from training.shards import Shards, shard_files
from training.splits import SplitConfig, passed_over_lines, two_folders


@dataclass(frozen=True)
class Config:
    """Check a folder of images or shards. The exit status is 1 if something in it would stop training."""

    data: tyro.conf.Positional[Path]
    """Folder with train/ and val/, a folder of LABEL/FILE or of *.tar shards, or the val.csv of a run"""
    val_folder: str = "val"
    """Name of the folder of held-out images beside train/"""
    duplicates: Path | None = None
    """Write the pairs of images with identical pixels, and their labels, to this CSV file"""
    workers: int = field(default_factory=lambda: min(1024, usable_cores()))
    """Processes that decode images; by default one per core that it may use"""


@dataclass
class Findings:
    """`errors` stop a training, `notes` do not; `parts`: what was read, in words.

    `duplicates`: the name and label of an image, and of the one before it that has the same pixels. `seen`: the digest
    of an image's pixels -> its folder, label and name.
    """

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str, str, str]] = field(default_factory=list)
    seen: dict[bytes, tuple[str, str, str]] = field(default_factory=dict)


class Decoded(Dataset[tuple[str, bytes]]):
    """For each image, why it cannot be read (empty if it can), and a digest of its pixels."""

    def __init__(self, dataset: Labelled) -> None:
        dataset.loader = read_image
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, bytes]:
        try:
            image, _ = self.dataset[index]
        except DataError as error:
            return str(error), b""
        return "", blake2b(image.tobytes(), key=repr(image.size).encode(), digest_size=16).digest()


def check_data(config: Config) -> Findings:
    """Find all that is wrong with the data. Raises `SettingsError`, and `OSError` if no list can be written."""
    check_ranges(config)
    if config.duplicates is not None:
        check_file("--duplicates", config.duplicates)
    findings = Findings()
    if not (config.data / "train").is_dir():
        labels = check_part(config.data, None, config.workers, findings)
        if labels is None:
            return findings
        remedy = "put some shards into it and some into val/" if shard_files(config.data) else "add --val-share 0.2"
        if lower := data_below(config.data):
            remedy = f"name one that has: {', '.join(lower)}"
        if config.data.is_dir():  # training.finetune takes no list
            findings.notes.append(f"{config.data} has no train/: to train on it, {remedy}")
    else:
        labels = check_part(config.data / "train", None, config.workers, findings)
        try:
            _, val = two_folders(SplitConfig(config.data, val_folder=config.val_folder))
        except (DataError, SettingsError) as error:
            findings.errors.append(str(error))
        else:
            check_part(val, labels, config.workers, findings)
    if labels is not None and len(labels) == 1:
        findings.errors.append(f"{config.data} has 1 class to train on, {labels[0]}: a classifier needs 2")
    return findings


def data_below(folder: Path) -> list[str]:
    """Return the folders in `folder` that have a train/ of labels or shards: `folder` is then one level too high."""
    found = (path for path in folder.glob("*/train/[!.]*") if path.is_dir() or path.suffix == ".tar")
    return sorted({str(path.parents[1]) for path in found})


def check_part(folder: Path, labels: list[str] | None, workers: int, findings: Findings) -> list[str] | None:
    """Add the findings of one folder; return its labels, or None if it cannot be opened."""
    dataset: Labelled
    try:
        if shard_files(folder) or not folder.is_dir():
            dataset = open_images(folder, None, labels)
        else:
            dataset = LabelledFolder(folder, None)
            findings.errors += folder_errors(dataset, labels)
            findings.notes += passed_over_lines(dataset)
    except DataError as error:
        findings.errors.append(str(error))
        return None
    if labels is None:
        findings.errors += [f"{folder}: {error}" for error in label_errors(dataset.classes)]
        findings.notes += [f"{folder}: {note}" for note in label_notes(dataset.classes)]
    what = f"{len(dataset)} images of {len(set(dataset.targets))} classes"
    findings.parts.append(
        f"{what} in {len(dataset.paths)} shards of {folder}" if isinstance(dataset, Shards) else f"{what} in {folder}"
    )
    decoded = chain.from_iterable(DataLoader(Decoded(dataset), 32, collate_fn=list, **forked(workers)))
    look_through(dataset, str(folder), decoded, findings)
    return dataset.classes


def look_through(dataset: Labelled, folder: str, decoded: Iterable[tuple[str, bytes]], findings: Findings) -> None:
    """Add errors for images that cannot be decoded, notes for those whose pixels were seen before."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for index, (error, digest) in enumerate(decoded):
        if error:
            findings.errors.append(error)
            continue
        name, label = dataset.names[index], dataset.classes[dataset.targets[index]]
        where, other_label, other = findings.seen.setdefault(digest, (folder, label, name))
        if (where, other_label, other) == (folder, label, name):  # twice in a list
            continue
        findings.duplicates.append((name, label, other, other_label))
        if where != folder:
            found[f"are in {where} too: accuracy on them says little of a model"].append(f"{name} = {other}")
        if label != other_label:
            found["have two labels"].append(f"{name} = {other}")
        elif where == folder:
            found["are there twice"].append(f"{name} = {other}")
    for what, pairs in found.items():
        more = "; --duplicates FILE.csv lists all" if len(pairs) > 1 else ""
        findings.notes.append(f"{len(pairs)} images of {folder} {what} ({pairs[0]}{more})")


def label_notes(labels: Iterable[str]) -> list[str]:
    """Return notes on labels that look the same to people."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    return [f"{len(same)} labels are alike: {', '.join(map(repr, same))}" for same in alike.values() if len(same) > 1]


def report(config: Config, console: Console) -> bool:
    """Print the findings; return whether the data can be trained on."""
    with console.status(f"decoding {config.data}"):
        findings = check_data(config)
    lines = [f"error: {error}" for error in findings.errors] + [f"note: {note}" for note in findings.notes]
    summary = f"{'; '.join(findings.parts) or config.data}: {len(findings.errors)} errors, {len(findings.notes)} notes"
    for line in [*lines, summary]:
        console.print(line, highlight=False, soft_wrap=True)
    if config.duplicates is not None:  # last: a full disk does not lose what is found
        write_csv(config.duplicates, ("image", "label", "same_as", "its_label"), findings.duplicates)
    return not findings.errors


def main() -> int:
    config = parse(Config, "training.check", __doc__)
    fine: list[bool] = []
    status = exit_code("check", lambda: fine.append(report(config, standard_output())))
    return status or int(not fine[0])


if __name__ == "__main__":
    sys.exit(main())

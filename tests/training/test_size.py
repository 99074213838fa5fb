"""What may not grow with a million images and thousands of classes: memory of workers, work that is done again."""

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tests.training.test_samplers import png, write_shard
from tests.training.test_splits import fill
from training.data import Unlabelled, image_folder, open_images
from training.images import Labelled, image_files
from training.lists import write_list
from training.loaders import Numbered, make_loader
from training.names import Names
from training.randomness import IMAGE, seeded
from training.splits import SplitConfig, open_split, open_unlabelled_split

MANY = 200_000


class Unscanned(list):
    """Labels that must not be looked through for each image or class."""

    def index(self, *_: object) -> int:
        raise AssertionError("looked through")

    def __contains__(self, _: object) -> bool:
        raise AssertionError("looked through")


class Written(Dataset[float]):
    """MB that a worker has written to, and no longer shares, while it does `work`."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work

    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: int) -> float:
        before = self.private()
        self.work()
        return self.private() - before

    @staticmethod
    def private() -> float:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def written(work: Callable[[], object]) -> float:
    loader = make_loader(Written(work), 1, train=False, workers=1)
    return float(next(iter(loader)))


def test_names_are_a_sequence() -> None:
    texts = ["a.jpg", "", "ü/\udcff.png", "b c\n.jpg"]  # a byte that is not UTF-8, as Python has it
    names = Names(texts)
    assert list(names) == texts
    assert [names[index] for index in range(4)] == texts
    assert (len(names), names[-1], names[np.int64(2)]) == (4, texts[3], texts[2])
    for index in (4, -5):
        with pytest.raises(IndexError):
            names[index]
    assert not Names([])
    assert list(Names([])) == []


def test_workers_share_the_names() -> None:
    names = Names(f"/data/imagenet/train/n{index:08d}/n{index:08d}.JPEG" for index in range(MANY))
    plain = list(names)
    assert written(lambda: [names[index] for index in range(0, MANY, 3)][:0]) < 12
    assert written(lambda: [plain[index] for index in range(0, MANY, 3)][:0]) > 15, "else this would show nothing"


def test_data_sets_hold_no_object_for_each_image(tmp_path: Path) -> None:
    folder = fill(tmp_path / "flat", ant=3, cat=3)
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards/0.tar", {"a.png": png(0), "a.cls": b"0"})
    images = image_folder(folder, None)
    write_list(tmp_path / "list.csv", images)
    shares = SplitConfig(folder, val_share=0.4)
    assert {type(file) for file in image_files(folder, Counter())} == {str}, "Path objects took most of the start"
    sets: list[Labelled | Unlabelled] = [images, open_images(tmp_path / "list.csv", None), *open_split(shares)]
    sets += [Unlabelled(folder), Unlabelled(tmp_path / "list.csv"), *open_unlabelled_split(shares)]
    sets += [shards := open_images(tmp_path / "shards", None), Unlabelled(tmp_path / "shards")]
    assert [type(dataset.names) for dataset in sets] == [Names] * len(sets)
    assert isinstance(shards.members, np.ndarray)


def test_a_class_is_one_object_however_many_images_it_has(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for key in "abc":
        members |= {f"{key}.png": png(0), f"{key}.cls": b"1000"}
    write_shard(tmp_path / "0.tar", members)
    assert len({id(target) for target in open_images(tmp_path, None, [str(n) for n in range(1001)]).targets}) == 1


def test_a_workers_collections_leave_what_it_shares() -> None:
    kept = [[index] for index in range(MANY)]
    assert written(gc.collect) < 8
    assert len(kept) == MANY


def test_labels_are_not_looked_through_for_each_image(tmp_path: Path) -> None:
    labels = Unscanned(["cat", "ant", "cat"])
    folder = fill(tmp_path / "flat", ant=1, cat=1)
    assert image_folder(folder, None, labels).targets == [1, 0]
    write_shard(tmp_path / "0.tar", {"a.png": png(0), "a.json": b'{"label": "cat"}'})
    assert open_images(tmp_path, None, labels).targets == [0], "of equal labels the first"


def test_a_worker_seeds_and_puts_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's state alone takes longer to save and to put back than all there is to seed."""

    class Drawn(Dataset[float]):
        def __getitem__(self, _: int) -> float:
            return np.random.rand() + torch.rand(()).item()

    numbered = torch.utils.data.DataLoader(Numbered(Drawn(), 7), sampler=[(0, 5), (0, 6), (0, 5)], num_workers=1)  # type: ignore[arg-type]
    with seeded(7, IMAGE, 5):
        expected = np.random.rand() + torch.rand(()).item()
    monkeypatch.setattr(np.random, "get_state", lambda: pytest.fail("saved"))
    first, other, again = (float(value) for value in numbered)
    assert first == again == expected != other


def test_batches_that_are_passed_over_are_not_decoded(tmp_path: Path) -> None:
    dataset = image_folder(fill(tmp_path / "flat", ant=20, cat=20), None)
    read: list[str] = []
    dataset.loader = lambda source, *_: read.append(source) or torch.zeros(1)  # type: ignore[assignment, func-returns-value]
    loader: Any = make_loader(dataset, 4, train=True, workers=0)
    loader.batch_sampler.set_position(3, first=8)
    assert len(list(loader)) == 2
    assert len(read) == 8

"""Costs that may not grow with millions of images and thousands of classes: workers' memory, repeated work."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

import training.loop
from tests.training.runs import QUIET, Killed, Tiny, before_step, die
from tests.training.test_samplers import png, write_shard
from tests.training.test_splits import fill
from training.accuracy import count_answers
from training.data import Unlabelled, image_folder, open_images
from training.finetune import train
from training.images import Labelled, image_files
from training.lists import write_list
from training.loaders import Numbered, forked, make_loader
from training.long_tail import long_tail_counts, long_tail_subset
from training.names import Names
from training.randomness import IMAGE, seeded
from training.splits import SplitConfig, open_split, open_unlabelled_split
from training.state import load_state

MANY = 200_000


class Unscanned(list):
    """Labels that must not be looked through for each image or class."""

    def index(self, *_: object) -> int:
        raise AssertionError("looked through")

    def __contains__(self, _: object) -> bool:
        raise AssertionError("looked through")


class Written(Dataset[float]):
    """Return the MB that a worker wrote to, and no longer shares, during `work`."""

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
    """To save and restore NumPy's state takes longer than to seed all generators."""

    class Drawn(Dataset[float]):
        def __getitem__(self, _: int) -> float:
            return np.random.rand() + torch.rand(()).item()

    numbered = torch.utils.data.DataLoader(Numbered(Drawn(), 7), sampler=[(0, 5), (0, 6), (0, 5)], **forked(1))  # type: ignore[arg-type]
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


@pytest.mark.parametrize("asked", [True, False])
def test_an_evaluation_has_one_matrix_of_all_classes_where_it_is_asked_for(asked: bool) -> None:
    """One for each batch took 0.8 s of 8,142 classes, and the room of two; an epoch's figures need none."""

    class Large(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.storages: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= 300 * 300:
                self.storages.add(out.untyped_storage().data_ptr())
            return out

    logits = torch.randn(8, 300)
    batches = [(torch.zeros(8, 1, 2, 2), torch.arange(8)) for _ in range(4)]
    model, ranked = torch.nn.Module(), []
    model.forward = lambda images: logits  # type: ignore[method-assign]
    confusion = torch.zeros(300, 300, dtype=torch.int64) if asked else None
    with Large() as large:
        counts, _ = count_answers(model, batches, 300, ranked=ranked, confusion=confusion)  # type: ignore[arg-type]
    assert counts[0].sum() == 32
    if confusion is None:
        assert not large.storages
    else:
        assert large.storages == {confusion.untyped_storage().data_ptr()}
        assert confusion.sum() == 32
        assert confusion[0, logits[0].argmax()] == 4
    assert [order.untyped_storage().nbytes() for order, _ in ranked] == [8 * 5 * 8] * 4, "no view of all classes"


def plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Looked) else value


class Looked(np.ndarray):
    """An array that notes every operation on it."""

    noted: ClassVar[list[str]] = []

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        self.noted.append(ufunc.__name__)
        return getattr(ufunc, method)(*map(plain, inputs), **options)

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        self.noted.append(function.__name__)
        return function(*map(plain, inputs), **options)


def test_a_long_tail_is_cut_in_one_look_at_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in one for each of thousands of classes; the images are those that one each would give."""
    labels, rng = np.random.RandomState(1).permutation(np.arange(1000) % 50), np.random.RandomState(3)
    counts = long_tail_counts(20, 50, 10)
    expected = [rng.permutation(np.flatnonzero(labels == index))[:count] for index, count in enumerate(counts)]
    monkeypatch.setattr(np, "asarray", lambda it: np.array(it).view(Looked) if isinstance(it, list) else it)
    assert long_tail_subset(labels.tolist(), 50, 10, seed=3) == sorted(np.concatenate(expected).tolist())
    assert 0 < len(Looked.noted) < 5, "an operation each has 50"


def test_a_resumed_run_does_not_keep_the_state_that_it_read(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.3 GB of replknet_31b, which the processes share while they read it; a file that is replaced is let go."""
    config = tiny(tmp_path / "run", epochs=1, save_every=2)
    held: list[weakref.ref[torch.Tensor]] = []

    def mapped() -> bool:
        return str(config.output / "last/state.pt") in Path("/proc/self/maps").read_text()

    def watched(folder: Path) -> Any:
        state = load_state(folder)
        assert mapped() == (state is not None)
        held.extend(map(weakref.ref, state["learner"].values()) if state else [])
        return state

    with monkeypatch.context() as patch:
        before_step(3, die, patch)
        with pytest.raises(Killed):
            train(config, QUIET)
    monkeypatch.setattr(training.loop, "load_state", watched)
    alive: list[int] = []
    before_step(4, lambda: alive.append(sum(ref() is not None for ref in held) + mapped()), monkeypatch)
    train(config, QUIET)
    assert held
    assert alive == [0]

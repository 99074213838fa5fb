"""The order of images: epochs, resumption, several processes, shards, random numbers."""

import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.runs import ROOT
from training.data import Unlabelled, open_images
from training.explain import find_images
from training.images import DataError, Transform, load_image
from training.loaders import make_loader
from training.masking import MaskedImages, MaskGenerator
from training.randomness import IMAGE, STEP, derived_seed, seed_everything, seeded
from training.samplers import EpochBatches
from training.settings import SettingsError
from training.shards import Shards


def indices(batches: EpochBatches) -> list[list[int]]:
    return [[index for index, _ in batch] for batch in batches]


def flat(batches: EpochBatches) -> list[int]:
    return [index for batch in indices(batches) for index in batch]


def test_each_image_once_and_another_order_each_epoch() -> None:
    batches = EpochBatches(20, 5, seed=1)
    first = indices(batches)
    assert sorted(flat(batches)) == list(range(20))
    assert indices(batches) == first
    batches.set_position(1)
    assert indices(batches) != first
    assert indices(EpochBatches(20, 5, seed=2)) != first


def test_any_place_in_an_epoch() -> None:
    batches = EpochBatches(20, 3)
    whole = list(batches)
    batches.set_position(0, first=4)
    assert list(batches) == whole[4:]
    assert len(batches) == 6, "of a whole epoch"
    assert sorted(flat(EpochBatches(3, 8))) == [0, 1, 2], "a set smaller than one batch is one"
    batches.set_position(3)
    assert [number for _, number in next(iter(batches))] == [60, 61, 62], "numbers go on over epochs"


def test_processes_share_what_one_would_take() -> None:
    one = list(EpochBatches(26, 8))
    two = [list(EpochBatches(26, 4, rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two, strict=True)] == one
    with pytest.raises(SettingsError, match="7 images are too few for 2 processes x --batch-size 4"):
        EpochBatches(7, 4, world=2)


def test_weights_draw_with_replacement() -> None:
    weights = torch.tensor([0.0] * 50 + [1.0] * 50)
    batches = EpochBatches(100, 10, weights=lambda epoch: weights if epoch else None)
    assert len(set(flat(batches))) == 100
    batches.set_position(1)
    drawn = flat(batches)
    assert len(drawn) == 100
    assert min(drawn) >= 50
    assert len(set(drawn)) < 50


def test_windows_keep_shards_together() -> None:
    batches = EpochBatches(40, 5, windows=[10, 10, 10, 10], buffer=10)
    order = flat(batches)
    assert sorted(order) == list(range(40))
    assert all(len({index // 10 for index in order[start : start + 10]}) == 1 for start in range(0, 40, 10))
    assert [index // 10 for index in order[::10]] != [0, 1, 2, 3]
    assert order[:10] != sorted(order[:10])


def test_random_numbers_are_of_their_place() -> None:
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_everything(0, STEP, 5)
    outside = draw()
    seed_everything(0, STEP, 5)
    with seeded(0, IMAGE, 5):
        inside = draw()
    assert draw() == outside, "the run's own numbers go on as if nothing had been drawn"
    with seeded(0, IMAGE, 5):
        assert draw() == inside
    assert inside != outside
    assert len({derived_seed(0, stream, n) for stream in range(3) for n in range(100)}) == 300


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    first = {f"{n}.{suffix}": content for n in range(3) for suffix, content in (("png", png(n)), ("cls", b"%d" % n))}
    second = {"a/x.json": json.dumps({"label": "cat"}).encode(), "a/x.png": png(3), "notes": b"-"}
    write_shard(tmp_path / "00.tar", first)
    write_shard(tmp_path / "01.tar", {**second, "a/y.png": png(4), "a/y.cls": b"2\n", "a/z.txt": b"1"})
    (tmp_path / "labels.txt").write_text("ant\ncat\ndog\n")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_read_as_folders_are(shards: Path, workers: int) -> None:
    dataset = open_images(shards, Transform([lambda image: torch.tensor(image.getpixel((0, 0))[0])]))
    assert isinstance(dataset, Shards)
    assert dataset.classes == ["ant", "cat", "dog"]
    assert dataset.targets == [0, 1, 2, 1, 2]
    assert dataset.sizes == [3, 2]
    loader = make_loader(dataset, 2, train=False, workers=workers)
    assert [value for batch, _ in loader for value in batch.tolist()] == [0, 1, 2, 3, 4]
    train = make_loader(dataset, 5, train=True, workers=workers)
    ((values, targets),) = list(train)
    assert sorted(values.tolist()) == [0, 1, 2, 3, 4]
    assert [dataset.targets[value] for value in values.tolist()] == targets.tolist()
    assert dataset[0][0] == 0


def test_one_batch_of_an_evaluation_is_decoded_where_it_is_needed() -> None:
    for size, workers in ((1, 0), (3, 0), (4, 2)):
        loader = make_loader([(number, 0) for number in range(size)], 3, train=False, workers=2)
        assert loader.num_workers == workers
        assert [value for batch, _ in loader for value in batch.tolist()] == list(range(size))
    assert make_loader([(0, 0)], 3, train=True, workers=2).num_workers == 2


def test_pretraining_keeps_shards_together(shards: Path) -> None:
    masked = MaskedImages(Unlabelled(shards), Transform([lambda image: image]), MaskGenerator(32, 16, 0.5))
    assert make_loader(masked, 2, train=True, workers=0).batch_sampler.windows == [3, 2]


def test_more_shards_than_files_that_may_be_open(tmp_path: Path) -> None:
    for number in range(80):
        write_shard(tmp_path / f"{number}.tar", {"a.png": png(number), "a.cls": b"%d" % (number % 2)})
    script = (
        "import resource, sys\n"
        "from training.data import open_images\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "dataset = open_images(sys.argv[1], None)\n"
        "print(sum(1 for _ in range(2) for index in range(len(dataset)) if dataset[index]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ended.stdout == "160\n", ended.stderr


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": png(0)}, r"bad\.tar: /a has an image and no \.cls"),
        ({"a.png": png(0), "a.cls": b"3"}, r"a\.cls: class 3 is out of range: there are 3 labels"),
        ({"a.png": png(0), "a.cls": b"-1"}, r"class -1 is out of range"),
        ({"a.png": png(0), "a.cls": b"\xff"}, r"a\.cls: the class '.' is neither an index nor in labels\.txt"),
        ({"a.png": png(0), "a.cls": b"cow"}, r"the class 'cow' is neither an index nor in labels\.txt"),
        ({"a.png": png(0), "a.json": b'{"label": 1.9}'}, r"a\.json: the class 1\.9 is neither an index"),
        ({"a.png": png(0), "a.json": b'{"label": true}'}, r"a\.json: the class True is neither an index"),
        (
            {"a.jpg": png(0), "a.png": png(1), "a.cls": b"1"},
            r":a\.jpg and a\.png are two images of one key: keep",
        ),
        ({"a.png": png(0), "a.json": b"[]"}, r'a\.json is not a JSON object with "label" or "cls"'),
        ({"a.txt": b"1"}, "hold no pair"),
        ({"a.cls": b"1", "a.gif": b"", "b.png": png(0), "b.cls": b"1"}, r"/a has a class and no image .*\.tiff"),
        (
            {"x/IMG_2024.05.01.JPG": png(0), "x/IMG_2024.05.01.cls": b"1", "b.png": png(0), "b.cls": b"1"},
            r"bad\.tar:x/IMG_2024\.05\.01\.JPG: a key ends at its first dot, so \.05\.01\.JPG is not read: rename it",
        ),
    ],
)
def test_bad_shards_are_named(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "bad.tar", members)
    (tmp_path / "labels.txt").write_text("ant\ncat\ndog\n")
    with pytest.raises(DataError, match=message):
        open_images(tmp_path, None)


def test_another_image_of_a_key_is_passed_over(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.depth.png": png(1), "a.jpg": png(0), "a.seg.png": png(2), "a.cls": b"0"})
    assert list(open_images(tmp_path, None).names) == list(Unlabelled(tmp_path).names) == [f"{tmp_path}/0.tar:a.jpg"]
    write_shard(tmp_path / "1.tar", {"a.b.png": png(0)})
    with pytest.raises(DataError, match=r"1\.tar:a\.b\.png: a key ends at its first dot"):
        Unlabelled(tmp_path)


def test_a_number_that_is_no_index_is_named(tmp_path: Path) -> None:
    """Making labels for all 1,700,000,000 classes would fill the memory."""
    write_shard(tmp_path / "0.tar", {"a.png": png(0), "a.cls": b"0", "b.png": png(1), "b.cls": b"1700000000"})
    with pytest.raises(DataError, match=r"0\.tar:b\.png: class 1700000000, but .* has 2 images: without labels\.txt"):
        open_images(tmp_path, None)


def test_a_shards_labels_are_lines_and_no_byte_order_mark(shards: Path) -> None:
    (shards / "labels.txt").write_bytes("\ufeffant\u2028eater\r\ncat\r\ndog\x85".encode())
    assert open_images(shards, None).classes == ["ant\u2028eater", "cat", "dog\x85"]


def test_shards_of_other_labels_than_the_models_are_refused(shards: Path) -> None:
    """Their indices would be taken for the model's: every image of two swapped classes counted as wrong."""
    assert open_images(shards, None, ["ant", "cat", "dog", "eel"]).targets == [0, 1, 2, 1, 2]
    with pytest.raises(DataError, match=r"labels\.txt differs from the 3 labels \(cat, ant, dog\): give it those, in"):
        open_images(shards, None, ["cat", "ant", "dog"])


def test_an_index_is_no_label(tmp_path: Path) -> None:
    """Labels that are numbers: an integer is the index all the same, a text is the label."""
    members = {"a.png": png(0), "a.cls": b"0", "b.png": png(1), "b.cls": b"1", "c.png": png(2), "c.cls": b"2\n"}
    texts = {"d.png": png(3), "d.json": b'{"label": "1"}', "e.png": png(4), "e.json": b'{"cls": 1}'}
    write_shard(tmp_path / "0.tar", {**members, **texts})
    (tmp_path / "labels.txt").write_text("1\n2\n3\n")
    assert open_images(tmp_path, None).targets == [0, 1, 2, 0, 1]


def test_a_class_in_a_file_of_its_own_leaves_the_json_to_what_it_holds(tmp_path: Path) -> None:
    about = {"a.json": b'{"width": 8, "url": "x"}', "b.json": b'{"label": 0}', "c.json": b"no JSON"}
    for order, suffixes in enumerate((("png", "cls", "json"), ("json", "cls", "png"))):
        members = {f"{key}.{suffix}": png(0) for key in "abc" for suffix in suffixes}
        classes = {f"{key}.cls": b"%d" % number for number, key in enumerate("abc")}
        write_shard(tmp_path / f"{order}.tar", members | classes | about)
    assert open_images(tmp_path, None).targets == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".pgm", ".jpeg", ".JFIF", ".webp"])
def test_shards_and_folders_read_the_same_files(suffix: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (6, 5), 7).save(buffer, Image.registered_extensions()[suffix.lower()])
    (tmp_path / "folder" / "x").mkdir(parents=True)
    (tmp_path / "folder" / "x" / f"0{suffix}").write_bytes(buffer.getvalue())
    write_shard(tmp_path / "0.tar", {f"0{suffix}": buffer.getvalue(), "0.cls": b"0"})
    for source in (tmp_path, tmp_path / "folder"):
        assert [image.size for image, _ in open_images(source, None)] == [(6, 5)]
        assert len(Unlabelled(source)) == len([*find_images(source, 9, Transform([lambda it: it]))]) == 1


def test_hidden_members_and_shards_are_not_read(tmp_path: Path) -> None:
    members = {"./x/a.png": png(0), "./x/._a.png": b"no image", "./x/a.cls": b"0"}
    write_shard(tmp_path / "0.tar", {**members, "./x/.ipynb_checkpoints/a-checkpoint.png": png(1)})
    (tmp_path / "._0.tar").write_bytes(b"no shard")
    assert [image.getpixel((0, 0))[0] for image, _ in open_images(tmp_path, None)] == [0]
    assert len(Unlabelled(tmp_path)) == 1


def test_damaged_shards_and_images_are_named(shards: Path) -> None:
    write_shard(shards / "00.tar", {"a.png": png(0), "a.cls": b"0"})
    write_shard(shards / "01.tar", {"b.png": png(0), "b.cls": b"1"})
    with pytest.raises(DataError, match="class dog has no image"):
        open_images(shards, None)
    write_shard(shards / "01.tar", {"b.png": b"no image", "b.cls": b"1", "c.png": png(0), "c.cls": b"2"})
    dataset = open_images(shards, None)
    with pytest.raises(DataError, match=r"01\.tar:b\.png cannot be decoded"):
        dataset[1]
    (shards / "01.tar").write_bytes((shards / "01.tar").read_bytes()[:700])
    with pytest.raises(DataError, match=r"01\.tar cannot be read .*uncompressed"):
        open_images(shards, None)
    assert load_image(io.BytesIO(png(9)), "x").getpixel((0, 0)) == (9, 0, 0)

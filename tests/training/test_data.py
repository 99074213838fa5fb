"""The digits on disk, the transforms and the refusals of training.data."""

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from models import ModelConfig
from tests.training.test_splits import fill
from training.augment import AugmentConfig, eval_transform, train_transform
from training.data import Unlabelled, image_folder
from training.images import DataError, load_image
from training.loaders import make_loader
from training.samples import write_digits

CONFIG = ModelConfig("replknet_nano", 10, image_size=32, crop_pct=0.875, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_digits_are_all_there_and_unchanged(digits: Path) -> None:
    images, targets = load_digits(return_X_y=True)
    files = {int(path.stem): path for path in digits.glob("*/*/*.png")}
    assert sorted(files) == list(range(len(images)))
    for number in range(0, len(images), 50):
        pixels = np.asarray(Image.open(files[number]))
        assert np.array_equal(np.rint(pixels.astype(float) * 16 / 255), images[number].reshape(8, 8))
        assert files[number].parent.name == str(targets[number])


def test_nothing_leaks_from_held_out_to_train(digits: Path) -> None:
    def fingerprints(part: str) -> list[str]:
        paths = (digits / part).glob("*/*.png")
        return [hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest() for path in paths]

    train, val = fingerprints("train"), fingerprints("val")
    assert len(train) + len(val) == 1797
    assert not set(train) & set(val), "the same picture is trained on and held out"


def test_split_is_stratified_and_the_same_everywhere(digits: Path) -> None:
    held_out = sorted(int(path.stem) for path in (digits / "val").glob("*/*.png"))
    for label in range(10):
        val = len(list((digits / "val" / str(label)).iterdir()))
        train = len(list((digits / "train" / str(label)).iterdir()))
        assert val == round(0.2 * (val + train))
    assert len(held_out) == 359
    assert hashlib.sha256(str(held_out).encode()).hexdigest()[:16] == "b37f0e405e66aef4"


def test_digits_are_written_once_and_never_over_other_files(digits: Path, tmp_path: Path) -> None:
    path = next(digits.glob("train/0/*.png"))
    before = path.stat().st_mtime_ns
    assert write_digits(digits) == digits
    assert path.stat().st_mtime_ns == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match=r"mine holds 0 of the 1797 digits: remove it"):
        write_digits(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("size", [(50, 40), (8, 8), (33, 97)])
def test_eval_transform_is_timms(size: tuple[int, int]) -> None:
    from timm.data import create_transform

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    timms = create_transform(
        (3, 32, 32), crop_pct=CONFIG.crop_pct, interpolation="bicubic", mean=tuple(CONFIG.mean), std=tuple(CONFIG.std)
    )
    torch.testing.assert_close(eval_transform(CONFIG)(image), timms(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("augmentation", ["affine", "crop"])
def test_train_transform_varies_and_is_seeded(augmentation: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    transform = train_transform(CONFIG, AugmentConfig(augmentation))
    torch.manual_seed(1)
    first, second = transform(image), transform(image)
    torch.manual_seed(1)
    again = transform(image)
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_digits_are_never_mirrored() -> None:
    """A picture that is white on its left stays so under "affine", and not under "crop"."""
    image = Image.fromarray(np.repeat(np.repeat([[[255]] * 16 + [[0]] * 16], 32, 0), 3, 2).astype(np.uint8))

    def left_is_brighter(augmentation: str) -> list[bool]:
        pictures = [train_transform(CONFIG, AugmentConfig(augmentation))(image) for _ in range(40)]
        return [bool(picture[:, :, :16].mean() >= picture[:, :, 16:].mean()) for picture in pictures]

    torch.manual_seed(0)
    assert all(left_is_brighter("affine"))
    assert not all(left_is_brighter("crop"))


def test_labels_fix_the_order_of_the_classes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", cat=2, ant=1)
    dataset = image_folder(folder, eval_transform(CONFIG), ["cat", "dog", "ant"])
    labels = [Path(name).parent.name for name in dataset.names]
    assert list(zip(labels, dataset.targets, strict=True)) == [("ant", 2), ("cat", 0), ("cat", 0)]
    assert [target for _, target in dataset] == dataset.targets


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path: Path) -> None:
    """A notebook leaves .ipynb_checkpoints, macOS ._FILE; what lies below a hidden folder may be data."""
    folder = fill(tmp_path / ".cache" / "images", cat=2, ant=1)
    fill(folder, **{".ipynb_checkpoints": 0})
    fill(folder / "cat", **{".ipynb_checkpoints": 3})
    fill(folder, **{"__MACOSX": 1})  # what an archive made on macOS unpacks to
    fill(folder / "ant" / "__MACOSX", x=1)
    (folder / "ant" / "._0.png").write_bytes(b"no image")
    for labels in (None, ["ant", "cat"]):
        dataset = image_folder(folder, None, labels)
        assert (dataset.classes, dataset.targets) == (["ant", "cat"], [0, 1, 1])
    assert [Path(name).relative_to(folder).as_posix() for name in Unlabelled(folder).names] == [
        "ant/0.png",
        "cat/0.png",
        "cat/1.png",
    ]
    fill(tmp_path / "only", **{".ipynb_checkpoints": 1})
    with pytest.raises(DataError, match=r"only holds no folder: images are expected in .*only/LABEL/FILE"):
        image_folder(tmp_path / "only", None)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", cat=2, ant=1)
    with pytest.raises(DataError, match=r"cat is not one of the 1 labels \(ant\): rename or remove it"):
        image_folder(folder, None, ["ant"])
    with pytest.raises(DataError, match="nowhere is not a folder"):
        image_folder(tmp_path / "nowhere", None)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"images/empty holds no image: fill or remove it\. Images are \.bmp, "):
        image_folder(folder, None)
    with pytest.raises(DataError, match=r"images/empty is not one of the 2 labels"):
        image_folder(folder, None, ["ant", "cat"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"bare holds no folder: images are expected in .*bare/LABEL/FILE"):
        image_folder(tmp_path / "bare", None)
    (tmp_path / "bare" / "a.png").touch()
    with pytest.raises(
        DataError, match=r"bare holds no folder, only 1 images: images are expected in .*; training\.explain answers"
    ):
        image_folder(tmp_path / "bare", None)


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", cat=2, ant=1)
    for name in ("cat/a.gif", "cat/b.GIF", "ant/deep/c.heic", "ant/notes", "ant/._d.gif", "e.png", "f.gif"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    dataset = image_folder(folder, None)
    assert dataset.passed_over == {".gif": 2, ".heic": 1, "without a suffix": 1}
    assert (len(dataset), dataset.outside) == (3, 1)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        DataError, match=r"half\.png cannot be decoded .*: replace it, or remove it and begin .*training\.check DATA"
    ):
        load_image(str(path))


def tiff(*, bits: int, kind: int, pixels: np.ndarray, white: int = 1) -> bytes:
    """Grey, uncompressed, one strip; `kind`: 1 unsigned, 2 signed, 3 float; `white` 0: 0 is white (TIFF 6.0)."""
    height, width = pixels.shape
    content = pixels.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: white, 273: 8, 277: 1, 278: height, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in {**tags, 339: kind}.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(content))
    return header + content + struct.pack("<H", len(tags) + 1) + entries + b"\0" * 4


@pytest.mark.parametrize(
    ("bits", "kind", "dtype", "message"),
    [
        (32, 3, "float32", "pixels in floating point"),
        (32, 2, "int32", "pixels of 32 bits"),
        (32, 1, "uint32", "pixels of 32 bits"),
        (16, 2, "int16", "signed pixels of 16 bits"),
        (12, 1, "uint8", "pixels of 12 bits"),
    ],
)
def test_grey_of_unknown_range_is_no_black_image(bits: int, kind: int, dtype: str, message: str) -> None:
    """A float of 0..1 or an integer of 32 bits has nothing in the high byte of 16 bits."""
    content = tiff(bits=bits, kind=kind, pixels=np.ones((4, 6), dtype))
    with pytest.raises(DataError, match=rf"^x\.tif has {message}, whose range is not known \(scale it.*\): replace it"):
        load_image(io.BytesIO(content), "x.tif")


def test_sixteen_bits_of_which_0_is_white_are_not_turned_round() -> None:
    """Pillow does it only at 8 bits."""
    pixels = np.array([[0x10, 0xF0]])
    content = tiff(bits=8, kind=1, pixels=pixels.astype(np.uint8), white=0)
    assert np.asarray(load_image(io.BytesIO(content)))[0, :, 0].tolist() == [0xEF, 0x0F]
    content = tiff(bits=16, kind=1, pixels=(pixels << 8).astype(np.uint16), white=0)
    with pytest.raises(DataError, match=r"^x\.tif has 16-bit pixels of which 0 is white \(scale it .*\): replace it"):
        load_image(io.BytesIO(content), "x.tif")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_read_from_any_format(kind: str) -> None:
    file = io.BytesIO()
    if kind == "PPM":
        file.write(b"P5\n2 1\n65535\n\xff\x00\x12\x34")
    else:
        Image.fromarray(np.array([[0xFF00, 0x1234]], np.uint16)).save(file, kind)
    assert np.asarray(load_image(file))[0, :, 0].tolist() == [0xFF, 0x12]


def test_images_are_rgb_and_upright(tmp_path: Path) -> None:
    image = Image.new("L", (10, 20), 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    loaded = load_image(str(tmp_path / "turned.jpg"))
    assert (loaded.mode, loaded.size) == ("RGB", (20, 10))


def test_damaged_exif_data_is_no_reason_to_refuse_or_to_lie_on_the_side() -> None:
    """A resolution in text: Pillow's exif_transpose, which writes the rest back, raises TypeError."""
    tags = struct.pack("<HHII", 0x112, 3, 1, 6) + struct.pack("<HHI4s", 0x11A, 2, 4, b"300")
    file = io.BytesIO()
    Image.new("RGB", (10, 20)).save(file, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tags + b"\0" * 4)
    assert load_image(file).size == (20, 10)


def test_loader_shuffles_by_seed_and_keeps_small_sets(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", a=5, b=5)
    dataset = image_folder(folder, eval_transform(CONFIG))

    def order(seed: int, train: bool = True, batch_size: int = 4) -> list[int]:
        loader = make_loader(dataset, batch_size, train=train, workers=0, seed=seed)
        return [round(float(x)) for images, _ in loader for x in images[:, 0, 0, 0] * 0.5 * 255 + 0.1 * 255]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert len(order(0)) == 8, "the incomplete batch is left out in training"
    assert len(order(0, train=False)) == 10
    assert len(order(0, batch_size=64)) == 10, "fewer images than a batch are still trained on"

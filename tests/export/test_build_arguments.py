"""build_models.py: what it refuses, in one clear line."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from built_repository import SIZE
from PIL import Image

from build_models import main, parse_arguments
from export.build import BuildOptions, build
from export.parity import real_pixels
from export.source import check_options, load_model
from models import ModelConfig, create_model, load_config, save_checkpoint
from models.errors import SettingsError

ROOT = Path(__file__).parents[2]
# Of input, not of an option's value: exit status 1.
INPUT = ("nowhere does not exist", "missing.txt", "no is not a folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--random-weights"),
        (["--arch", "replknet_31c", "--random-weights"], "replknet_31b"),
        (["--weights", "nowhere"], "nowhere does not exist"),
        (["--arch", "replknet_nano", "--random-weights", "--format", "tensorrt"], "torchscript, onnx"),
        (
            ["--arch", "replknet_nano", "--random-weights", "--format", ","],
            "--format (empty): choose from torchscript",
        ),
        (["--weights", "tests", "--random-weights"], "--weights tests or --random-weights, not both"),
        (["--arch", "replknet_nano", "--random-weights", "--image-size", "8"], "32"),
        (["--arch", "replknet_nano", "--random-weights", "--version", "0"], "1, 2, 3"),
        (["--arch", "replknet_nano", "--random-weights", "--version", f"{10**18 + 1}"], "..., 1000000000000000000"),
        (
            ["--arch", "replknet_nano", "--random-weights", "--labels", "tests"],
            "--labels tests is a folder: name a text",
        ),
        (["--arch", "replknet_nano", "--random-weights", "--crop-pct", "1.5"], "--crop-pct 1.5"),
        (["--arch", "replknet_nano", "--random-weights", "--crop-pct", "0.05"], "--crop-pct 0.05: it must be 0.1 to 1"),
        (["--arch", "replknet_nano", "--random-weights", "--crop-mode", "middle"], "one of center, squash, border"),
        (["--random-weights"], "needs --arch"),
        (["--arch", "replknet_nano", "--random-weights", "--parity-images", "no"], "-images no is not a folder"),
        (["--arch", "replknet_nano", "--random-weights", "--labels", "missing.txt"], "missing.txt"),
        (["--arch", "replknet_nano", "--random-weights", "--threads", "-1"], "--threads -1"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["build_models.py", *arguments, "--output", str(tmp_path / "models")])
    assert main() == (1 if message.endswith(INPUT) else 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_label_count_must_fit(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(RuntimeError, match="2 labels for 5 classes"):
        build(BuildOptions(weights=checkpoint, labels=tmp_path / "labels.txt", output=tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_weights_file_beside_its_config(checkpoint: Path, tmp_path: Path) -> None:
    model, config = load_model(BuildOptions(weights=checkpoint / "model.safetensors"))
    assert config == load_config(checkpoint)
    copy = tmp_path / "alone.safetensors"
    shutil.copy(checkpoint / "model.safetensors", copy)
    with pytest.raises(ValueError, match=r"no config\.json that training has written lies beside .*alone\.safetensors"):
        load_model(BuildOptions(weights=copy))
    for other in (None, '{"architecture": "replknet", "num_classes": 7}'):  # Hugging Face's
        if other is not None:
            (tmp_path / "config.json").write_text(other)
        options = parse_arguments(["--arch", "replknet_nano", "--weights", str(copy), "--crop-mode", "squash"])
        model, config = load_model(replace(options, crop_pct=1.0))
        assert (config.num_classes, config.crop_pct, config.crop_mode) == (5, 1.0, "squash")  # the head says how many
        assert model.head.out_features == 5
    with pytest.raises(ValueError, match=r"--arch is needed: no config\.json that training has written"):
        load_model(BuildOptions(weights=copy))
    for content, message in (("{", "is not JSON"), ("[]", "holds a list: an object is needed")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_model(BuildOptions(arch="replknet_nano", weights=copy))


def test_a_pre_trained_encoder_is_no_classifier(tmp_path: Path) -> None:
    """Its checkpoint has an empty head of one class, whose probability is always 1."""
    folder = tmp_path / "pre-trained"
    save_checkpoint(folder, create_model("replknet_nano", 1), ModelConfig("replknet_nano", 1))
    with pytest.raises(ValueError, match="pre-trained is a pre-trained encoder and cannot classify: fine-tune it"):
        build(BuildOptions(weights=folder, output=tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_broken_parity_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"half\.png cannot be decoded"):
        real_pixels(tmp_path, SIZE)
    (tmp_path / "half.png").rename(tmp_path / "._whole.png")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        real_pixels(tmp_path, SIZE)
    with pytest.raises(FileNotFoundError, match=r"--parity-images .*nope is not a folder"):
        real_pixels(tmp_path / "nope", SIZE)
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"large\.png cannot be decoded \(.* decompression bomb .*\): replace"):
        real_pixels(tmp_path, SIZE)


def test_no_photographs_to_check_parity_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (None, Mock(origin=None), Mock(origin=str(tmp_path / "__init__.py"))):  # the last one has no images
        monkeypatch.setattr("importlib.util.find_spec", Mock(return_value=found))
        with pytest.raises(FileNotFoundError, match="name a folder with --parity-images, or pip install scikit-learn"):
            real_pixels(None, SIZE)


def test_parity_images_are_of_the_whole_folder(tmp_path: Path) -> None:
    for index, suffix in reversed(list(enumerate(2 * ["jpg", "JPEG", "jfif", "png", "webp", "BMP"]))):
        Image.new("L", (1 + index, 30), 248 - 16 * index).save(tmp_path / f"{index:02}.{suffix}")
    assert (real_pixels(tmp_path, SIZE, count=6).amax((1, 2, 3)) // 16).tolist() == [15, 13, 11, 9, 7, 5]


def test_parity_images_behind_a_link(tmp_path: Path) -> None:
    for folder in ("data", "[parity]"):  # no pattern, but a name
        (tmp_path / folder).mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "data/a.png")
    (tmp_path / "[parity]/label").symlink_to("../data")
    for again in ("again", "once_more"):  # two links to a parent: there are 2**40 ways before the system refuses one
        (tmp_path / "[parity]" / again).symlink_to(".")
    assert (real_pixels(tmp_path / "[parity]", SIZE, count=1) == torch.tensor([255, 0, 0])).all()


def test_the_number_of_classes_is_that_of_the_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    options = BuildOptions(arch="replknet_nano", random_weights=True, labels=tmp_path / "labels.txt")
    assert load_model(options)[1].num_classes == 2


def test_unknown_precision_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision 'fp8': choose one of fp32, fp16, bf16"):
        build(BuildOptions(weights=checkpoint, precision="fp8", output=tmp_path / "models"))


def test_onnx_in_bf16_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="ONNX Runtime has no bf16 convolution on CPU; use --precision fp32 or fp16"):
        check_options(BuildOptions(arch="replknet_31b", random_weights=True, formats=("onnx",), precision="bf16"))


def test_the_least_that_is_allowed_is_allowed() -> None:
    least = BuildOptions(arch="replknet_nano", random_weights=True, image_size=32, crop_pct=0.1, version=1, threads=1)
    check_options(least)
    check_options(replace(least, version=10**18))


def test_packages_that_onnx_needs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.source.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"onnx needs onnx, onnxscript, onnxruntime: pip install '\.\[build\]'"):
        check_options(BuildOptions(arch="replknet_nano", random_weights=True, formats=("onnx",)))


def test_arch_must_be_the_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds replknet_nano"):
        build(BuildOptions(arch="replknet_31b", weights=checkpoint, output=tmp_path / "models"))


def test_help_says_what_no_threads_are(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    assert "(default: 0, all cores that this build may use)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], BuildOptions()),
        (["--format", "torchscript, onnx,"], BuildOptions(formats=("torchscript", "onnx"))),
        (["--crop-pct", "1", "--parity-images", "x"], BuildOptions(crop_pct=1.0, parity_images=Path("x"))),
    ],
)
def test_command_line(arguments: list[str], expected: BuildOptions) -> None:
    assert parse_arguments(arguments) == expected


def test_what_the_command_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["build_models.py"])
    monkeypatch.setattr("build_models.build", Mock(side_effect=["built", KeyboardInterrupt]))
    assert (main(), *capsys.readouterr()) == (0, "built\n", "")
    assert (main(), *capsys.readouterr()) == (130, "", "build_models: stopped, the repository is as it was\n")


def test_an_interrupt_while_pytorch_is_imported_ends_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, str(ROOT / "build_models.py"), "--help"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupt_after_the_exchange_says_what_is_there(
    there: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "models"
    remove = shutil.rmtree

    def interrupted(folder: Path, **how: object) -> None:
        remove(folder, **how)
        if folder.name.startswith(".models.building-"):  # the last step of a build
            raise KeyboardInterrupt

    if there:
        build(BuildOptions(weights=checkpoint, output=output, threads=1))
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    monkeypatch.setattr("sys.argv", ["build_models.py", "--weights", str(checkpoint), "--output", str(output)])
    assert (main(), *capsys.readouterr()) == (130, "", f"build_models: stopped too late: {output} is the new one\n")
    assert (output / "backbone" / ("2" if there else "1") / "model.pt").is_file()


def test_an_error_has_its_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["build_models.py"])
    monkeypatch.setenv("WIDEFIELD_TRACEBACK", "1")
    with pytest.raises(SettingsError, match="give --weights"):
        main()

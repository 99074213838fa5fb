"""The training loop: it learns, it is repeatable, its checkpoint is whole."""

import dataclasses
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from models import ModelConfig, create_model, load_checkpoint, save_checkpoint
from tests.training.runs import QUIET, ROOT
from training import attack as attack_script
from training import evaluate as evaluate_script
from training import explain as explain_script
from training import finetune
from training.accuracy import by_class, top1
from training.evaluate import Config as EvaluateConfig
from training.evaluate import evaluate
from training.finetune import PRESETS, Config, make_model, parse_arguments, train
from training.images import DataError
from training.loop import DivergenceError

EPOCHS = 10


def tiny(data: Path, output: Path, **changes: object) -> Config:
    values = {"data": data, "output": output, "epochs": EPOCHS, "batch_size": 16, "workers": 0, "warmup_epochs": 0.5}
    return dataclasses.replace(PRESETS["digits"], **{**values, "ema_decay": 0.5, **changes})


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(small_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    output = tmp_path_factory.mktemp("run") / "out"
    return output, train(tiny(small_digits, output), QUIET)


def test_loss_falls_and_it_learns(run: tuple[Path, float]) -> None:
    log = records(run[0])
    assert [entry["epoch"] for entry in log] == list(range(1, EPOCHS + 1))
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["top1"] == run[1] >= 0.6  # a third by chance; 0.71 to 0.8 by the processor
    assert all(entry["images_per_second"] > 0 for entry in log)
    assert log[-1]["step"] == EPOCHS * (96 // 16)


def test_checkpoint_is_whole_and_is_what_was_measured(run: tuple[Path, float], small_digits: Path) -> None:
    output, accuracy = run
    assert sorted(path.name for path in output.iterdir()) == [
        "args.json",
        "config.json",
        "log.jsonl",
        "model.safetensors",
    ]
    _, config = load_checkpoint(output)
    assert config.labels == ["0", "1", "4"]
    assert (config.arch, config.image_size, config.crop_pct) == ("replknet_nano", 32, 1.0)
    assert json.loads((output / "args.json").read_text())["seed"] == 0
    for deploy in (False, True):
        confusion, labels, _ = evaluate(
            EvaluateConfig(checkpoint=output, data=small_digits / "val", deploy=deploy, device="cpu")
        )
        assert top1(by_class(confusion)) == accuracy
        assert labels == config.labels


def test_same_seed_same_weights(run: tuple[Path, float], small_digits: Path, tmp_path: Path) -> None:
    first, _ = load_checkpoint(run[0])
    train(tiny(small_digits, tmp_path / "again"), QUIET)
    again, _ = load_checkpoint(tmp_path / "again")
    train(tiny(small_digits, tmp_path / "other", seed=1, epochs=1), QUIET)
    other, _ = load_checkpoint(tmp_path / "other")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.head.weight, other.head.weight)


def test_held_out_images_are_never_trained_on(
    small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.images

    opened: dict[str, int] = {}
    original = training.images.load_image

    def spy(path: str, *rest: object) -> Image.Image:
        opened[path] = opened.get(path, 0) + 1
        return original(path, *rest)

    monkeypatch.setattr(training.images, "load_image", spy)
    monkeypatch.setattr(finetune, "count_answers", lambda *_: (torch.ones(2, 3), torch.tensor(3)))  # no evaluation
    train(tiny(small_digits, tmp_path / "run", epochs=1), QUIET)
    assert len(opened) == 96
    assert all((small_digits / "train") in Path(path).parents for path in opened)


def test_headers_of_shards_are_read_once(small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        with tarfile.open(tmp_path / part / "0.tar", "w") as shard:
            for path in sorted((small_digits / part).glob("*/*")):
                (tmp_path / "class.json").write_text(json.dumps({"label": ["0", "1", "4"].index(path.parent.name)}))
                shard.add(path, path.name)
                shard.add(tmp_path / "class.json", f"{path.stem}.json")
    opened, original = [], tarfile.open

    def spy(path: Path, *options: str) -> tarfile.TarFile:
        opened.append(path.parent.name)
        return original(path, *options)

    monkeypatch.setattr(tarfile, "open", spy)
    train(tiny(tmp_path, tmp_path / "run", epochs=1), QUIET)
    assert opened == ["train", "val"]
    assert load_checkpoint(tmp_path / "run")[1].labels == ["0", "1", "2"]


def test_training_starts_from_a_checkpoint(run: tuple[Path, float]) -> None:
    source, _ = load_checkpoint(run[0])
    config = Config(weights=run[0], device="cpu")
    model, model_config = make_model(config, ["0", "1", "4"])
    assert (model_config.arch, model_config.image_size, model_config.mean) == ("replknet_nano", 32, [0.5, 0.5, 0.5])
    assert torch.equal(model.head.weight, source.head.weight), "the labels are the same: the head is kept"
    model, model_config = make_model(dataclasses.replace(config, image_size=64), ["a", "b", "c"])
    assert (model_config.image_size, model_config.crop_mode) == (64, "center")
    assert make_model(dataclasses.replace(config, crop_mode="squash"), ["0", "1", "4"])[1].crop_mode == "squash"
    assert not torch.equal(model.head.weight, source.head.weight), "other labels need another head"
    assert torch.equal(model.norm.weight, source.norm.weight)
    weights = run[0] / "model.safetensors"
    model, _ = make_model(Config(arch="replknet_nano", weights=weights), ["only", "two"])
    assert torch.equal(model.norm.weight, source.norm.weight)
    assert model.head.out_features == 2


def test_what_is_saved_is_averaged_unless_turned_off(small_digits: Path, tmp_path: Path) -> None:
    saved = {}
    for decay in (0.0, 0.5):
        output = tmp_path / str(decay)
        accuracy = train(tiny(small_digits, output, epochs=1, ema_decay=decay), QUIET)
        confusion, *_ = evaluate(EvaluateConfig(checkpoint=output, data=small_digits / "val", device="cpu"))
        assert top1(by_class(confusion)) == accuracy
        saved[decay] = load_checkpoint(output)[0].head.weight
    assert not torch.equal(saved[0.0], saved[0.5]), "the same run, so only averaging can tell the two apart"


def test_divergence_stops_with_the_step_and_spares_the_old_checkpoint(
    small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save_checkpoint(tmp_path, create_model("replknet_nano", 3), ModelConfig("replknet_nano", 3))
    before = (tmp_path / "model.safetensors").read_bytes()
    config = tiny(small_digits, tmp_path, lr=1e30, warmup_epochs=0.0, resume="never")
    with pytest.raises(DivergenceError, match=r"the loss is (nan|inf) in step \d+, epoch 1: lower --lr"):
        train(config, QUIET)
    monkeypatch.setattr(finetune, "parse_arguments", lambda: config)
    assert finetune.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_ctrl_c_leaves_the_last_whole_epoch(small_digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ["--data", str(small_digits), "--output", str(output), "--epochs", "1000", "--batch-size", "16"]
    command = [sys.executable, "-m", "training.finetune", "--preset", "digits", *options, "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and not (output / "last/config.json").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert str(output / "last") in error
    assert "Traceback" not in error
    load_checkpoint(output / "last")
    assert not (output / "model.safetensors").exists(), "an interrupted run must not look finished"


def test_command_line_is_the_preset_overridden() -> None:
    assert parse_arguments(["--preset", "digits"]) == PRESETS["digits"]
    config = parse_arguments(["--preset", "digits", "--epochs", "7", "--output", "runs/x", "--mean", "0", "0.5", "1"])
    assert (config.epochs, config.output, config.mean, config.lr) == (
        7,
        Path("runs/x"),
        (0.0, 0.5, 1.0),
        PRESETS["digits"].lr,
    )
    assert parse_arguments([]).preset == "folder"
    assert parse_arguments(["--crop-mode", "border"]).crop_mode == "border"
    published = parse_arguments(["--preset", "replknet_31b_384"])
    assert (published.image_size, published.crop_pct, published.crop_mode) == (384, 1.0, "squash")
    with pytest.raises(SystemExit):
        parse_arguments(["--preset", "cifar"])


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    arguments = ["finetune", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", arguments)
    assert finetune.main() == 1
    error = capsys.readouterr().err
    assert "nowhere is not a folder: name one with train/ and val/" in error
    assert error.count("\n") == 1
    monkeypatch.setattr("sys.argv", [*arguments, "--device", "gpu"])
    assert finetune.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("finetune: --device gpu cannot be used (Expected one of cpu")
    assert error.count("\n") == 1
    monkeypatch.setattr("sys.argv", [*arguments, "--device", "meta"])  # one of those that PyTorch then names
    assert finetune.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("finetune: --device meta cannot be used (")
    assert error.endswith("): choose another\n")


def test_an_error_that_nobody_foresaw_has_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Config) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(finetune, "train", fails)
    monkeypatch.setattr("sys.argv", ["finetune", "--output", str(tmp_path)])
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        finetune.main()


def test_evaluation_needs_the_checkpoints_labels(run: tuple[Path, float], tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "7" / "x.png")
    with pytest.raises(DataError, match=r"7 is not one of the 3 labels \(0, 1, 4\): rename or remove it"):
        evaluate(EvaluateConfig(checkpoint=run[0], data=tmp_path, device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_preset_reaches_its_accuracy(seed: int, tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["digits"], output=tmp_path, seed=seed)
    assert train(config, QUIET) >= 0.98  # of 359 images; one is 0.28 %
    held_out = EvaluateConfig(checkpoint=tmp_path, data=PRESETS["digits"].data / "val", deploy=True)
    assert top1(by_class(evaluate(held_out)[0])) >= 0.98


def test_one_class_is_refused(tmp_path: Path) -> None:
    """Its loss is 0 and its top-1 100 %, whatever it learns."""
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / part / "cat" / "a.png")
    with pytest.raises(DataError, match="has 1 class to train on, cat: a classifier needs 2"):
        train(Config(data=tmp_path, output=tmp_path / "run"), QUIET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device can be used")
@pytest.mark.parametrize("script", [evaluate_script, attack_script, explain_script])
def test_a_device_that_is_not_there_is_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save_checkpoint(tmp_path, create_model("replknet_nano", 2), ModelConfig("replknet_nano", 2, image_size=32))
    monkeypatch.setattr("sys.argv", ["it", "--checkpoint", str(tmp_path), "--data", str(tmp_path), "--device", "cuda"])
    assert script.main() == 2
    error = capsys.readouterr().err
    assert "--device cuda cannot be used" in error
    assert error.count("\n") == 1

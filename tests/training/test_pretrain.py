"""Pre-training: it learns, resumes exactly, shows what it does, and fine-tuning takes what it made."""

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from models import load_checkpoint
from tests.training.runs import QUIET, ROOT, few_digits
from training import finetune, pretrain
from training.augment import eval_transform, to_picture
from training.data import Unlabelled
from training.pretrain import PRESETS, Config, make_model, parse_arguments, train
from training.settings import SettingsError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 digits to train on, 16 held out, two classes."""
    return few_digits(tmp_path_factory.mktemp("small"), ("0", "1"))


def tiny(data: Path, output: Path, **changes: object) -> Config:
    values = {"data": data, "output": output, "epochs": 12, "batch_size": 8, "workers": 0, "pictures": 2}
    return dataclasses.replace(PRESETS["digits"], **{**values, "warmup_epochs": 0.5, "device": "cpu", **changes})


@pytest.fixture(scope="module", params=[("token", 12), ("sparse", 6)], ids=["token", "sparse"])
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    output = tmp_path_factory.mktemp("run") / "out"
    mode, epochs = request.param
    return output, train(tiny(data, output, mask_mode=mode, epochs=epochs), QUIET)


def test_loss_falls_and_the_checkpoint_is_a_plain_encoder(run: tuple[Path, float]) -> None:
    output, loss = run
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["val_loss"] == loss
    assert log[-1]["images_per_second"] > 0
    names = ["args.json", "config.json", "log.jsonl", "model.safetensors", "reconstructions.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    arguments = json.loads((output / "args.json").read_text())
    assert (arguments["mask_patch"], arguments["mask_ratio"], arguments["loss"]) == (8, 0.6, "l1")
    model, config = load_checkpoint(output)
    assert (config.arch, config.labels, config.image_size, config.mean) == ("replknet_nano", None, 32, [0.5] * 3)
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_pictures_show_what_is_seen_and_what_is_filled_in(run: tuple[Path, float], data: Path) -> None:
    sheet = np.asarray(Image.open(run[0] / "reconstructions.png")).astype(int)
    assert sheet.shape == (2 * 34 - 2, 3 * 34 - 2, 3)
    whole, seen, filled = (sheet[:32, left : left + 32] for left in (0, 34, 68))
    hidden = (seen == 128).all(-1) | (seen == 127).all(-1)
    assert hidden.sum() >= 10 * 64, "10 of 16 patches of 8 pixels"
    assert (filled[~hidden] == whole[~hidden]).all()
    assert (seen[~hidden] == whole[~hidden]).all()
    assert (filled[hidden] != whole[hidden]).any()
    images, config = Unlabelled(data / "val"), load_checkpoint(run[0])[1]
    middle = eval_transform(config)(images[len(images) // 2])
    assert (sheet[34:66, :32] == to_picture(middle, config)).all(), "evenly over the classes"


def test_fine_tuning_picks_the_encoder_up(run: tuple[Path, float], data: Path, tmp_path: Path) -> None:
    config = finetune.parse_arguments(["--weights", str(run[0]), "--data", str(data), "--epochs", "1"])
    model, model_config = finetune.make_model(config, ["0", "1"])
    source, _ = load_checkpoint(run[0])
    assert (model_config.arch, model_config.num_classes, model_config.image_size) == ("replknet_nano", 2, 32)
    assert model.head.out_features == 2
    pairs = [(value, source.state_dict()[name]) for name, value in model.state_dict().items() if "head" not in name]
    assert all(torch.equal(value, other) for value, other in pairs)
    settings = {"output": tmp_path / "fine", "workers": 0, "batch_size": 16, "device": "cpu", "threads": 1}
    finetune.train(dataclasses.replace(config, **settings), QUIET)
    assert load_checkpoint(tmp_path / "fine")[1].labels == ["0", "1"]


def test_a_run_cut_off_goes_on_bit_for_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(data, tmp_path / "whole", epochs=2, pictures=0), QUIET)
    real, calls = pretrain.Pretraining.forward, []

    def cut(self, images, masks):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return real(self, images, masks)

    monkeypatch.setattr(pretrain.Pretraining, "forward", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(data, tmp_path / "cut", epochs=2, pictures=0, save_every=1), QUIET)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    train(tiny(data, tmp_path / "cut", epochs=2, pictures=0, save_every=1), QUIET)
    whole, resumed = (load_checkpoint(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_unlabelled_shards_are_trained_on(data: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        with tarfile.open(tmp_path / part / "0.tar", "w") as shard:
            for path in sorted((data / part).rglob("*.png")):
                shard.add(path, f"{path.parent.name}_{path.name}")
    settings = {"epochs": 1, "pictures": 0}
    loss = train(tiny(tmp_path, tmp_path / "run", **settings), QUIET)
    assert loss == pytest.approx(train(tiny(data, tmp_path / "folders", **settings), QUIET))
    assert json.loads((tmp_path / "run/args.json").read_text())["images"] == 64


def test_a_share_is_held_out(data: Path, tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=500)
    (data / "train" / "0" / "a.heic").touch()
    train(tiny(data / "train", tmp_path / "run", val_share=0.2, epochs=1, pictures=0), console)
    (data / "train" / "0" / "a.heic").unlink()
    count = json.loads((tmp_path / "run/args.json").read_text())["images"]
    assert f"{64 - count} held out" in console.file.getvalue()
    assert console.file.getvalue().startswith("ignored: 1 .heic in train/\n")
    assert 64 - count == pytest.approx(0.2 * 64, abs=2)


def test_pre_training_goes_on_from_weights(run: tuple[Path, float]) -> None:
    model, config = make_model(Config(weights=run[0], image_size=64, mean=(0.1, 0.2, 0.3)))
    source, _ = load_checkpoint(run[0])
    assert torch.equal(model.encoder.norm.weight, source.norm.weight)
    assert (config.arch, config.image_size, config.mean) == ("replknet_nano", 64, [0.1, 0.2, 0.3])


def test_the_held_out_loss_is_the_mean_over_the_images() -> None:
    """The last batch may be smaller."""

    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return images.mean()

    batches = [(value * torch.ones(count, 3, 4, 4), torch.ones(count, 1, 1)) for value, count in ((1, 3), (5, 1))]
    assert pretrain.evaluation_loss(Mean().train(), batches, "cpu") == 2.0


def test_settings_reach_what_is_trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Mock(return_value={"val_loss": 0.0})
    monkeypatch.setattr(pretrain, "fit", fit)
    target = {"loss": "l2", "target_norm": "window", "window": 5}
    train(tiny(data, tmp_path, **target, drop_path=0.3, mask_ratio=0.25, min_crop_area=0.5, flip=True), QUIET)
    learner, loader, *_ = fit.call_args.args
    model, images = learner.model, loader.dataset.dataset
    assert {name: getattr(model, name) for name in target} == target
    assert model.encoder.stages[3].blocks[-1].drop_path.rate == 0.3
    assert (images.masks.side, images.masks.count, images.seed) == (4, 4, None)
    crop, mirror, *_ = images.transform.transforms
    assert (tuple(crop.scale), type(mirror).__name__) == ((0.5, 1.0), "RandomHorizontalFlip")


def test_preset_is_the_published_recipe() -> None:
    config = parse_arguments(["--preset", "simmim", "--mask-mode", "sparse"])
    assert config.mask_mode == "sparse"
    recipe = (config.image_size, config.mask_patch, config.mask_ratio, config.epochs, config.min_crop_area, config.loss)
    assert recipe == (192, 32, 0.6, 100, 0.67, "l1")
    assert config.lr == pytest.approx(2e-4 * config.global_batch_size / 512)
    assert config.min_lr == pytest.approx(1e-5 * config.global_batch_size / 512)
    assert (config.warmup_epochs, config.clip_grad, config.weight_decay, config.drop_path) == (10, 5, 0.05, 0)
    assert parse_arguments(["--preset", "photos"]).arch == "replknet_nano"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 40}, "--image-size 40"),
        ({"image_size": 0}, "--image-size 0"),
        ({"mask_patch": 2}, "--mask-patch 2"),
        ({"mask_patch": 12}, "--mask-patch 12"),
        ({"mask_patch": 64}, "--mask-patch 64: it must divide"),
        ({"mask_ratio": 1.0}, "--mask-ratio 1.0"),
        ({"window": 4}, "--window 4"),
        ({"window": 31, "target_norm": "patch"}, "--window 31 does nothing without --target-norm window"),
        ({"layer_decay": 0.7}, "--layer-decay 0.7"),
        ({"sync_bn": True, "mask_mode": "sparse"}, "--sync-bn with --mask-mode sparse"),
        ({"arch": "resnet"}, "--arch resnet"),
        ({"ema_warmup": False}, "--no-ema-warmup does nothing with --ema-decay 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict, message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        train(tiny(data, tmp_path, **changes), QUIET)


def test_the_command_prints_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pretrain", "--preset", "digits", "--data", str(tmp_path), "--device", "cpu"])
    assert pretrain.main() == 1
    assert capsys.readouterr().err.startswith(f"pretrain: {tmp_path}/train is not a folder")


@pytest.mark.slow
def test_two_processes_write_the_data_once_and_train(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    command += ["training.pretrain", "--preset", "digits", "--output", "run", "--epochs", "1", "--workers", "0"]
    command += ["--batch-size", "256", "--device", "cpu", "--mask-mode", "sparse", "--pictures", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "data" / "digits").glob("*/*/*.png"))) == 1797
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text())["step"] == 1438 // 512

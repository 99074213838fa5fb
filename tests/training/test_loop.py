"""The shared loop's parts: groups, schedule, checks, several processes, logs, compilation."""

import dataclasses
import json
import math
import re
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import training.loop
from models import create_model, load_checkpoint
from tests.training.runs import QUIET, Killed, Tiny, before_step, die
from training import finetune
from training.finetune import parse_arguments, train
from training.methods import check_method
from training.optim import make_optimizer, make_scheduler, parameter_groups
from training.presets import PRESETS
from training.settings import AMP_DTYPES, LoopConfig, SettingsError, accumulation, check_loop, check_same


def test_parameter_groups() -> None:
    model = create_model("replknet_nano", 3)
    learner = nn.ModuleDict({"model": model, "projection": nn.Linear(2, 2)})
    learner.register_parameter("token", nn.Parameter(torch.zeros(2)))
    model.stem.requires_grad_(False)
    groups = parameter_groups(learner, model, 0.05, 0.5)
    scale = {id(p): (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for p in g["params"]}
    assert scale[id(model.head.weight)] == (1.0, 0.05)
    assert scale[id(model.head.bias)] == (1.0, 0.0)
    assert scale[id(learner["projection"].weight)] == (1.0, 0.05)
    assert scale[id(learner.token)] == (1.0, 0.0)
    assert scale[id(model.stages[3].blocks[0].pw1.conv.weight)] == (0.5, 0.05)
    assert scale[id(model.stages[0].blocks[0].pw1.bn.weight)] == (0.5**4, 0.0)
    assert id(model.stem[0].conv.weight) not in scale
    assert len(scale) == sum(p.requires_grad for p in learner.parameters())
    with pytest.raises(SettingsError, match=r"--layer-decay 1\.5"):
        parameter_groups(learner, model, 0.05, 1.5)
    with pytest.raises(SettingsError, match="layers of Linear are not known"):
        parameter_groups(nn.Linear(2, 2), nn.Linear(2, 2), 0.05, 0.5)


@pytest.mark.parametrize(("steps", "rates"), [(1, [0.1]), (3, [0.001, 0.0505, 0.1])])
def test_a_run_of_warm_up_alone_ends_at_the_peak_without_a_warning(
    steps: int, rates: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """timm's, of a cosine of one step, is none that the user could heed."""
    model = create_model("replknet_nano", 3)
    config = LoopConfig(epochs=1, lr=0.1, warmup_epochs=2)
    optimizer = make_optimizer(model, model, config)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch=steps)
    seen = []
    for step in range(steps):
        scheduler.step_update(step)
        seen.append(optimizer.param_groups[-1]["lr"])
    assert seen == pytest.approx(rates)
    assert not caplog.records


def test_a_batch_of_one_is_refused_where_a_batch_norm_cannot_have_it(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"a batch of 1 image .*: use --batch-size 2 or more, or a larger --image-size"
    ):
        train(tiny(tmp_path / "at_32", batch_size=1, epochs=1), QUIET)
    train(tiny(tmp_path / "at_64", batch_size=1, epochs=1, image_size=64, imbalance=32.0), QUIET)

    def wrong(*_: object) -> None:
        raise ValueError("of another kind")

    with pytest.raises(ValueError, match="of another kind"):
        training.loop._loss(wrong, [])


@pytest.mark.parametrize(("min_lr", "least"), [(None, 0.001), (0.0, 0.0), (0.01, 0.01)])
def test_schedule_warms_up_and_falls(min_lr: float | None, least: float) -> None:
    learner = nn.ModuleDict({"model": create_model("replknet_nano", 3)})
    config = LoopConfig(epochs=10, lr=0.1, min_lr=min_lr, warmup_epochs=2.5, layer_decay=0.5)
    optimizer = make_optimizer(learner, learner["model"], config)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch=10)
    rates = []
    for step in range(100):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[-1]["lr"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[-1] * 0.5**5)
    assert rates[0] == pytest.approx(0.001)
    assert rates[10] == pytest.approx(0.001 + 0.4 * 0.099)
    assert max(rates) == rates[25] == pytest.approx(0.1)
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] == pytest.approx(least, abs=1e-4)
    sgd = make_optimizer(learner, learner["model"], LoopConfig(optimizer="sgd"))
    assert (type(sgd), sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (torch.optim.SGD, 0.9, True)


def test_global_batch_size(tiny: Tiny, tmp_path: Path) -> None:
    assert accumulation(LoopConfig(), 16, 4, 1) == 1
    assert accumulation(LoopConfig(global_batch_size=256), 16, 4, 4) == 4
    with pytest.raises(SettingsError, match="--global-batch-size 256: an epoch has 3 x 64 images, so 192 is the most"):
        accumulation(LoopConfig(global_batch_size=256), 16, 4, 3)
    with pytest.raises(SettingsError, match="--global-batch-size 100: an epoch has 1 x 72 images, so 72 is the most"):
        accumulation(LoopConfig(batch_size=100, global_batch_size=100), 72, 1, 1)  # a set smaller than one batch
    with pytest.raises(SettingsError, match="--global-batch-size 112: an epoch has 6 x 16 images, so 96 is the most"):
        train(tiny(tmp_path / "run", global_batch_size=112), QUIET)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        SettingsError, match="--global-batch-size 100 is no multiple of --batch-size 16 x 2 processes = 32"
    ):
        accumulation(LoopConfig(global_batch_size=100), 16, 2, 9)


def test_fewer_processes_may_go_on_with_the_same_steps() -> None:
    """8 x 64 images as they come, or 4 x 64 in two parts."""
    before = {"global_batch_size": 0, "images_per_step": 512}
    check_same(before, {"global_batch_size": 512, "images_per_step": 512}, Path("run/last"), {})
    check_same({"pictures": 8}, {"pictures": 0}, Path("run/last"), {})
    with pytest.raises(SettingsError, match="the run in run/last has images_per_step 512, this one 256"):
        check_same(before, {"global_batch_size": 256, "images_per_step": 256}, Path("run/last"), {})


def test_a_label_more_is_another_run() -> None:
    with pytest.raises(SettingsError, match=r"has labels \['a', 'b'\], this one \['a', 'b', 'c'\]: repeat"):
        check_same({"labels": ["a", "b"]}, {"labels": ["a", "b", "c"]}, Path("run/last"), {})


def test_presets_are_command_lines() -> None:
    for name, preset in PRESETS.items():
        assert parse_arguments(["--preset", name]) == preset
        check_method(dataclasses.replace(preset, weights=Path("x") if preset.keep_head else None))
        check_loop(dataclasses.replace(preset, ema_decay=0.0), preset)
    published = PRESETS["replknet_31b"]
    assert (published.epochs, published.global_batch_size, published.lr, published.drop_path) == (300, 2048, 4e-3, 0.5)
    assert PRESETS["replknet_31b_384"].layer_decay == 0.7
    assert not any(preset.ema_warmup for name, preset in PRESETS.items() if name.startswith("replknet_31b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.8, "loss": "focal"}, "focal needs hard ones"),
        ({"cutmix": 1.0, "adversarial": "advprop"}, "advprop needs hard ones"),
        ({"adversarial": "fast_at", "loss": "paco"}, "--adversarial fast_at"),
        ({"adversarial": "fast_at", "random_erasing": 0.1}, "--random-erasing"),
        ({"head_only": True}, "--head-only needs the features of --weights"),
        ({"head_only": True, "weights": Path("x"), "drop_path": 0.3}, "--drop-path 0.3 does nothing with --head-only"),
        ({"head_only": True, "weights": Path("x"), "layer_decay": 0.7}, "--layer-decay 0.7 does nothing with"),
        ({"class_weights": "inverse", "loss": "ldam"}, "--class-weights inverse"),
        ({"ema_warmup": False, "ema_decay": 0.0}, "--no-ema-warmup does nothing with --ema-decay 0"),
    ],
)
def test_settings_that_exclude_each_other(changes: dict, message: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        train(tiny(tmp_path, **changes), QUIET)
    assert not list(tmp_path.iterdir())


def test_fp16_gradients_that_overflow_at_any_scale_stop_the_run() -> None:
    """At larger ones the scaler skips the step and halves the scale."""
    for scale in (2.0**16, 2.0**-9):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))
        training.loop._check_finite(1.0, math.inf, 3, 0, LoopConfig(), scaler)
    least = torch.amp.GradScaler("cpu", init_scale=2.0**-10)
    least.scale(torch.ones(()))
    with pytest.raises(training.loop.DivergenceError, match=r"the gradient's norm is inf in step 4, epoch 1"):
        training.loop._check_finite(1.0, math.inf, 3, 0, LoopConfig(), least)


def test_clipping_limits_the_step(tiny: Tiny, tmp_path: Path) -> None:
    common = {"optimizer": "sgd", "epochs": 1, "ema_decay": 0.0, "weight_decay": 0.0}
    for name, clip in (("free", 0.0), ("clipped", 1e-6)):
        train(tiny(tmp_path / name, clip_grad=clip, **common), QUIET)
    torch.manual_seed(0)
    start = create_model("replknet_nano", 3).head.weight
    free, clipped = (load_checkpoint(tmp_path / name)[0].head.weight for name in ("free", "clipped"))
    assert (clipped - start).abs().max() < 1e-6 < (free - start).abs().max()


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_of_the_decay_that_was_asked_for(warmup: bool, tiny: Tiny, tmp_path: Path) -> None:
    """In a run of four steps: where it warms up the decay grows from 1 - 2^(-2/3), without it is 0.9 from step 2 on."""
    heads: list[torch.Tensor] = []
    original = training.loop.Learner.after_step

    def note(self: training.loop.Learner) -> None:
        heads.append(self.model.head.weight.detach().clone())
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.loop.Learner, "after_step", note)
        train(tiny(tmp_path, epochs=1, batch_size=24, ema_decay=0.9, ema_warmup=warmup), QUIET)
    average = heads[0]
    for step, head in enumerate(heads[1:], 2):
        decay = 1 - step ** (-2 / 3) if warmup else 0.9
        average = decay * average + (1 - decay) * head
    assert len(heads) == 4
    torch.testing.assert_close(load_checkpoint(tmp_path)[0].head.weight, average)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_is_the_same_run(amp: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = set()
    original = nn.Linear.forward

    def spy(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        out = original(self, x)
        dtypes.add((out.dtype, self.training))
        return out

    monkeypatch.setattr(nn.Linear, "forward", spy)
    for name in ("off", amp):
        train(tiny(tmp_path / name, amp=name, epochs=1, lr=1e-4), QUIET)
    expected = {(dtype, mode) for dtype in (torch.float32, AMP_DTYPES[amp]) for mode in (True, False)}
    assert dtypes == expected, "what is held out is judged as it is trained"
    losses = [json.loads((tmp_path / name / "log.jsonl").read_text())["loss"] for name in ("off", amp)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_tensorboard_reads_what_was_written(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(tmp_path / "run", tensorboard=True, epochs=1, layer_decay=0.5)
    train(config, QUIET)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/grad_norm", "train/lr", "val/top1"}
    (epoch,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [event.value for event in events.Scalars("train/loss")]
    assert sum(losses) / len(losses) == pytest.approx(epoch["loss"])
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 7))
    rates = [event.value for event in events.Scalars("train/lr")]
    assert rates[0] == pytest.approx(config.lr / 100), "the head's, whatever the stem has"
    assert rates[-1] == pytest.approx(epoch["lr"])
    ((step, top1),) = [(event.step, event.value) for event in events.Scalars("val/top1")]
    assert (step, top1) == (6, pytest.approx(epoch["top1"]))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match="pip install tensorboard"):
        train(tiny(tmp_path / "other", tensorboard=True), QUIET)


def test_tensorboard_has_each_step_of_a_resumed_run_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(tmp_path / "run", tensorboard=True)
    with monkeypatch.context() as patch:
        before_step(8, die, patch)
        with pytest.raises(Killed):
            train(config, QUIET)
    train(config, QUIET)
    events = EventAccumulator(str(config.output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("val/top1")] == [6, 12]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_is_one_line_wherever_it_is_decoded(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for folder in ("train/0", "train/1", "val/0", "val/1"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / folder / "good.png")
    Image.new("L", (8, 8)).save(tmp_path / "train" / "1" / "too.png")  # two whole batches
    (tmp_path / "train" / "0" / "bad.png").write_bytes(b"no image")
    options = ["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--batch-size", "2", "--epochs", "1"]
    options += ["--workers", workers, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["finetune", "--preset", "digits", *options])
    assert finetune.main() == 1
    error = capsys.readouterr().err
    assert error.startswith(f"finetune: {tmp_path}/train/0/bad.png cannot be decoded")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_compiled_run_is_the_same_run(tiny: Tiny, tmp_path: Path) -> None:
    calm = {"optimizer": "sgd", "lr": 1e-6, "drop_path": 0.0}  # compiled code draws other random numbers
    for name in ("eager", "compiled"):
        train(tiny(tmp_path / name, epochs=1, compile=name == "compiled", **calm), QUIET)
    losses = [json.loads((tmp_path / name / "log.jsonl").read_text())["loss"] for name in ("eager", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    load_checkpoint(tmp_path / "compiled")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warmup_epochs": 2.0}, "the learning rate rises to the end: --warmup-epochs below --epochs lets it fall"),
        ({"batch_size": 40}, "an epoch takes 80 of the 96 images, in whole steps of 40"),
        ({"imbalance": 4.0, "batch_size": 8}, "--imbalance 4 keeps 56 of the 96 images"),
        ({}, ""),
    ],
)
def test_what_a_beginner_would_not_notice_is_said(changes: dict, said: str, tiny: Tiny, tmp_path: Path) -> None:
    lines = StringIO()
    train(tiny(tmp_path, **changes), Console(file=lines, width=200))
    notes = [line for line in lines.getvalue().splitlines() if re.match("the learning|an epoch takes|--imbal", line)]
    assert notes == [said] * bool(said)

"""Outputs that cannot be written are refused before the work, and no checkpoint is written over."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import compare
from models import ModelConfig, create_model, load_checkpoint, save_checkpoint
from tests.full_disk import files_up_to
from tests.training.runs import QUIET, Tiny
from training import attack, calibrate, evaluate, explain
from training.finetune import train
from training.outputs import check_file, check_folder, check_no_checkpoint
from training.settings import SettingsError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = ModelConfig("replknet_nano", 3, image_size=64, crop_pct=1.0, labels=["0", "1", "4"])
    save_checkpoint(folder, create_model("replknet_nano", 3), config)
    (folder / "args.json").write_text(json.dumps({"class_counts": [32, 11, 4], "lr": 0.1, "epochs": 30}))
    return folder


def run(script: ModuleType, patch: pytest.MonkeyPatch, *options: object) -> int:
    patch.setattr("sys.argv", ["it", *map(str, options)])
    return script.main()


@pytest.mark.parametrize(
    ("script", "option", "work"),
    [
        (evaluate, "--json", "count_answers"),
        (evaluate, "--csv", "count_answers"),
        (evaluate, "--confusion", "count_answers"),
        (evaluate, "--predictions", "count_answers"),
        (evaluate, "--save", "count_answers"),
        (calibrate, "--output", "logits_of"),
        (attack, "--json", "seed_everything"),
        (explain, "--output", "load_classifier"),
        (compare, "--output", "create_model"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    script: ModuleType,
    option: str,
    work: str,
    checkpoint: Path,
    small_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(script, work, None)  # called, it would be a TypeError
    (tmp_path / "file").touch()
    common = (
        [] if script is compare else ["--checkpoint", checkpoint, "--data", small_digits / "val", "--device", "cpu"]
    )
    assert run(script, monkeypatch, *common, option, tmp_path / "file" / "x") == 2
    error = capsys.readouterr().err
    name = script.__name__.rpartition(".")[2]
    assert (
        error
        == f"{name}: {option} {tmp_path}/file/x cannot be written ({tmp_path}/file: Not a directory): name another\n"
    )


def test_a_run_whose_output_is_a_file_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"--output .*file cannot be written"):
        train(tiny(tmp_path / "file"), QUIET)


def test_what_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_folder("--save", Path("new/deeper"))
    check_file("--csv", Path("new/x.csv"))
    check_file("--csv", Path("/dev/stdout"))
    assert not list(tmp_path.iterdir()), "looking leaves nothing"
    Path("args.json").touch()
    with pytest.raises(SettingsError, match=r"--predictions args\.json is a file of a training run: name another"):
        check_file("--predictions", Path("args.json"))
    with pytest.raises(SettingsError, match="is a folder: name a file"):
        check_file("--csv", tmp_path)
    (tmp_path / "x").touch()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SettingsError, match="x may not be written"):
        check_file("--csv", tmp_path / "x")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "args.json", "last"])
def test_another_checkpoint_is_never_written_over(
    name: str, checkpoint: Path, small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("another run's")
    with pytest.raises(SettingsError, match=rf"holds a checkpoint \({name}\): name another folder"):
        check_no_checkpoint("--save", tmp_path)
    monkeypatch.setattr(evaluate, "open_labelled", None)
    config = evaluate.Config(checkpoint, small_digits / "val", save=tmp_path, device="cpu")
    with pytest.raises(SettingsError, match="holds a checkpoint"):
        evaluate.evaluate(config)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_saved_checkpoint_has_the_counts_and_says_what_it_is(
    checkpoint: Path,
    small_digits: Path,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    saved = tmp_path / "there" / "saved"
    common = ["--data", small_digits / "val", "--device", "cpu"]
    table = tmp_path / "tables" / "x.csv"
    assert (
        run(
            evaluate, monkeypatch, "--checkpoint", checkpoint, *common, "--tau-norm", 1, "--save", saved, "--csv", table
        )
        == 0
    )
    assert table.read_text().startswith("label,images")
    arguments = json.loads((saved / "args.json").read_text())
    made = {"checkpoint": str(checkpoint), "tau_norm": 1.0, "logit_adjustment": 0.0, "temperature": 1.0}
    assert arguments == {"class_counts": [32, 11, 4], **made}, "nothing of the run that it was made from"
    capsys.readouterr()
    assert run(evaluate, monkeypatch, "--checkpoint", saved, *common, "--logit-adjustment", 1) == 0
    assert "mean over classes" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="holds a checkpoint: name another --output"):
        train(tiny(saved), QUIET)


@pytest.mark.parametrize("option", ["--json", "--csv", "--confusion", "--predictions", "--save"])
def test_figures_are_shown_on_a_full_disk(
    option: str,
    checkpoint: Path,
    small_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    common = ["--checkpoint", checkpoint, "--data", small_digits / "val", "--device", "cpu"]
    with files_up_to(5):
        assert run(evaluate, monkeypatch, *common, option, tmp_path / "written") == 1
    said = capsys.readouterr()
    assert "of 24 right" in said.out
    assert "cannot be written (" in said.err


def test_nothing_is_saved_where_the_evaluation_fails(checkpoint: Path, tmp_path: Path) -> None:
    """The same command can then be given again."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "bad.png").write_bytes(b"no image")
    config = evaluate.Config(checkpoint, tmp_path, save=tmp_path / "saved", device="cpu")
    with pytest.raises(ValueError, match=r"bad\.png cannot be decoded"):
        evaluate.evaluate(config)
    assert not (tmp_path / "saved").exists()


def test_a_correction_that_leaves_no_numbers_is_not_saved(checkpoint: Path, small_digits: Path, tmp_path: Path) -> None:
    """Rows' lengths to the power 1000 are 0 or infinite."""
    config = evaluate.Config(checkpoint, small_digits / "val", tau_norm=1000.0, save=tmp_path / "saved", device="cpu")
    with pytest.raises(ValueError, match=r"24 of 24 images have logits .* lower --tau-norm"):
        evaluate.evaluate(config)
    assert not (tmp_path / "saved").exists()


def test_saved_in_its_own_layout(checkpoint: Path, small_digits: Path, tmp_path: Path) -> None:
    """The saved checkpoint has neither the evaluation's channels_last nor its --deploy form."""
    config = evaluate.Config(checkpoint, small_digits / "val", deploy=True, save=tmp_path / "saved", device="cpu")
    evaluate.evaluate(config)
    before, after = (load_checkpoint(folder)[0].state_dict() for folder in (checkpoint, tmp_path / "saved"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("script", [evaluate, attack, explain])
def test_a_pre_trained_encoder_is_named(
    script: ModuleType,
    small_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    save_checkpoint(tmp_path, create_model("replknet_nano", 1), ModelConfig("replknet_nano", 1, image_size=64))
    options = ["--checkpoint", tmp_path, "--data", small_digits / "val", "--device", "cpu"]
    assert run(script, monkeypatch, *options) == 1
    assert f"{tmp_path} is a pre-trained encoder and cannot classify: fine-tune it" in capsys.readouterr().err

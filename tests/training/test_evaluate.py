"""What an evaluation counts and says: the confusion matrix, top-1 and top-5, the table by class."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.training.runs import Tiny, records
from training import evaluate as script
from training.evaluate import accuracies, count_answers, per_class_table, top1, training_counts
from training.finetune import train
from training.samples import write_digits
from training.settings import SettingsError


def test_confusion_matrix_counts_rows_as_truth() -> None:
    class Answers(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).float()

    images = torch.tensor([0, 1, 1, 2, 0]).view(5, 1, 1, 1).expand(-1, 3, 2, 2).float()
    targets = torch.tensor([0, 0, 1, 2, 2])
    model = Answers().train()
    confusion, _ = count_answers(model, [(images[:3], targets[:3]), (images[3:], targets[3:])], 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert top1(confusion) == pytest.approx(3 / 5)
    assert model.training
    table = per_class_table(confusion, ["a", "b", "c"])
    assert list(table.columns[4].cells) == ["b (1)", "", "a (1)"]
    assert list(table.columns[3].cells) == ["50.00%", "100.00%", "50.00%"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_no_answers(bad: float) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(images), 3)
            logits[1, 2] = bad
            return logits

    with pytest.raises(SettingsError, match="1 of 4 images have logits that are NaN or infinite"):
        count_answers(Broken(), [(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))], 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau_norm": float("nan")}, "--tau-norm nan: a finite number is needed"),
        ({"tau_norm": -1.0}, r"--tau-norm -1\.0: it is at least 0"),
        ({"logit_adjustment": float("nan")}, "--logit-adjustment nan: a finite"),
        ({"logit_adjustment": -0.5}, r"--logit-adjustment -0\.5: it is at least 0"),
        ({"batch_size": 0}, "--batch-size 0: it is at least 1"),
        ({"workers": -1}, "--workers -1: it is at least 0"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        script.evaluate(script.Config(tmp_path, tmp_path, device="cpu", **changes))


def test_labels_are_text_in_the_table(capsys: pytest.CaptureFixture) -> None:
    """A label may look like rich's markup, which would vanish or be an error."""
    Console(width=100).print(per_class_table(torch.eye(2, dtype=torch.int64).flip(0), ["[dog]", "[/x]"]))
    out = capsys.readouterr().out
    assert out.count("[dog]") == out.count("[/x]") == 2


def test_top5_is_counted_and_reported_of_more_than_five_classes() -> None:
    class Ranked(torch.nn.Module):
        """Classes 0, 1, 2, ... in this order, whatever the image."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return -torch.arange(7.0).expand(len(images), -1)

    targets = torch.tensor([0, 4, 5, 6, 3])
    images = torch.zeros(5, 3, 2, 2)
    confusion, in_top5 = count_answers(Ranked(), [(images[:3], targets[:3]), (images[3:], targets[3:])], 7)
    assert accuracies(confusion, in_top5) == {"top1": 1 / 5, "top5": 3 / 5}
    assert accuracies(torch.eye(5), torch.tensor(5)) == {"top1": 1.0}, "it says nothing"


def test_top5_is_in_the_log_the_epochs_line_and_the_evaluation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    digits = write_digits(tmp_path / "digits")
    for part, count in (("train", 8), ("val", 4)):
        for label in range(10):
            for path in sorted((digits / part / str(label)).iterdir())[count:]:
                path.unlink()
    console = Console(file=StringIO(), width=500)
    train(tiny(tmp_path / "run", data=digits, epochs=1), console)
    (record,) = records(tmp_path / "run")
    assert 1 > record["top5"] > record["top1"]
    assert f"top-1 {record['top1']:.2%}  top-5 {record['top5']:.2%}\n" in console.file.getvalue()
    monkeypatch.setattr("sys.argv", ["it", "--checkpoint", str(tmp_path / "run"), "--data", str(digits / "val")])
    assert script.main() == 0
    assert f"top-5 {record['top5']:.2%}: {round(40 * record['top5'])} of 40 right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is damaged"), (b'{"class_counts": [1', "is damaged"), (b"\xff", "is damaged"), (b"[3, 1]", "holds a list")],
)
def test_damaged_arguments_beside_a_checkpoint_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    assert training_counts(tmp_path) is None
    (tmp_path / "args.json").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"{tmp_path}/args\.json {message}.*: restore it, or remove it"):
        training_counts(tmp_path)

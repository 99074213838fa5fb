"""The pages' commands and code, as they are written."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from models import ModelConfig, create_model, save_checkpoint
from training import attack, calibrate, check, evaluate, explain, finetune, pretrain
from training.presets import PRESETS
from training.script import parse

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = {script.__name__: script for script in (attack, calibrate, check, evaluate, explain, finetune, pretrain)}
COMMAND = r"^ +(?:python|torchrun .*) -m (training\.\w+) ((?:\\\n|[^#\n])*)"


def commands(page: str) -> list[tuple[str, list[str]]]:
    found = re.findall(COMMAND, (DOCS / page).read_text(), re.MULTILINE)
    return [(script, options.replace("\\\n", " ").split()) for script, options in found if "..." not in options]


@pytest.mark.parametrize("page", ["training.md", "pretraining.md"])
def test_commands_are_understood(page: str) -> None:
    for name, options in commands(page):
        script = SCRIPTS[name]
        if script in (finetune, pretrain):
            script.parse_arguments(options)
        else:
            parse(script.Config, name, None, options)


def test_published_weights_are_not_trained_at_the_rate_of_random_ones() -> None:
    runs = [finetune.parse_arguments(options) for script, options in commands("training.md") if "finetune" in script]
    mine = [run for run in runs if run.preset == "folder" and run.weights and not run.weights.is_relative_to("runs")]
    assert len(mine) == 2
    assert all(run.lr < PRESETS["folder"].lr / 2 for run in mine)


def test_a_checkpoint_answers_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = ModelConfig("replknet_nano", 3, image_size=64, labels=["ant", "bee", "cow"])
    save_checkpoint("runs/mine", create_model("replknet_nano", 3), config)
    Image.new("RGB", (90, 70), "teal").save("photo.jpg")
    (code,) = re.findall(r"\n\n(    import torch\n(?:    .*\n|\n)*)", (DOCS / "training.md").read_text())
    exec(textwrap.dedent(code), {})
    explain.explain_images(explain.Config(Path("runs/mine"), Path("photo.jpg"), Path("out"), device="cpu"))
    _, row = Path("out/explained.csv").read_text().splitlines()
    _, _, answer, probability, _ = row.split(",")
    label, share = re.fullmatch(r"\['(\w+)'\] \[(.+)\]\n", capsys.readouterr().out).groups()
    assert (label, float(share)) == (answer, pytest.approx(float(probability), rel=1e-4))

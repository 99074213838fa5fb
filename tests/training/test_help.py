"""What --help of a script shows: how to call it, with examples that can be copied."""

import ast
import inspect
import itertools
import subprocess
import sys
from types import ModuleType

import pytest

from benchmarks import compare
from training import attack, calibrate, check, evaluate, explain, finetune, pretrain


@pytest.mark.parametrize("script", [attack, calibrate, check, compare, evaluate, explain, finetune, pretrain])
def test_examples_are_lines_of_their_own(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["/some/where/script.py", "--help"])
    with pytest.raises(SystemExit):
        script.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m {script.__name__} ")
    examples = [line for line in script.__doc__.splitlines() if line.startswith("    ")]
    assert examples
    assert set(examples) <= set(lines)


@pytest.mark.parametrize("script", [attack, calibrate, check, evaluate, explain, finetune, pretrain])
def test_a_line_that_ends_in_a_help_text_is_not_broken_before_its_end(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """At 120 columns; else a word or two stand alone on a line, in the middle of a text."""
    texts: dict[str, str] = {}
    for base in reversed(script.Config.__mro__[:-1]):
        (definition,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = ast.literal_eval(text.value)
    monkeypatch.setattr("sys.argv", ["script.py", "--help"])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        script.main()
    shown = capsys.readouterr().out
    ended = [line.strip() for text in texts.values() for line in text.split("\n")[:-1]]
    assert ended or script is check
    assert [line for line in ended if line not in shown] == []


@pytest.mark.parametrize("script", [finetune, pretrain])
def test_the_normalisations_scale_is_said(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--help"])
    with pytest.raises(SystemExit):
        script.main()
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "on the 0..1 scale (divide values on 0..255 by 255)" in shown


def test_what_has_no_effect_is_not_offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Pre-training has one rate for all layers."""
    monkeypatch.setattr("sys.argv", ["script.py", "--help"])
    for script, offered in ((finetune, True), (pretrain, False)):
        with pytest.raises(SystemExit):
            script.main()
        assert ("--layer-decay" in capsys.readouterr().out) == offered
    with pytest.raises(SystemExit):
        pretrain.parse_arguments(["--layer-decay", "0.7"])
    assert "--layer-decay" in capsys.readouterr().err


def test_help_whose_reader_has_seen_enough() -> None:
    command = [sys.executable, "-m", "training.finetune", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("script", [attack, calibrate, evaluate, explain, finetune, pretrain])
def test_where_else_a_checkpoint_is_taken(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--help"])
    with pytest.raises(SystemExit):
        script.main()
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    other = "--checkpoint of training.evaluate" if script is finetune else "--weights of build_models.py"
    same = "" if script is pretrain else f" The same as {other} and "
    assert f"A checkpoint folder, the file in it, or a published file with its --arch.{same}" in shown

"""The checks that demo.py makes before it trains or builds."""

from pathlib import Path
from unittest.mock import Mock

import pytest

import demo


def test_it_trains_again_where_no_digit_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo.subprocess, "run", run := Mock())
    demo.CHECKPOINT.mkdir(parents=True)
    (demo.CHECKPOINT / "model.safetensors").touch()
    (demo.HELD_OUT / "7").mkdir(parents=True)
    demo.train()
    assert "training.finetune" in run.call_args.args[0]
    (demo.HELD_OUT / "7" / "0001.png").touch()
    demo.train()
    assert run.call_count == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {"labels": null}}'])
def test_a_damaged_record_is_not_built_over(tmp_path: Path, text: str) -> None:
    record = tmp_path / "backbone/1/build.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with pytest.raises(demo.DemoError, match=r"build\.json is damaged .*: move it away, or name another folder"):
        demo.is_built(tmp_path / "checkpoint", tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ["--serve", "--htp-port", "9000"],
        ["--serve", "--http-port", "x"],
        ["--serve", "--model-repository", "x"],  # the server would be given two
        ["--http-port", "9000"],
    ],
)
def test_a_wrong_option_of_the_server_is_refused_before_the_training(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.sys, "argv", ["demo.py", *options])
    monkeypatch.setattr(demo, "train", lambda: pytest.fail("trained"))
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 2

"""The runs of the evidence: data, plan, two arms from end to end, resumption, the kernel check."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness
from benchmarks.evidence import execute as execution
from benchmarks.evidence import kernel_check
from benchmarks.evidence.__main__ import carry_out, main
from benchmarks.evidence.data import prepare
from benchmarks.evidence.execute import execute, finished, folder_of
from benchmarks.evidence.kernel_check import CONVOLUTIONS, compare, replace_convolutions
from benchmarks.evidence.plan import EXPERIMENTS
from benchmarks.evidence.run import Arm, Data, Run, runs_of
from kernels.depthwise_conv2d import module as operator_module
from models import create_model
from training import attack, evaluate, finetune, pretrain
from training.images import DataError
from training.long_tail import long_tail_counts
from training.methods import check_method

LABELS = Data("labels", 2)
SHORT = {"epochs": 1, "warmup_epochs": 0.1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evidence")
    prepare(LABELS, root)
    return root


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def files(folder: Path) -> dict[str, list[str]]:
    return {path.name: sorted(file.name for file in path.iterdir()) for path in sorted(folder.iterdir())}


def test_a_subset_has_the_same_number_of_each_class_and_epochs_of_700_files(cache: Path) -> None:
    train = files(cache / LABELS.name / "train")
    assert sorted(train) == [str(digit) for digit in range(10)]
    for names in train.values():
        assert set(Counter(name.split("_")[0] for name in names).values()) == {35}
        assert len({name.split("_")[0] for name in names}) == 2
    assert sum(len(names) for names in files(cache / LABELS.name / "val").values()) == 359
    assert prepare(LABELS, cache) == cache / LABELS.name
    other = prepare(Data("labels", 2, seed=1), cache)
    assert files(other / "train") != train


def test_a_long_tail_is_exponential_and_drawn_anew_for_each_seed(cache: Path) -> None:
    folders = [prepare(Data("long_tail", 50, seed), cache) for seed in (0, 1)]
    counts = [len(names) for names in files(folders[0] / "train").values()]
    assert counts == long_tail_counts(counts[0], 10, 50)
    assert counts[0] / counts[-1] > 45
    assert files(folders[0] / "train") != files(folders[1] / "train")


def test_more_images_than_there_are_is_an_error_and_leaves_nothing(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"class 0 has 142 images: 900 of each"):
        prepare(Data("labels", 900), cache)
    (cache / "broken").mkdir(exist_ok=True)
    (cache / "broken" / "photos").mkdir(exist_ok=True)
    with pytest.raises(DataError, match="holds no train/"):
        prepare(Data("photos"), cache / "broken")
    assert not list(cache.glob(".*tmp"))


def test_every_planned_run_is_one_that_the_training_code_takes() -> None:
    kinds = {"finetune": finetune.Config, "pretrain": pretrain.Config, "attack": attack.Config}
    known = {kind: {entry.name for entry in fields(config)} for kind, config in kinds.items()}
    known["evaluate"] = {entry.name for entry in fields(evaluate.Config)}
    planned = [(experiment, arm) for experiment, plan in EXPERIMENTS.items() for arm in plan(range(5))]
    arms = [arm for _, arm in planned]
    for arm in arms:
        assert [run.seed for run in arm.runs] == list(range(5))
    for run in runs_of(arms):
        assert run.data.seed == (run.seed if run.data.size else 0)  # it draws the data too
        if run.kind in known:
            assert run.settings.keys() <= known[run.kind], run.name
        if run.kind == "finetune":
            check_method(finetune.Config(weights=Path("start") if run.start else None, **run.settings))
        assert run.kind not in ("evaluate", "attack") or run.start is not None
    names = [(experiment, arm.group, arm.name) for experiment, arm in planned]
    assert len(set(names)) == len(names)
    scratch = {arm.runs[0].name for arm in arms if arm.name in ("from scratch", "affine")}
    assert len(scratch) == 3  # plain training is shared by the tables


def test_what_is_kept_stands_for_these_versions_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(version: str) -> str:
        return harness.fingerprint("benchmarks/evidence/plan.py", versions={"torch": version})

    assert found("2.11") == found("2.11") != found("2.12")
    before, machine = found("2.11"), harness.machine()
    monkeypatch.setattr(harness, "machine", lambda: machine | {"cores": machine["cores"] + 1})
    assert found("2.11") != before


def test_two_runs_of_one_name_are_refused() -> None:
    arms = [Arm("", str(seed), (Run("same", "finetune", LABELS, seed),)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="two runs are called same"):
        runs_of(arms)


def test_two_arms_from_end_to_end_and_nothing_is_done_twice(
    cache: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Run("plain", "finetune", LABELS, 0, SHORT)
    normed = Run("normed", "evaluate", LABELS, 0, {"tau_norm": 1.0}, plain)
    arms = {"tiny": [Arm("g", "plain", (plain,)), Arm("g", "tau-norm", (normed,))]}
    assert carry_out(arms, cache, jobs=2) == 0
    written = json.loads((results / "evidence_tiny.json").read_text())
    first, second = written["rows"]
    assert first["seeds"][0]["epochs"] == 1
    assert 0 <= first["seeds"][0]["top1"] <= 1
    assert first["seeds"][0]["seconds"] > 0
    assert second["seeds"][0]["seconds_before"] == first["seeds"][0]["seconds"]
    assert [step["kind"] for step in second["steps"]] == ["finetune", "evaluate"]
    assert {"torch", "scikit-learn"} <= written["versions"].keys()
    log = capsys.readouterr().out
    assert "[2/2] normed" in log
    assert "min passed" in log

    monkeypatch.setattr(execution, "DO", {})  # doing a run again would be a KeyError
    assert carry_out(arms, cache, jobs=1) == 0
    assert "2 of 2 runs are in" in capsys.readouterr().out
    assert json.loads((results / "evidence_tiny.json").read_text())["rows"] == written["rows"]


def test_a_run_that_fails_is_named_with_what_waits_for_it_and_the_rest_is_written(
    cache: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Run("broken", "finetune", LABELS, 0, {**SHORT, "sampler": "none such"})
    waits = Run("waits", "evaluate", LABELS, 0, {}, broken)
    fine = Run("plain", "finetune", LABELS, 0, SHORT)
    arms = {"bad": [Arm("", "a", (waits,))], "good": [Arm("", "b", (fine,))]}
    assert carry_out(arms, cache, jobs=1) == 1
    error = capsys.readouterr().err
    assert "broken: SettingsError: --sampler none such" in error
    assert "waits: it starts from broken, which failed" in error
    assert not (results / "evidence_bad.json").exists()
    assert (results / "evidence_good.json").exists()


def test_a_run_that_was_cut_off_is_done_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epochs": 2, "warmup_epochs": 0.1, "arch": "replknet_nano"}
    whole = execute(Run("whole", "finetune", LABELS, 0, settings), cache)
    cut = Run("cut", "finetune", LABELS, 0, settings)
    real, calls = finetune.count_answers, []

    def fail_at_the_second(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("cut off")
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(finetune, "count_answers", fail_at_the_second)
        with pytest.raises(RuntimeError, match="cut off"):
            execute(cut, cache)
    assert finished(cut, cache) is None
    state = folder_of(cut, cache) / "last" / "state.pt"
    assert state.exists()
    calls.clear()
    monkeypatch.setattr(finetune, "count_answers", lambda *arguments: calls.append(arguments) or real(*arguments))
    assert execute(cut, cache)["metrics"] == whole["metrics"]
    assert len(calls) == 2  # both epochs, and so the time of both
    assert not state.exists()


def test_a_folder_of_other_settings_or_code_is_done_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(Run("changed", "finetune", LABELS, 0), cache)
    folder.mkdir(parents=True)
    (folder / "leftover").write_text("")
    done = Run("changed", "finetune", LABELS, 0, {**SHORT, "lr": 1e-3})
    execute(done, cache)
    assert not (folder / "leftover").exists()
    assert finished(Run("changed", "finetune", LABELS, 0, {**SHORT, "lr": 2e-3}), cache) is None
    assert finished(done, cache) is not None
    monkeypatch.setattr(execution, "made_by", lambda: "other sources")
    assert finished(done, cache) is None


def test_pretraining_and_an_attack_are_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(pretrain, "train", lambda config, console: seen.setdefault("pretrain", config))
    monkeypatch.setattr(finetune, "train", lambda config, console: seen.setdefault("finetune", config))
    monkeypatch.setattr(attack, "attack_checkpoint", lambda config: seen.setdefault("attack", config) and [])
    monkeypatch.setattr(execution, "last_epoch", lambda folder: {"top1": 0.5})
    start = Run("start", "pretrain", LABELS, 3, {"mask_mode": "sparse"})
    tuned = Run("tuned", "finetune", LABELS, 3, SHORT, start)
    attacked = Run("attacked", "attack", LABELS, 3, {"epsilon": 4.0}, tuned)
    for run in (start, tuned, attacked):
        execute(run, cache)
    assert (seen["pretrain"].mask_mode, seen["pretrain"].seed) == ("sparse", 3)
    assert seen["finetune"].weights == seen["pretrain"].output
    assert seen["attack"].checkpoint == seen["finetune"].output
    assert seen["attack"].epsilon == 4.0
    assert execute(tuned, cache)["metrics"] == {"top1": 0.5}


def test_the_command_line_refuses_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--seeds", "0"], ["--only", "nothing"]):
        with pytest.raises(SystemExit):
            main(arguments)
    assert "argument --seeds: '0': give a whole number, 1 or more" in capsys.readouterr().err


def test_the_kernel_check_computes_with_each_implementation(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: Counter[str] = Counter()
    for module, name in (
        (operator_module, "depthwise_conv2d"),
        (kernel_check, "depthwise_conv2d_reference"),
        (kernel_check, "masked_patch_loss"),
        (kernel_check, "masked_patch_loss_reference"),
    ):
        monkeypatch.setattr(module, name, counting(getattr(module, name), name, called))
    model = create_model("replknet_nano", 10).eval()
    images = torch.randn(2, 3, 32, 32)
    answers = {}
    for name, kind in CONVOLUTIONS.items():
        assert replace_convolutions(model, kind) == 10  # a large and a small one in five blocks
        answers[name] = model(images)
    assert called == {"depthwise_conv2d": 10, "depthwise_conv2d_reference": 10}
    assert torch.allclose(answers["operator"], answers["reference"], atol=1e-5)
    assert torch.allclose(answers["pytorch"], answers["reference"], atol=1e-5)

    called.clear()
    for part, count in (("train", 2), ("val", 1)):
        for label in ("0", "1"):
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True)
            for path in sorted((cache / LABELS.name / part / label).iterdir())[:count]:
                (folder / path.name).symlink_to(path.resolve())
    found = compare(tmp_path / "data", tmp_path, 0, "pretrain", double=True, epochs=1, pictures=0, batch_size=2)
    assert [len(losses) for losses in found["losses"].values()] == [2, 2, 2]
    assert max(found["largest"].values()) < 1e-6
    assert found["losses"]["operator"][0] != found["losses"]["operator"][1]
    assert called["depthwise_conv2d"] == called["depthwise_conv2d_reference"] >= 2 * 10
    assert called["masked_patch_loss"] == 2 * called["masked_patch_loss_reference"] >= 2 * 2  # PyTorch's run has it too


def counting(function: Callable[..., torch.Tensor], name: str, called: Counter[str]) -> Callable[..., torch.Tensor]:
    def counted(*arguments: Any, **named: Any) -> torch.Tensor:
        called[name] += 1
        return function(*arguments, **named)

    return counted

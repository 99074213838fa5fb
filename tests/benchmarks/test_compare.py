"""benchmarks.compare: counted figures beside published ones, and recommendations that follow from them."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import compare as script
from benchmarks.compare import ARCHS, Config, compare
from benchmarks.harness import code, gpu, write_document
from benchmarks.published import Row, claims, published_figures, recommend
from benchmarks.timing import Timing, interleaved
from models import ARCHITECTURES, count_macs, count_parameters, create_model, reparameterize
from tests.full_disk import files_up_to
from training.settings import SettingsError


def test_script_counts_times_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "results" / "compare.json"
    archs = ["replknet_nano", "timm/mobilenetv3_small_100"]
    options = ["--archs", *archs, "--rounds", "2", "--image-size", "64", "--threads", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["compare", *options])
    assert script.main() == 0
    document = json.loads(output.read_text())
    assert [row["arch"] for row in document["rows"]] == archs
    for row in document["rows"]:
        network = reparameterize(create_model(row["arch"]))
        assert row["parameters"] == count_parameters(network)
        assert row["macs"] == count_macs(network, 64)
        assert row["latency_ms"]["cpu"] == document["latency"]["cpu"][row["arch"]]["median"] > 0
        assert document["latency"]["cpu"][row["arch"]]["calls"] == 4
    assert {"machine", "versions", "date", "threads", "form", "claims"} <= document.keys()
    printed = capsys.readouterr().out
    for text in ("claim in circulation", "RepLKNet is a mobile model", "few labels", "timm/mobilenetv3_small_100"):
        assert text in printed
    for entry in document["claims"]:
        assert f"│ {entry['truth']} " in printed, "on one line: a pipe is no terminal"


def test_counting_alone_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "interleaved", None)
    rows, details = compare(Config(archs=("replknet_nano", "timm/repvit_m0_9"), rounds=0, image_size=64))
    assert all(not row.latency_ms for row in rows)
    assert details["latency"] == {}
    assert rows[1].head_parameters == 0, "two linear layers"
    assert script.figures_table(rows).row_count == 2


@pytest.mark.usefixtures("fake_gpu")
def test_float32_on_a_gpu_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's convolutions take TF32 unless told otherwise: `form` says fp32."""
    found = {}

    def interleaved(calls: dict, rounds: int) -> dict[str, Timing]:
        found.update(gpu()["tf32"])
        return dict.fromkeys(calls, Timing(1.0, 1.0, 1.0, rounds))

    monkeypatch.setattr(script, "interleaved", interleaved)
    monkeypatch.setattr(script, "_call", lambda network, size, device: None)
    _, details = compare(Config(archs=("replknet_nano",), rounds=1, image_size=64))
    assert details["latency"].keys() == {"cpu", "cuda"}
    assert found == details["gpu"]["tf32"] == {"matmul": False, "cudnn": False}


@pytest.mark.parametrize(
    ("archs", "message"),
    [((), "at least one"), (("replknet_nano",) * 2, "each once"), (("timm/resnt50",), "did you mean .*resnet50")],
)
def test_bad_lists_of_architectures(archs: tuple[str, ...], message: str) -> None:
    with pytest.raises((SettingsError, ValueError), match=message):
        compare(Config(archs=archs))


@pytest.mark.parametrize("name", ["rounds", "threads", "image_size"])
def test_impossible_numbers(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} -1: "):
        compare(Config(archs=("replknet_nano",), output=tmp_path / "c.json", **{name: -1}))


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["compare", "--archs", "nothing", "--output", str(tmp_path / "c.json")])
    assert script.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "c.json").exists()


def test_published_figures_have_sources_and_agree_with_the_counts() -> None:
    figures = published_figures()
    for arch, entry in figures.items():
        assert entry["source"], arch
        assert ("top1_from_22k" in entry) == ("source_from_22k" in entry), arch
    assert len(claims()) == 10
    assert all(entry["claim"] and entry["truth"] and entry["source"] for entry in claims())
    own = {arch for arch, a in ARCHITECTURES.items() if a.source != "published"}
    assert not own & figures.keys(), "ours have no published accuracy"
    assert set(ARCHS) - own <= figures.keys()
    network = create_model("timm/efficientnet_lite0")
    assert count_parameters(network) / 1e6 == pytest.approx(
        figures["timm/efficientnet_lite0"]["parameters_m"], rel=0.02
    )
    assert count_macs(network, 224) / 1e9 == pytest.approx(figures["timm/efficientnet_lite0"]["gmacs"], rel=0.06)


SERVER = Row("big", 224, 80_000_000, 15_000_000_000, 1_000_000, {"cpu": 90.0}, {"top1": 83.5, "top1_from_22k": 85.2})
MIDDLE = Row("middle", 224, 28_000_000, 4_500_000_000, 700_000, {"cpu": 30.0}, {"top1": 82.1, "top1_from_22k": 82.9})
SMALL = Row("small", 224, 5_400_000, 220_000_000, 1_200_000, {"cpu": 6.0}, {"top1": 75.8})
TINY = Row("tiny", 224, 4_700_000, 400_000_000, 1_200_000, {"cpu": 5.0}, {"top1": 75.1})


def test_recommendations_follow_from_the_figures() -> None:
    accuracy, mobile, few = recommend([TINY, SERVER, SMALL, MIDDLE])
    assert (accuracy.arch, mobile.arch, few.arch) == ("big", "small", "big")
    assert "83.5 %, against 82.1 % of middle, for 3.3 times its multiply-accumulates" in accuracy.reason
    assert "3.0 times its time (cpu)" in accuracy.reason
    assert "75.8 %, within 600 M multiply-accumulates: it has 220 M and 5.4 M parameters" in mobile.reason
    assert "big has 68 times as many and 15.0 times its time (cpu)" in mobile.reason
    assert "85.2 %, +1.7 points" in few.reason
    assert "1.00 M of 80.0 M parameters learn" in few.reason
    better = dataclasses.replace(TINY, published={"top1": 76.0})
    assert recommend([better, SERVER, SMALL])[1].arch == "tiny"
    lighter = dataclasses.replace(SERVER, arch="lighter", macs=SERVER.macs - 1)
    assert recommend([SERVER, lighter])[0].arch == "lighter"  # as accurate


def test_nothing_is_recommended_without_figures() -> None:
    unknown = dataclasses.replace(SERVER, published={})
    for entry in recommend([unknown]):
        assert entry.arch is None
        assert "none of those compared" in entry.reason
    alone = recommend([SERVER])
    assert alone[0].reason == "the highest published top-1, 83.5 %"
    only_22k = dataclasses.replace(SERVER, published={"top1": None, "top1_from_22k": 86.6})
    assert "86.6 %; with" in recommend([only_22k])[2].reason
    assert "times as many" not in recommend([SMALL])[1].reason


def test_a_slow_candidate_leaves_the_race(tmp_path: Path) -> None:
    calls = {"a": 0, "b": 0}

    def call(name: str) -> None:
        calls[name] += 1

    timings = interleaved({name: lambda name=name: call(name) for name in calls}, rounds=4, seconds=0.0)
    assert calls == {"a": 6, "b": 6}, "three to warm up, one round"
    assert timings["a"].calls == 2
    with pytest.raises(TypeError, match="dataclass instances"):
        write_document(tmp_path / "x.json", thing=object())
    assert Timing.of([float(number) for number in range(11, 0, -1)]) == Timing(6.0, 3.0, 9.0, 11)
    timing = Timing.of([1.0, 2.0, 3.0])
    assert json.loads(write_document(tmp_path / "x.json", timing=timing).read_text())["timing"]["median"] == 2.0


def test_results_on_a_full_disk_leave_the_earlier_ones(tmp_path):
    path = write_document(tmp_path / "x.json", figures=[1])
    before = path.read_text()
    with files_up_to(100), pytest.raises(OSError, match="too large"):
        write_document(path, figures=[2])
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
    write_document(Path("/dev/null"), figures=[2])
    assert Path("/dev/null").is_char_device()


def test_results_name_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert code(tmp_path) == {}
    git("init", "--quiet")
    assert code(tmp_path) == {}, "no commit yet"
    (tmp_path / "train.py").write_text("one")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/x.json").write_text("{}")
    commit = git("rev-parse", "HEAD").strip()
    assert code(tmp_path) == {"commit": commit, "changed_since": False}
    assert code(tmp_path / "benchmarks") == {}, "a folder within another project's checkout"
    (tmp_path / "train.py").write_text("two")
    assert code(tmp_path) == {"commit": commit, "changed_since": True}
    monkeypatch.setenv("PATH", "")
    assert code(tmp_path) == {}

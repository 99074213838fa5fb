"""The runner of `make gpu-check`: every way in which a part can end, and that the exit status tells the whole truth."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.gpu_check import __main__ as runner
from benchmarks.gpu_check.__main__ import Part, main

PASS = Part("good", ("-c", "print('fine')"), 20)
FAIL = Part("bad", ("-c", "print('about to break'); raise SystemExit('broken')"), 20)
SKIP = Part("absent", ("-c", f"print('no such thing here'); raise SystemExit({runner.SKIPPED})"), 20)
HANG = Part("slow", ("-c", "import time; print('working'); time.sleep(60)"), 2)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(runner, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.5)
    return lambda: json.loads((tmp_path / "gpu_check.json").read_text())


def test_all_passed(results, capsys):
    assert main([], [PASS, replace(PASS, name="too")]) == 0
    document = results()
    assert document["status"] == "passed"
    assert [part["status"] for part in document["parts"]] == ["passed"] * 2
    assert document["parts"][0]["tail"] == ["fine"]
    assert "good         passed" in capsys.readouterr().out


def test_a_failing_part_fails_the_whole_and_stops_nothing(results):
    assert main([], [FAIL, PASS]) == 1
    document = results()
    assert document["status"] == "failed"
    bad, good = document["parts"]
    assert (bad["status"], bad["why"]) == ("failed", "exit status 1: broken")
    assert bad["tail"] == ["about to break", "broken"]
    assert good["status"] == "passed"


def test_empty_lines_are_no_reason(results):
    blank = Part("bad", ("-c", "print('the reason'); print('  '); print(); raise SystemExit(3)"), 20)
    assert main([], [blank]) == 1
    assert results()["parts"][0]["why"] == "exit status 3: the reason"


def test_a_skipped_part_says_why_and_fails_nothing(results):
    assert main([], [SKIP, PASS]) == 0
    absent, _ = results()["parts"]
    assert (absent["status"], absent["why"]) == ("skipped", "no such thing here")


def test_a_part_out_of_time_is_killed_and_recorded(results):
    started = time.monotonic()
    assert main(["--seconds", "22"], [HANG, PASS]) == 1
    slow, good = results()["parts"]
    assert time.monotonic() - started < 20
    assert slow["status"] == "failed"
    assert slow["why"].startswith("not finished after 2 s")
    assert good["status"] == "passed"


def test_a_part_that_outlives_its_kill_is_told_and_left(results, monkeypatch):
    """As one that a driver holds in uninterruptible sleep."""
    held = []
    monkeypatch.setattr(runner, "KILL_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr("os.killpg", lambda group, number: held.append(group))
        assert main(["--seconds", "22"], [HANG, PASS]) == 1
    os.killpg(held[0], signal.SIGKILL)
    slow, good = results()["parts"]
    assert slow["why"].startswith(f"not finished after 2 s, and process {held[0]} outlives SIGKILL (a driver holds it")
    assert good["status"] == "passed"


def test_what_a_part_started_is_killed_too(results, tmp_path):
    note = tmp_path / "child"
    code = f"import subprocess; p = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(p.pid))"
    assert main([], [Part("leaves one", ("-c", code), 20)]) == 0
    state = Path(f"/proc/{note.read_text()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the part's child still runs")


def test_a_call_that_is_ended_ends_the_part_that_runs(tmp_path):
    note = tmp_path / "pid"
    part = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from pathlib import Path; from benchmarks import harness;"
        "import benchmarks.gpu_check.__main__ as g;"
        f"harness.RESULTS = g.LOGS = Path({str(tmp_path)!r});"
        f"sys.exit(g.main([], [g.Part('slow', ('-c', {part!r}), 60)]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=runner.ROOT, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if note.exists() and note.read_text():
            break
        time.sleep(0.05)
    process.terminate()
    assert "ended by SIGTERM" in process.communicate(timeout=20)[1]
    assert process.returncode == 128 + signal.SIGTERM
    state = Path(f"/proc/{note.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    (slow,) = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert slow["status"] == "running"


def test_no_time_left_is_a_failure(results):
    assert main(["--seconds", "0.1"], [PASS]) == 1
    assert results()["parts"][0]["why"] == "not begun: the 0 s were over"


def test_nothing_is_tried_without_what_all_need(results):
    needed = Part("device", ("-c", "raise SystemExit('PyTorch sees no GPU')"), 20, needed=True)
    assert main([], [needed, PASS]) == 1
    device, good = results()["parts"]
    assert device["status"] == "failed"
    assert (good["status"], good["why"]) == ("skipped", "device is needed: exit status 1: PyTorch sees no GPU")


def test_time_saved_by_one_part_is_there_for_the_next(results):
    parts = [Part("quick", ("-c", ""), 300), Part("long", ("-c", ""), 100), Part("last", ("-c", ""), 200)]
    assert main(["--seconds", "600"], parts) == 0
    quick, longer, last = (part["budget"] for part in results()["parts"])
    assert quick == 300
    assert 300 < longer <= 400  # 600 less what the first used, less 200 for the last
    assert 400 < last <= 600


def test_a_cut_off_call_leaves_what_it_had(results, monkeypatch):
    real = runner.run_part

    def cut_off(part, *rest):
        if part is FAIL:
            raise KeyboardInterrupt
        return real(part, *rest)

    monkeypatch.setattr(runner, "run_part", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main([], [PASS, FAIL, SKIP])
    document = results()
    assert document["status"] == "running"
    assert [part["status"] for part in document["parts"]] == ["passed", "running", "pending"]


def test_chosen_parts(results):
    assert main(["--only", "good"], [FAIL, PASS]) == 0
    assert [part["name"] for part in results()["parts"]] == ["good"]
    with pytest.raises(SystemExit):
        main(["--only", "good", "none"], [PASS])


@pytest.mark.parametrize("only", [["good"], ["good", "device"]])
def test_chosen_parts_come_after_what_all_need(results, only):
    found = Part("device", ("-c", ""), 20, needed=True)
    assert main(["--only", *only], [found, FAIL, PASS]) == 0
    assert [part["name"] for part in results()["parts"]] == ["device", "good"]
    lacking = Part("device", ("-c", "raise SystemExit('PyTorch sees no GPU')"), 20, needed=True)
    assert main(["--only", *only], [lacking, FAIL, PASS]) == 1
    device, good = results()["parts"]
    assert (device["status"], good["status"]) == ("failed", "skipped")
    assert good["why"] == "device is needed: exit status 1: PyTorch sees no GPU"


def test_a_part_s_environment_is_set(results):
    code = "import os; print(os.environ['OMP_NUM_THREADS'], 'PATH' in os.environ)"
    assert main([], [Part("set", ("-c", code), 20, environment={"OMP_NUM_THREADS": "7"})]) == 0
    assert results()["parts"][0]["tail"] == ["7 True"]


def test_a_part_is_told_its_time(results):
    """What others saved too, less a last layer's: the benchmark's sweep would leave it unused, or be killed."""
    code = "import sys; print(sys.argv[1:])"
    parts = [Part("told", ("-c", code, "--seconds", runner.SECONDS), 115), Part("last", ("-c", ""), 100)]
    assert main(["--seconds", "300"], parts) == 0
    told = results()["parts"][0]
    assert told["tail"] == [str(["--seconds", str(round(told["budget"] - runner.LAST_LAYER_SECONDS))])]
    assert 190 < told["budget"] <= 200
    assert main(["--seconds", "20"], parts[:1]) == 0
    assert results()["parts"][0]["tail"] == ["['--seconds', '1.0']"]
    assert any(runner.SECONDS in part.command for part in runner.parts())


def test_here_it_says_that_there_is_no_gpu(results):
    """The real first part, in a process of its own, blind to any GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        assert main(["--only", "device"]) == 1
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    (device,) = results()["parts"]
    assert "sees no GPU" in device["why"]

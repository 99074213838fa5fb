"""Which runs of the comparison are measured, what others took meanwhile, and that a peer is gone afterwards."""

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from benchmarks import harness
from benchmarks.serving import __main__ as serving
from benchmarks.serving import networks, quiet
from benchmarks.serving.servers import stop
from models import ModelConfig, create_model

LOADS = {"closed 1": {"answers": 9, "errors": 0, "images_per_s": 9.0, "p50_ms": 100.0, "p99_ms": 120.0}}


@pytest.fixture
def call(monkeypatch, tmp_path):
    """The benchmark with runs that take no time -> what was measured, and the results file's content."""
    written = {}

    def benchmark(others_cores, *arguments):
        measured = []

        def one_run(model, server, repeat, options, threads):
            measured.append((model, server, repeat))
            known = {"model": model, "server": server, "repeat": repeat, "seconds": options.seconds}
            return {**known, "cold_start_s": 1, "memory_mib": 9, "others_cores": others_cores, "loads": LOADS}

        monkeypatch.setattr(serving, "one_run", one_run)
        monkeypatch.setattr(sys, "argv", ["serving", *arguments])
        serving.main()
        return measured, written

    for name in ("run_as_served", "prepare_environment", "exit_on_sigterm"):
        monkeypatch.setattr(serving, name, lambda *_: None)
    monkeypatch.setattr(serving, "peer_versions", dict)
    monkeypatch.setattr(serving, "publish", lambda name, **content: written.update(content))
    monkeypatch.setattr(serving, "FOLDER", tmp_path)
    return benchmark


def test_the_servers_of_each_way_take_turns(call):
    measured, _ = call(0.0, "--models", "nano", "--peers", "ray", "--ways", "workers", "--repeats", "2")
    assert measured == [
        ("nano", "widefield", 0),
        ("nano", "ray-workers", 0),
        ("nano", "ray-workers", 1),
        ("nano", "widefield", 1),
    ]
    both, _ = call(0.0, "--models", "nano", "--peers", "ray", "--repeats", "1", "--fresh")
    assert [server for _, server, _ in both] == ["widefield", "ray", "ray-workers"]


def test_disturbed_runs_alone_are_measured_again(call):
    arguments = ("--models", "nano", "--peers", "ray", "--ways", "one", "--repeats", "1")
    _, first = call(1.5, *arguments)
    assert "2 of 2 runs" in first["warning"]
    again, second = call(0.02, *arguments)
    assert len(again) == 2
    assert (second["warning"], second["others_cores_at_most"]) == (None, 0.02)
    assert [row["repeats"] for row in second["rows"]] == [1, 1]
    assert call(0.02, *arguments)[0] == []


def test_runs_of_other_versions_or_another_way_are_measured_again(call, monkeypatch):
    arguments = ("--models", "nano", "--peers", "ray", "--repeats", "1", "--ways")
    assert len(call(0.0, *arguments, "both")[0]) == 3
    assert call(0.0, *arguments, "both")[0] == []
    assert len(call(0.0, *arguments, "one")[0]) == 2
    monkeypatch.setattr(serving, "peer_versions", lambda: {"ray": "99"})
    assert len(call(0.0, *arguments, "both")[0]) == 3


def test_a_run_that_was_half_written_is_measured_again(call, tmp_path):
    arguments = ("--models", "nano", "--peers", "ray", "--ways", "one", "--repeats", "1")
    assert len(call(0.0, *arguments)[0]) == 2
    runs = tmp_path / "runs.jsonl"
    runs.write_bytes(runs.read_bytes()[:-30])
    measured, written = call(0.0, *arguments)
    assert measured == [("nano", "ray", 0)]
    assert [row["server"] for row in written["rows"]] == ["widefield", "ray"]
    assert call(0.0, *arguments)[0] == []


def test_the_fingerprint_is_of_sources_machine_and_what_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    (tmp_path / "server").mkdir()
    (tmp_path / "server/run.py").write_text("one")
    (tmp_path / "server/run.so").write_text("built of it")
    prints = [harness.fingerprint("server", ways="one"), harness.fingerprint("server", ways="both")]
    (tmp_path / "server/run.so").write_text("built again")
    assert harness.fingerprint("server", ways="one") == prints[0]
    (tmp_path / "server/run.py").write_text("two")
    prints.append(harness.fingerprint("server", ways="one"))
    monkeypatch.setattr(harness, "machine", lambda: {"cpu": "another"})
    prints.append(harness.fingerprint("server", ways="one"))
    assert len(set(prints)) == 4


def test_others_are_neither_this_process_nor_the_servers_tree(monkeypatch):
    def at(user, idle, own):
        times = dict.fromkeys(("nice", "system", "iowait", "irq", "softirq", "steal"), 0.0)
        used = SimpleNamespace(user=own, system=0.0, children_user=0.0, children_system=0.0)
        monkeypatch.setattr(quiet.psutil, "cpu_times", lambda: SimpleNamespace(user=user, idle=idle, **times))
        monkeypatch.setattr(quiet.psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: used))
        monkeypatch.setattr(quiet, "tree", lambda pid: [SimpleNamespace(cpu_times=lambda: used)])

    monkeypatch.setattr(quiet.psutil, "cpu_count", lambda: 2)
    at(user=10.0, idle=10.0, own=1.0)
    others = quiet.Others(1)
    at(user=15.0, idle=15.0, own=2.5)  # of 10 processor seconds 5 are used, 3 of them by the two of ours
    assert others.cores() == 0.4


def test_a_busy_process_counts_where_it_is_not_the_servers():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        outside, inside = quiet.Others(idle.pid), quiet.Others(busy.pid)
        used = psutil.Process(busy.pid).cpu_times().user
        begun = time.monotonic()
        while psutil.Process(busy.pid).cpu_times().user < used + 0.5:
            time.sleep(0.02)
        share = 0.5 / (time.monotonic() - begun)
        assert outside.cores() - inside.cores() == pytest.approx(share, rel=0.3, abs=0.1)
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()


def test_a_child_that_survives_sigterm_is_ended_as_soon_as_its_parent_is():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {deaf!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(process.stdout.readline()))
    begun = time.monotonic()
    stop(process)
    assert process.returncode is not None
    child.wait(5)  # raises where it lives
    assert time.monotonic() - begun < 15


def test_the_plain_network_is_the_same_without_our_operator():
    network = create_model("replknet_nano", image_size=networks.IMAGE_SIZE).eval()
    config = ModelConfig(arch="replknet_nano", image_size=networks.IMAGE_SIZE)
    pixels = torch.randint(0, 256, (1, networks.IMAGE_SIZE, networks.IMAGE_SIZE, 3), dtype=torch.uint8)
    images = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(
        config.std
    ).view(3, 1, 1)
    plain = networks.plain_backbone(network, config)
    with torch.inference_mode():
        torch.testing.assert_close(plain(pixels), network(images), rtol=1e-3, atol=1e-4)
    assert "widefield::" not in str(plain.inlined_graph)

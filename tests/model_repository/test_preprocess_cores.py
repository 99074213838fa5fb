"""The cores that preprocess shares among its instances, that server.tune tries, and that a build and a training use."""

import pytest

import models.cores
from server import cores
from training.finetune_config import Config
from training.script import begin


@pytest.fixture(autouse=True)
def machine(step, tmp_path, monkeypatch):
    """32 cores, and the cgroup's files in a folder of our own."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)))
    for module in (step, cores, models.cores):
        monkeypatch.setattr(module, "CGROUP", tmp_path)


@pytest.fixture(params=["preprocess", "server", "models"])
def usable_cores(request, step):
    return {"preprocess": step, "server": cores, "models": models.cores}[request.param].usable_cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 32),  # no cgroup of these
        ({"cpu.max": "max 100000\n"}, 32),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 32),  # more than there are
        ({"cpu.max": "what"}, 32),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 32),
    ],
)
def test_a_quota_limits_the_cores(usable_cores, tmp_path, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert usable_cores() == expected


def test_instances_share_the_quota(step, tmp_path):
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert [step.threads_of({"instance_group": [{"count": count}]}) for count in (1, 2, 8)] == [4, 2, 1]


def test_a_training_uses_no_more(tmp_path, monkeypatch):
    """Threads that a quota holds up make each other wait."""
    used = []
    monkeypatch.setattr("torch.set_num_threads", used.append)
    monkeypatch.setattr("torch.get_num_threads", lambda: 32)
    for quota in ("400000 100000", "max 100000"):
        (tmp_path / "cpu.max").write_text(quota)
        begin(Config(device="cpu"), {})
    assert used == [4, 32]

"""server.tune: what it chooses from measurements, what it writes, and a run on real servers."""

import shutil
from dataclasses import replace

import pytest

from server import tune
from server.repository import read_repository
from server.tune import Score, Settings, TuneError, read_settings, write_settings

NOW = Settings(2, 1, 2, 16, 0)


@pytest.fixture
def own(repository, tmp_path):
    """A copy of the small repository to write to."""
    return shutil.copytree(repository, tmp_path / "models")


def choose(score, p99_ms=None, now=NOW):
    said = []
    best, found, before = tune.tune(now, 4, score, p99_ms, said.append)
    return best, found, before, said


def test_each_setting_is_kept_if_it_gains():
    def score(s):
        return Score(100 * s.preprocess_instances + 50 * (s.backbone_instances == 4) + (s.delay_us == 1_000) * 90, 10)

    best, found, before, said = choose(score)
    assert best == Settings(8, 4, 1, 16, 1_000)
    assert (found.images_per_s, before.images_per_s) == (940, 200)
    assert len(said) == len(set(said))  # nothing is measured twice


def test_noise_changes_nothing():
    best, *_ = choose(lambda s: Score(100 + 2 * s.preprocess_instances / 8 + (s != NOW), 10))
    assert best == NOW


def test_the_percentile_goes_before_the_rate():
    def score(s):
        return Score(100 * s.preprocess_instances, 50 * s.preprocess_instances)

    assert choose(score, p99_ms=210)[0].preprocess_instances == 4
    assert choose(score, p99_ms=10)[0].preprocess_instances == 8  # where none keeps it, the rate decides


def test_settings_are_written_and_read_again(own):
    assert read_settings(own) == Settings(2, 1, 1, 16, 0)
    before = (own / "softmax/config.pbtxt").read_text()
    wanted = Settings(3, 2, 4, 8, 5_000)
    write_settings(own, wanted)
    assert read_settings(own) == wanted
    assert (own / "softmax/config.pbtxt").read_text() == before
    assert {path.name for path in (own / "backbone").iterdir()} == {"1", "config.pbtxt", "configs"}
    assert "INTER_OP_THREAD_COUNT" in (own / "backbone/config.pbtxt").read_text()


def test_the_embedded_servers_config_follows(own):
    """The batches that it prefers are those compiled for, as far as they fit; what runs alone has every thread."""
    for largest, preferred, instances, lone in ((8, [4], 1, ""), (2, [], 1, ""), (8, [], 3, "6")):
        write_settings(own, Settings(2, instances, 2, largest, 0))
        plain, embedded = (tune.read_config(own, "backbone", file) for file in ("config.pbtxt", tune.EMBEDDED))
        assert list(embedded.dynamic_batching.preferred_batch_size) == preferred
        assert embedded.max_batch_size == plain.max_batch_size == largest
        assert embedded.instance_group == plain.instance_group
        assert embedded.parameters["LONE_THREAD_COUNT"].string_value == lone
        assert "LONE_THREAD_COUNT" not in plain.parameters
    assert read_repository(own).overridden == ()


def one_step(now, cores):
    yield lambda best: [replace(best, preprocess_instances=1, max_batch_size=4)]


@pytest.mark.server
def test_a_run_writes_what_served_most(own, monkeypatch, capsys):
    monkeypatch.setattr(tune, "candidates", one_step)
    monkeypatch.setattr(tune, "LEAST_GAIN", 0.0)  # the last one stays
    assert tune.main(["--model-repository", str(own), "--seconds", "0.4", "--callers", "2", "--dry-run"]) == 0
    assert read_settings(own).preprocess_instances == 2
    assert tune.main(["--model-repository", str(own), "--seconds", "0.4", "--callers", "2"]) == 0
    assert read_settings(own).preprocess_instances == 1
    assert "max_batch_size: 4" in (own / "classifier/config.pbtxt").read_text()  # or the server would not start
    printed = capsys.readouterr().out
    assert printed.count("images/s, p99") == 4
    assert "times the images a second of before" in printed


def test_what_cannot_be_tuned_is_one_line(own, tmp_path, capsys):
    assert tune.main(["--model-repository", str(tmp_path / "none")]) == 1
    (own / "backbone" / tune.EMBEDDED).write_text("what")
    with pytest.raises(TuneError, match=r"run build_models\.py"):
        read_settings(own)
    assert tune.main(["--model-repository", str(own)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "does not exist" in errors[0]
    with pytest.raises(SystemExit):
        tune.main(["--callers", "0"])

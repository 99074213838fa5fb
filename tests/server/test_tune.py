"""server.tune: what it chooses from measurements, what it writes, and a run on real servers."""

import os
import re
import shutil
import signal
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tritonclient.grpc import model_config_pb2

from export.configs import ServingSpec, configs, embedded_configs
from server import cores, tune
from server.canary import canary_png
from server.model_configs import read_config
from server.repository import EMBEDDED, read_repository
from server.tune import Score
from server.tuned_settings import (
    Settings,
    TuneError,
    largest_batch,
    read_settings,
    set_preferred,
    write_settings,
)
from server.versions import Versions
from tests.full_disk import files_up_to

ROOT = Path(__file__).parents[2]

NOW = Settings(2, 1, 2, 16, 0)
SHARED = {"LONE_THREAD_COUNT", "ENABLE_WEIGHT_SHARING"}  # parameters of instances that share the cores


@pytest.fixture
def own(repository, tmp_path):
    """A copy of the small repository to write to."""
    return shutil.copytree(repository, tmp_path / "models")


@pytest.mark.parametrize(("instances", "largest", "preferred"), [(1, 8, 4), (1, 3, 3), (2, 8, 2), (2, 1, 1)])
def test_the_preferred_batches_follow(instances, largest, preferred):
    """They are the sizes that are compiled for, or two where several instances run images one by one."""
    config = model_config_pb2.ModelConfig(model_warmup=[{"batch_size": 4}, {"batch_size": 1}])
    set_preferred(config, Settings(2, instances, 2, largest, 0))
    assert list(config.dynamic_batching.preferred_batch_size) == [preferred]


def choose(score, p99_ms=None, now=NOW, largest=16):
    said = []
    best, found, before = tune.tune(now, 4, largest, score, p99_ms, said.append)
    return best, found, before, said


def test_each_setting_is_kept_if_it_gains():
    def score(s):
        return Score(100 * s.preprocess_instances + 50 * (s.backbone_instances == 4) + (s.delay_us == 1_000) * 90, 10)

    best, found, before, said = choose(score)
    assert best == Settings(8, 4, 1, 16, 1_000, 4)
    assert (found.images_per_s, before.images_per_s) == (940, 200)
    tried = said[: said.index("the best of these and the current settings, in turns:")]
    assert len(tried) == len(set(tried))  # nothing is measured twice
    measured = [line for line in said if ": preprocess x " in line]
    assert said[1] == f"at most {len(measured) - 1} more such measurements, about 0.0 minutes"


@pytest.mark.parametrize(("preprocess", "softmax", "tried"), [(16, 16, {4, 8, 16}), (16, 4, {4, 16}), (2, 8, {2, 16})])
def test_batches_that_another_step_would_refuse_are_not_tried(own, preprocess, softmax, tried):
    for name, size in (("preprocess", preprocess), ("softmax", softmax)):
        for path in (own / name).rglob("*.pbtxt"):
            path.write_text(path.read_text().replace("max_batch_size: 16", f"max_batch_size: {size}"))
    sizes = set()

    def score(settings):
        sizes.add(settings.max_batch_size)
        return Score(100, 10)

    choose(score, largest=largest_batch(own))
    assert sizes == tried


def test_a_larger_batch_can_come_back():
    best, *_ = choose(lambda s: Score(100 * s.max_batch_size, 10), now=replace(NOW, max_batch_size=4))
    assert best.max_batch_size == 16


@pytest.mark.parametrize(
    ("again", "what_is_there", "kept"),
    [
        ([110, 109, 300], [100, 101, 1], True),
        ([110, 102, 90], [100, 101, 100], False),  # its first measurement was luck
        ([110, 110, 110], [108, 120, 107], False),  # and that of what is there misfortune
        ([110, 99, 110], [100, 100, 100], False),  # the machine's own changes are as large
    ],
)
def test_the_best_must_gain_again(again, what_is_there, kept, monkeypatch):
    """It must gain in each of the alternating turns; the medians are reported."""
    best = replace(NOW, delay_us=1_000)
    monkeypatch.setattr(tune, "candidates", lambda *_: [lambda _: [best]])
    left = {NOW: iter([100, *what_is_there]), best: iter([120, *again])}
    order = []

    def score(settings):
        order.append(settings)
        return Score(next(left[settings]), 10)

    chosen, found, before, said = choose(score)
    assert chosen == (best if kept else NOW)
    assert order == [NOW, best] + [best, NOW] * 3
    assert (found.images_per_s, before.images_per_s) == (sorted(again)[1], sorted(what_is_there)[1])
    assert f"{before}: the median of the current settings" in said[-1]
    assert f"{found}: its median" in said[-1]


def test_the_percentile_decides_at_the_end_too(monkeypatch):
    best = replace(NOW, delay_us=1_000)
    monkeypatch.setattr(tune, "candidates", lambda *_: [lambda _: [best]])
    left = {NOW: iter([50] * 4), best: iter([50, 70, 70, 50])}
    chosen, *_ = choose(lambda settings: Score(200 if settings == best else 100, next(left[settings])), p99_ms=60)
    assert chosen == NOW


def test_noise_changes_nothing():
    best, *_ = choose(lambda s: Score(100 + 2 * s.preprocess_instances / 8 + (s != NOW), 10))
    assert best == NOW


def test_the_percentile_goes_before_the_rate():
    def score(s):
        return Score(100 * s.preprocess_instances, 50 * s.preprocess_instances)

    assert choose(score, p99_ms=210)[0].preprocess_instances == 4
    assert choose(score, p99_ms=10)[0].preprocess_instances == 8  # where none keeps it, the rate decides


def test_what_warms_a_server_up_is_not_counted(own, monkeypatch):
    """The score is of what comes after it: 101 images, of which one took longer than the 99th percentile."""
    taken = iter([[9.0] * 50, [number / 1000 for number in range(101)]])
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(tune, "TritonServer", lambda copy, **_: nullcontext(SimpleNamespace(grpc_url="")))
    monkeypatch.setattr(tune, "closed_loop", lambda *_: next(taken))
    monkeypatch.setattr(tune, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = tune.measure(own, NOW, False, b"", 1, 2.0)
    assert (found.images_per_s, found.p99_ms) == pytest.approx((50.5, 99.0))


@pytest.mark.server
def test_a_trial_does_not_repeat_the_servers_warnings(own, tmp_path, monkeypatch, caplog):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    with caplog.at_level("WARNING", "server"):
        tune.measure(own, replace(NOW, backbone_threads=2), True, canary_png(), 1, 0.1)
    assert caplog.records == []


def test_each_caller_has_two_answers_however_slow_they_are(server):
    """A percentile is of two values at least."""
    assert len(tune.closed_loop(server.grpc_url, canary_png(), 2, 0.0)) == 4


def test_no_more_instances_than_cores_are_tried():
    alternatives = next(tune.candidates(1, 16, True))
    assert [settings.backbone_instances for settings in alternatives(NOW)] == [1]


@pytest.mark.parametrize(("embedded", "alone"), [(True, 3), (False, 0)])
def test_a_lone_execution_gets_all_cores(embedded, alone):
    """Also those that the machine of the build did not have; another server's backend has no such setting."""
    built = Settings(2, 2, 1, 16, 0, 2 if embedded else 0)
    tried = next(tune.candidates(3, 16, embedded))(built)
    assert [(each.backbone_instances, each.backbone_threads, each.lone_threads) for each in tried] == [
        (1, 3, 0),
        (2, 1, alone),
        (3, 1, alone),
    ]


def test_the_repositorys_own_picture_is_sent(tmp_path):
    assert tune.own_image(tmp_path) == canary_png()
    (tmp_path / "preprocess/warmup").mkdir(parents=True)
    (tmp_path / "preprocess/warmup/image").write_bytes(b"\7\0\0\0picture")
    assert tune.own_image(tmp_path) == b"picture"


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
    """A single instance gets every thread, and shares no weights."""
    for largest, preferred, instances, lone in ((8, [2], 1, 0), (8, [2], 3, 7), (1, [1], 3, 7), (8, [2], 1, 0)):
        write_settings(own, Settings(2, instances, 2, largest, 0, lone))
        plain, embedded = (read_config(own, "backbone", file) for file in ("config.pbtxt", EMBEDDED))
        assert list(embedded.dynamic_batching.preferred_batch_size) == preferred
        assert embedded.max_batch_size == plain.max_batch_size == largest
        assert embedded.instance_group[0].count == instances
        assert plain.instance_group[0].count == 1
        shown = {key: value.string_value for key, value in embedded.parameters.items() if key in SHARED}
        assert shown == ({"LONE_THREAD_COUNT": "7", "ENABLE_WEIGHT_SHARING": "true"} if lone else {})
        assert not SHARED & plain.parameters.keys()
    assert read_repository(own).overridden == ()


@pytest.fixture
def built(tmp_path):
    """The configs that build_models.py has written."""
    ignore = shutil.ignore_patterns("*.pt", "*.onnx")
    return shutil.copytree(ROOT / "model_repository", tmp_path / "built", ignore=ignore)


def contents(repository):
    return {path: path.read_bytes() for path in repository.rglob("*.pbtxt")}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_settings_as_they_are_change_nothing(built, threads):
    spec = ServingSpec(32, 32, "bicubic", 10, threads)
    for file, texts in (("config.pbtxt", configs(spec)), (EMBEDDED, embedded_configs(spec))):
        for model, text in texts.items():
            (built / model / file).write_text(text)
    before = contents(built)
    write_settings(built, read_settings(built))
    assert contents(built) == before


def test_what_was_written_by_hand_stays_where_nothing_follows_for_it(built):
    path = built / "backbone" / EMBEDDED
    path.write_text(embedded_configs(ServingSpec(32, 32, "bicubic", 10, 4))["backbone"])
    by_hand = {"preferred_batch_size: 2": "preferred_batch_size: 8", 'string_value: "true"': 'string_value: "false"'}
    for built_one, other in by_hand.items():
        assert built_one in path.read_text()
        path.write_text(path.read_text().replace(built_one, other))
    write_settings(built, replace(read_settings(built), delay_us=7))
    config = read_config(built, "backbone", EMBEDDED)
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.parameters["ENABLE_WEIGHT_SHARING"].string_value == "false"


def test_the_container_keeps_its_gpu_and_its_threads(built):
    """What this server's instances and threads are says nothing about another's."""
    before = read_config(built, "backbone")
    write_settings(built, replace(read_settings(built), backbone_instances=3, backbone_threads=5, delay_us=7))
    after = read_config(built, "backbone")
    assert after.instance_group == before.instance_group
    assert after.parameters["INTRA_OP_THREAD_COUNT"] == before.parameters["INTRA_OP_THREAD_COUNT"]
    assert after.dynamic_batching.max_queue_delay_microseconds == 7
    (group,) = read_config(built, "backbone", EMBEDDED).instance_group
    assert (group.count, group.kind) == (3, group.KIND_CPU)


def test_another_server_reads_config_pbtxt(built):
    settings = replace(read_settings(built, embedded=False), backbone_instances=2, backbone_threads=4)
    embedded = read_config(built, "backbone", EMBEDDED)
    write_settings(built, settings, embedded=False)
    assert read_settings(built, embedded=False) == settings
    assert "LONE_THREAD_COUNT" not in read_config(built, "backbone").parameters
    assert read_config(built, "backbone", EMBEDDED) == embedded


def test_no_batch_is_preferred_that_is_larger_than_the_largest(own):
    """tritonserver refuses such a config; of the embedded server's when another is tuned, too."""
    write_settings(own, replace(read_settings(own, embedded=False), max_batch_size=2), embedded=False)
    config = read_config(own, "backbone", EMBEDDED)
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (2, [])


def one_step(usable, largest, embedded):
    assert (usable, largest, embedded) == (1, 16, True)
    yield lambda best: [replace(best, preprocess_instances=1, max_batch_size=4)]


def test_each_measurement_is_as_the_options_say(own, tmp_path, monkeypatch):
    asked = set()

    def measured(repository, settings, embedded, image, *load):
        asked.add((image, *load))
        return Score(200, 80) if settings.delay_us == 7 else Score(100, 50)

    monkeypatch.setattr(tune, "candidates", lambda *_: [lambda best: [replace(best, delay_us=7)]])
    monkeypatch.setattr(tune, "measure", measured)
    (tmp_path / "picture").write_bytes(b"picture")
    words = ["--model-repository", str(own), "--image", str(tmp_path / "picture"), "--callers", "3", "--seconds", "0.5"]
    words += ["--library", "ours.so", "--start-timeout", "7"]
    assert tune.main([*words, "--p99-ms", "60"]) == 0
    assert read_settings(own).delay_us == 0
    assert tune.main(words) == 0
    assert read_settings(own).delay_us == 7
    assert asked == {(b"picture", 3, 0.5, "ours.so", 7.0)}


@pytest.mark.server
def test_a_run_writes_what_served_most(own, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # it is not asked for this machine's server
    for variable in ("no_proxy", "NO_PROXY", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "cpu.max").write_text("50000 100000\n")  # half a core
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr(tune, "candidates", one_step)
    monkeypatch.setattr(tune, "LEAST_GAIN", 0.0)  # the last one stays
    monkeypatch.setattr(tune, "TURNS", 1)
    assert tune.main(["--model-repository", str(own), "--seconds", "0.4", "--callers", "2", "--dry-run"]) == 0
    assert read_settings(own).preprocess_instances == 2
    assert tune.main(["--model-repository", str(own), "--seconds", "0.4", "--callers", "2"]) == 0
    assert read_settings(own).preprocess_instances == 1
    assert "max_batch_size: 4" in (own / "classifier/config.pbtxt").read_text()  # or the server would not start
    before = contents(own)
    assert tune.main(["--model-repository", str(own), "--seconds", "0.4", "--callers", "2"]) == 0
    assert contents(own) == before
    printed = capsys.readouterr().out
    assert printed.count("images/s, p99") == 13
    assert printed.splitlines()[-1].startswith("nothing serves more than the current settings: preprocess x 1")
    assert "times as many images a second as before" in printed


def test_what_cannot_be_tuned_is_one_line(own, tmp_path, capsys):
    assert tune.main(["--model-repository", str(tmp_path / "none")]) == 1
    (own / "backbone" / EMBEDDED).write_text("what")
    with pytest.raises(TuneError, match=r"run build_models\.py"):
        read_settings(own)
    assert tune.main(["--model-repository", str(own)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "does not exist" in errors[0]
    for word in ("--callers=0", "--seconds=0", "--seconds=nan", "--seconds=inf", "--seconds=x", "--p99-ms=0"):
        with pytest.raises(SystemExit):
            tune.main([word])
    assert "argument --seconds: 'x' is not a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["--library", "WIDEFIELD_LIBRARY", "WIDEFIELD_RESIZE"])
def test_a_library_that_is_none_is_wrong_usage(own, monkeypatch, capsys, library):
    """As it is for the server."""
    words = ["--model-repository", str(own)]
    if library.startswith("WIDEFIELD"):
        monkeypatch.setenv(library, "/none")
    else:
        words += [library, "/none"]
    assert tune.main(words) == 2
    assert " /none cannot be read" in capsys.readouterr().err


def test_configs_that_cannot_be_written_are_told_before_anything_is_measured(own, monkeypatch, capsys):
    """Root, as whom these tests may run, may write all."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "configs")
    monkeypatch.setattr(tune, "tune", None)
    assert tune.main(["--model-repository", str(own)]) == 1
    assert capsys.readouterr().err == (
        f"server.tune: {own}/backbone/configs cannot be written: mount it writable, tune as its owner, or give "
        "--dry-run\n"
    )


def test_who_may_read_a_config_stays(own):
    file = own / "backbone" / "config.pbtxt"
    file.chmod(0o640)
    before = file.read_bytes()
    write_settings(own, Settings(3, 1, 5, 4, 7))
    assert file.read_bytes() != before
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_changes_nothing(own):
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    largest = max(len(text) for path, text in before.items() if path.suffix == ".pbtxt")
    with (
        files_up_to(largest // 2),
        pytest.raises(TuneError, match=r"config\.pbtxt cannot be written \(File too large\)"),
    ):
        write_settings(own, Settings(3, 1, 5, 4, 7))
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["missing.jpg", "."])
def test_an_image_that_cannot_be_read_is_wrong_usage(own, tmp_path, name, capsys):
    with pytest.raises(SystemExit) as end:
        tune.main(["--model-repository", str(own), "--image", str(tmp_path / name)])
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"error: --image {tmp_path / name} cannot be read \(.*\): name a picture's file", said)


@pytest.mark.server
def test_what_is_no_image_is_one_line(own, tmp_path, capsys):
    (tmp_path / "text").write_text("no image")
    arguments = ["--model-repository", str(own), "--image", str(tmp_path / "text"), "--seconds", "0.4"]
    assert tune.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("server.tune: the image was not classified: ")
    assert "not a JPEG" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_configs_are_written_comes_too_late(own, monkeypatch, capsys, number):
    """Half of them would be no repository."""
    replace_file, handlers = os.replace, {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}

    def interrupted(draft, path):
        replace_file(draft, path)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(tune, "candidates", lambda *_: [lambda best: [Settings(3, 1, 5, 4, 7)]])
    monkeypatch.setattr(tune, "measure", lambda _, settings, *__: Score(settings.delay_us + 1.0, 50))
    monkeypatch.setattr(os, "replace", interrupted)
    try:
        assert tune.main(["--model-repository", str(own)]) == 0
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert read_settings(own) == Settings(3, 1, 5, 4, 7)
    assert "wrote preprocess x 3" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_written_in_a_release(own, monkeypatch, capsys):
    """It has compared the configs with those that are served, and is about to load the backbone with them."""
    monkeypatch.setattr(tune, "candidates", lambda *_: [lambda best: [Settings(3, 1, 5, 4, 7)]])
    monkeypatch.setattr(tune, "measure", lambda _, settings, *__: Score(settings.delay_us + 1.0, 50))
    before = contents(own)
    with Versions(own).locked():
        assert tune.main(["--model-repository", str(own)]) == 1
    assert f"release or rollback of {own}/backbone is under way" in capsys.readouterr().err
    assert contents(own) == before


def test_sigterm_leaves_no_copy(own, tmp_path, monkeypatch, capsys):
    def measured(repository, *_):
        with tune.copied(repository):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tune, "measure", measured)
    try:
        assert tune.main(["--model-repository", str(own)]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.glob("widefield-tune-*"))

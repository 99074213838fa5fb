"""Hostile input against the real server: a small part of `python -m benchmarks.fuzz`, and each input that broke one."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.__main__ import ROOM_FOR_FILES, ROOM_FOR_IMAGES, SHARES, blocks, memory
from benchmarks.fuzz.blocks import open_channel, preprocess_block, send_case, served_block, served_case
from benchmarks.fuzz.http_cases import LARGEST, bounded
from benchmarks.fuzz.http_message import dump, inference, message
from benchmarks.fuzz.images import good
from benchmarks.fuzz.lethal import INPUTS, try_input
from benchmarks.fuzz.watch import Watch
from benchmarks.fuzz.wire import is_whole, judge, send_http
from server import TritonServer

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def fuzzed_server(digits_repository, tmp_path_factory):
    """A server for these tests alone: what a hostile request does to it later hurts no other test."""
    with TritonServer(digits_repository, log_file=tmp_path_factory.mktemp("fuzzed") / "server.log") as server:
        yield server


def run(server, kind, cases):
    watch = Watch(server)
    for its_kind, names in blocks(cases, seed=7):
        if its_kind == kind:
            outcomes = preprocess_block(names) if kind == "image in process" else served_block(server, names)
            assert not outcomes.findings
            assert len(outcomes.counts) > 1  # some are answered, some refused
            watch.check()
    return watch


@pytest.mark.parametrize("kind", SHARES)
def test_hostile_input_is_refused_and_hurts_nobody(fuzzed_server, kind):
    run(fuzzed_server, kind, 500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_thousands(fuzzed_server, kind):
    watch = run(fuzzed_server, kind, 12_000)
    assert sum(watch.resident[-1]) < sum(watch.resident[len(watch.resident) // 2]) * 1.2


@pytest.mark.parametrize("kind", ["image served", "http", "grpc"])
@pytest.mark.parametrize("examples", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_hypothesis_finds_nothing(fuzzed_server, kind, examples):
    """The same cases, but each choice is hypothesis's: a finding is told by the simplest case that shows it."""
    watch = Watch(fuzzed_server)
    everything = list(HealthCheck)
    with open_channel(fuzzed_server) as channel:

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=everything)
        @given(st.randoms(use_true_random=False))
        def check(rng):
            method, data = served_case(kind, rng)
            outcome = send_case(fuzzed_server, channel, method, data)
            assert not outcome.startswith("finding"), (outcome, method, data[:2000])
            if outcome == "connection closed":
                watch.check_processes()

        check()
    watch.check()


def test_every_case_is_made_once_and_kinds_alternate():
    made = blocks(50_000, seed=0)
    names = [name for _, part in made for name in part]
    assert len(set(names)) == len(names) == 50_000
    assert {kind for kind, _ in made[:5]} == set(SHARES)


def test_the_room_for_images_is_where_they_are_decoded():
    in_process = memory([[300.0], [310.0]])
    assert in_process == ({"tritonserver": [300, 310]}, {"tritonserver": 300 + ROOM_FOR_FILES + ROOM_FOR_IMAGES})
    held, most = memory([[200.0, 50.0, 60.0], [210.0, 70.0, 80.0]])
    assert held == {"tritonserver": [200, 210], "preprocess": [110, 150]}
    assert most == {"tritonserver": 200 + ROOM_FOR_FILES, "preprocess": 110 + ROOM_FOR_IMAGES}


def test_a_shape_that_claims_too_much_is_not_sent():
    for shape in ([1, 2**32], [2**20, 2**20]):
        assert bounded({"inputs": [{"shape": shape}]})["inputs"][0]["shape"] == [1, LARGEST]
    for content in ({"inputs": [{"shape": [1, 1]}]}, {"inputs": 3}, [], {"inputs": [{"shape": "x"}]}):
        assert bounded(content) == content


def test_the_judge(fuzzed_server):
    """The judge reports wrong answers and accepts right ones."""
    assert judge(False, "HTTP 500", "the model failed on 3").startswith("finding: HTTP 500: the model failed on N")
    assert judge(False, "HTTP 500", "failed to parse the request JSON buffer: x") == "HTTP 500 (tritonserver's own)"
    content, tensor = inference(good()["PNG"])
    header = dump(content)
    whole = message(header + tensor, {"Inference-Header-Content-Length": str(len(header))})
    assert is_whole(whole)
    assert not is_whole(whole[:-1])
    assert send_http(fuzzed_server.http_url, whole) == "HTTP 200"
    assert send_http(fuzzed_server.http_url, whole[:-1]) == "waits for the rest"


def test_a_restart_and_another_answer_are_seen(fuzzed_server):
    watch = Watch(fuzzed_server)
    watch.check()
    watch.answers["PNG"] = watch.answers["PNG"] + 1e-6
    with pytest.raises(AssertionError, match="PNG over grpc is answered otherwise"):
        watch.check()
    watch.processes.add(1)
    with pytest.raises(AssertionError, match="restarted"):
        watch.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_what_ends_tritonserver_is_mended_by_its_supervisor(digits_repository, name):
    row = try_input(digits_repository, name)
    ends = [event for event in row["events"] if event.startswith("tritonserver ended with code")]
    assert len(ends) == (0 if "refused" in name else 1), row

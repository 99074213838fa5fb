"""Models that the embedded server's pytorch backend does not load, and what it says of each."""

import pytest
import torch_models as models
from torch_models import write

from server import TritonServer
from server.errors import StartError

pytestmark = pytest.mark.server


def test_what_stops_the_load(tmp_path):
    """One repository has all of these errors: the server names each of them."""
    pair, picky = models.SumDifference(), models.Picky()
    write(tmp_path, "too_few", pair, ["a"], ["s"])
    write(tmp_path, "no_input", models.Constant(), [], ["y"])
    write(tmp_path, "one_position", pair, ["x__0", "y__0"], ["s"])
    write(tmp_path, "no_position", pair, ["x__0", "y__2"], ["s"])
    write(tmp_path, "one_output", pair, ["a", "b"], ["s__0", "d__0"])
    write(tmp_path, "strings", pair, ["a:STRING", "b"], ["s"])
    write(tmp_path, "flag", picky, ["x"], ["y"], INFERENCE_MODE="yes")
    write(tmp_path, "count", picky, ["x"], ["y"], INTRA_OP_THREAD_COUNT="0")
    write(tmp_path, "word", picky, ["x"], ["y"], INTER_OP_THREAD_COUNT="two")
    log = tmp_path / "server.log"
    with pytest.raises(StartError), TritonServer(tmp_path, log_file=log):
        pass
    message = log.read_text()
    for expected in (
        "the config has 1 inputs, forward() takes 2: [a, b]",
        "the config has no input to take the batch's size from: write max_batch_size: 0",
        "input 'x__0' and another both mean position 0",
        "input 'y__2' means position 2, forward() has 2",
        "output 's__0' and another both mean position 0",
        "input 'a' has data_type TYPE_STRING",
        'parameter INFERENCE_MODE is "yes"',
        'parameter INTRA_OP_THREAD_COUNT is "0"',
        'parameter INTER_OP_THREAD_COUNT is "two"',
    ):
        assert expected in message


def test_a_library_that_is_missing_stops_the_load(tmp_path, monkeypatch):
    write(tmp_path / "models", "one", models.Picky(), ["x"], ["y"])
    log = tmp_path / "server.log"
    monkeypatch.setattr("server.runtime.find_library", lambda *_: tmp_path / "none.so")
    with pytest.raises(StartError), TritonServer(tmp_path / "models", log_file=log):
        pass
    assert f"WIDEFIELD_LIBRARY names {tmp_path / 'none.so'}, which is missing" in log.read_text()

"""benchmarks.overload: what a load is compared with, which turn is told, and that wrong answers count for nothing."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.overload import closed_loop, of_peak, open_loop
from client import Prediction

RIGHT = np.array([0.1, 0.6, 0.3], np.float32)
WRONG = (RIGHT * np.float32(1.03), np.full(3, np.nan), RIGHT[:2])


def test_each_turn_is_compared_with_its_own_closed_loops():
    rates = (10.0, 18.0, 12.0, 5.0)
    rows = [
        {"load": 2.0, "goodput_per_s": rate, "sent": number, "outcomes": {"late": number}}
        for number, rate in enumerate(rates)
    ]
    told = of_peak(rows, [10.0, 20.0, 10.0, 10.0])
    assert told["goodput_of_peak_each"] == [1.0, 0.9, 1.2, 0.5]
    assert told["goodput_of_peak"] == 0.9  # the lower one of the two in the middle
    assert told["sent"] == 1  # the figures of that very turn
    assert told["outcomes_each"] == [{"late": number} for number in range(4)]  # what became of the others' requests


@pytest.fixture
def served():
    """Answers, the last again and again, of a server; its address."""
    answers = []

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request, context):  # noqa: N802 - the protocol's name
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            return service_pb2.ModelInferResponse(raw_output_contents=[answer.astype(np.float32).tobytes()])

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield answers, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_wrong_answer_is_not_served_in_time(served):
    answers, url = served
    answers += [*WRONG, RIGHT * np.float32(1.001)]  # batches sum in another order
    found = open_loop(url, b"image", RIGHT, 100.0, 0.3, 5.0)
    assert found["outcomes"] == {"in time": found["sent"] - len(WRONG), "wrong": len(WRONG)}
    assert found["goodput_per_s"] == pytest.approx((found["sent"] - len(WRONG)) / 0.3, rel=0.5)


def test_the_closed_loop_counts_no_wrong_answer(monkeypatch):
    best = Prediction("1", 1, 0.601)
    served = SimpleNamespace(classify=lambda jpeg, top: [best])
    monkeypatch.setattr("client.Classifier", lambda *_, **__: nullcontext(served))
    assert closed_loop("", b"image", RIGHT, 2, 0.01)["images_per_s"] > 0
    for wrong, said in (
        (Prediction("1", 1, 0.62), r"class 1 has 0\.620000, not 0\.600000"),
        (Prediction("2", 2, 0.3), r"the best class is 1 with 0\.600000"),
    ):
        best = wrong
        with pytest.raises(SystemExit, match=f"2 callers: .*{said}"):
            closed_loop("", b"image", RIGHT, 2, 0.01)

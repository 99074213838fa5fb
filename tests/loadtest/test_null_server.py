"""The server that does nothing answers as the client wants it, over both protocols."""

import pytest

from client import Classifier
from loadtest.null_check import null_server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_null_server_answers(protocol: str) -> None:
    with null_server() as (http, grpc), Classifier(http if protocol == "http" else grpc, protocol) as classifier:
        answers = [classifier.classify(b"picture", top=3) for _ in range(2)]
    assert [[(p.label, p.index, p.probability) for p in answer] for answer in answers] == 2 * [[("null", 0, 1.0)]]

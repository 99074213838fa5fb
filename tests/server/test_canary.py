"""The canary inference against answers of every kind, and the log reader against real log lines."""

import contextlib
import http.server
import io
import json
import threading
import time

import pytest
from PIL import Image

from server import ReleaseError
from server.canary import (
    CanaryBusyError,
    CanaryError,
    canary_png,
    classify_canary,
    is_ready,
    success_count,
)
from server.log import failure_reasons, read_from
from server.management import Management


@contextlib.contextmanager
def answering(status, body, delay=0.0):
    """A server that gives one answer to everything and keeps what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers, self.rfile.read(int(self.headers.get("Content-Length", 0)))))
            time.sleep(delay)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

        def do_POST(self):
            self.do_GET()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_canary_is_a_picture():
    image = Image.open(io.BytesIO(canary_png()))
    image.load()
    assert (image.mode, image.size, image.getpixel((5, 5))) == ("RGB", (32, 32), (128, 128, 128))


def test_request():
    with answering(200, b'{"outputs": [{"name": "probabilities", "data": [1.0]}]}') as (address, asked):
        classify_canary(address, "classifier", 5)
    path, headers, body = asked[0]
    length = int(headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert path == "/v2/models/classifier/infer"
    assert tensor["parameters"]["binary_data_size"] == len(body) - length
    assert body.endswith(canary_png())


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b'{"error":"stub is not healthy"}', "HTTP 500.*not healthy"),
        (200, b"<html>", "not JSON"),
        (200, b'{"outputs": []}', "no output"),
        (200, b"[1]", "no output"),
        (200, b'{"outputs": [1]}', "no output"),
        (200, b'{"outputs": [{"name": "probabilities"}]}', "no output"),
        (200, b'{"outputs": [{"name": "probabilities", "data": [0.5, NaN]}]}', r"\[0.5, nan\]; the weights overflow"),
    ],
)
def test_bad_answers(status, body, message):
    with answering(status, body) as (address, _), pytest.raises(CanaryError, match=message):
        classify_canary(address, "classifier", 5)


@pytest.mark.parametrize("body", [b"[1]", b"3", b"{}", b'{"model_stats": [{"name": "classifier"}]}'])
def test_statistics_of_another_kind_of_server(body):
    with answering(200, body) as (address, _), pytest.raises(CanaryError, match="are not tritonserver's"):
        success_count(address, "classifier", 5)


@pytest.mark.parametrize("body", [b"[1]", b'[{"id": 1}]', b'[{"name": "backbone"}]', b"{}"])
def test_an_index_of_another_kind_of_server_names_no_version(body):
    with answering(200, body) as (address, _):
        assert Management(address, "token", 5).ready_versions("backbone") == []


def test_a_time_that_no_socket_can_wait():
    with answering(200, b"") as (address, _):
        assert is_ready(address, 1e12)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"", "refuses the token"),
        (403, b'{"error": "restricted"}', "refuses the token"),
        (400, b'{"error": "the store answered HTTP 403"}', "says: the store answered HTTP 403"),
        (500, b"HTTP 401 upstream", "says: .*HTTP 500: HTTP 401 upstream"),
        (400, b'{"error": "' + b"why " * 600 + b'because"}', "says: (why ){600}because$"),
        (400, b'{"error": "failed: ' + b"a shape\\n  <- HERE\\n; " * 60 + b';\\n"}', "says: failed: a shape <- HERE$"),
        (500, b"<html>" + b"x" * 600, "says: .*HTTP 500: <html>x{494}$"),
        (500, b'{"reason": "no memory"}', "says: .*no memory"),
        (400, b'{"error": "failed to run: y is Half; y is Half; y is Half; ;\\n"}', "says: failed to run: y is Half$"),
    ],
)
def test_a_token_is_refused_by_the_status_alone(status, body, message):
    with answering(status, body) as (address, _), pytest.raises(ReleaseError, match=message):
        Management(address, "token", 5).load("backbone")


def test_a_full_queue_is_perhaps_busy():
    with (
        answering(503, b"Exceeds maximum queue size") as (address, _),
        pytest.raises(CanaryBusyError, match="queue"),
    ):
        classify_canary(address, "classifier", 5)


def test_no_answer_in_time():
    with answering(200, b"{}", delay=1.0) as (address, _), pytest.raises(CanaryBusyError, match=r"in 0\.2 s"):
        classify_canary(address, "classifier", 0.2)


def test_nobody_there():
    with pytest.raises(CanaryError, match="ConnectionRefusedError"):
        classify_canary("127.0.0.1:1", "classifier", 1)


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False)])
def test_ready(status, expected):
    with answering(status, b"") as (address, _):
        assert is_ready(address, 5) == expected


def test_success_count():
    counts = {"classifier": 3, "classifier_explained": 4, "backbone": 9, "classifiers": 9}
    versions = [{"name": name, "inference_stats": {"success": {"count": count}}} for name, count in counts.items()]
    with answering(200, json.dumps({"model_stats": versions}).encode()) as (address, _):
        assert success_count(address, "classifier", 5) == 7


FAILED = (
    "E1123 16:13:25.2 5455 model_lifecycle.cc:642] \"failed to load 'softmax' version 1: "
    'Internal: ValueError: it is \\"many\\"\\n\\nAt:\\n  /x/model.py(1): f"'
)


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (FAILED, ["'softmax': ValueError: it is \"many\""]),
        (f"{FAILED}\n{FAILED}\nE1123 1 1 a.cc:1] other", ["'softmax': ValueError: it is \"many\""]),
        (
            'E1123 16:13 5 server.cc:241] "CudaDriverHelper has not been initialized."\nE1123 1 5 x.cc:1] "real"',
            ["real"],
        ),
        ('2026-11-27T15:00:00Z W 1 memory.cc:238] "failed to allocate pinned system memory, falling back to"', []),
        ("error: creating server: Internal - failed to load all models", ["failed to load all models"]),
        (
            "/x/bin/tritonserver: unrecognized option '--sing'\nUsage: x\n\tDefault is 0.",
            ["unrecognized option '--sing'"],
        ),
        (
            "[libprotobuf ERROR /x/y.cc:337] Error parsing text-format inference.ModelConfig: 8:18: Expected"
            ' ":", found ""a"".\n2026-11-27T15:00:00Z E 1 a.cc:9] "failed to read text proto from /m/config.pbtxt"\n'
            '2026-11-27T15:00:00Z E 1 a.cc:7] "ensemble classifier contains models that are not available"',
            [
                "failed to read text proto from /m/config.pbtxt",
                'line 8, column 18: Expected ":", found ""a"".',
                "ensemble classifier contains models that are not available",
            ],
        ),
        (
            "2026-11-30T15:00:00Z E 1 a.cc:642] \"failed to load 'm' version 1: Invalid argument: failed to run "
            "warmup sample 'b1': output 'y' is Half; output 'y' is Half; output 'y' is Short; \"",
            ["'m': failed to run warmup sample 'b1': output 'y' is Half; output 'y' is Short"],
        ),
        ("Signal (11) received.\n 0# 0x0000557D in /bin/tritonserver\n11# main in /bin/a\n", ["Signal (11) received."]),
        ("bash: tritonserver: killed\n| table |\nI1123 fine\n\n", ["bash: tritonserver: killed"]),
        ("", []),
    ],
)
def test_failure_reasons(text, reasons):
    assert failure_reasons(text) == reasons


def test_at_most_three_reasons():
    assert len(failure_reasons("\n".join(f'E1123 1 1 x.cc:1] "reason {n}"' for n in range(9)))) == 3


def test_read_from(tmp_path):
    (tmp_path / "log").write_bytes(b"before\nafter \xff")
    assert read_from(tmp_path / "log", 7) == "after \ufffd"
    assert read_from(tmp_path / "none", 0) == ""


@pytest.mark.parametrize("address", ["localhost:8000/v2", "a..b:8000"])
def test_what_is_no_address_is_one_line(address):
    with pytest.raises(ReleaseError, match=rf"no server answers over HTTP at {address} \(.*\): start it, or correct"):
        Management(address, "token", 1).load("backbone")

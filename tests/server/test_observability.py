"""What an operator sees of the real server: request ids in log and traces, words of failures, numbers of panels."""

import concurrent.futures
import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import yaml
from manifests import DEPLOY, RULES, queries
from tritonclient.utils import InferenceServerException

from benchmarks.programs import find_program, missing
from server import PortInUseError, TritonServer
from server.endpoints import free_ports

pytestmark = pytest.mark.server
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
LOG_LINE = re.compile(re.search(r"^    (\^\(\?P<time>.*)$", OPERATIONS, re.MULTILINE).group(1))


def messages_of(lines):
    """tritonserver's threads may end two records with the second one's newline: a line is cut where one begins."""
    records = [record for line in lines for record in re.split(r'(?<=")(?=\d{4}-\d\d-\d\dT)', line)]
    return [json.loads(match["message"]) for match in map(LOG_LINE.match, records) if match and match["message"]]


def test_two_records_on_a_line():
    line = '2026-11-26T16:43:22Z I 6592 a.cc:1] "one"2026-11-26T16:43:22Z I 6592 b.cc:2] "two"'
    assert messages_of([line, "", "no record"]) == ["one", "two"]


def infer(server, protocol, image, request_id="", model="classifier", timeout=None, batch=1):
    module, url = (triton_grpc, server.grpc_url) if protocol == "grpc" else (triton_http, server.http_url)
    tensor = module.InferInput("image", [batch, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]] * batch, dtype=np.object_))
    with module.InferenceServerClient(url) as client:
        return client.infer(model, [tensor], request_id=request_id, timeout=timeout)


def manage(server, path, body, token="secret"):
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"widefield-management": token})
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.fixture(scope="module")
def observed(repository, encode, tmp_path_factory):
    """(all lines of the log, those while verbose, events of the trace) of a server that has ended."""
    folder = tmp_path_factory.mktemp("observed")
    log, trace = folder / "log", folder / "trace.json"
    options = [f"--trace-config=triton,file={trace}", "--trace-config=rate=1"]
    options += ["--trace-config=level=TIMESTAMPS"]
    with TritonServer(repository, log_file=log, management_token="secret", tritonserver_args=options) as server:
        assert manage(server, "/v2/logging", {"log_verbose_level": 1}, "guess")[0] == 403
        assert manage(server, "/v2/logging", {"log_verbose_level": 1})[0] == 200
        begin = log.stat().st_size
        for protocol in ("grpc", "http"):
            infer(server, protocol, encode("red"), f"order-{protocol}")
            infer(server, protocol, encode("red"), f"evil-{protocol}\nE forged line")
            with pytest.raises(InferenceServerException):
                infer(server, protocol, b"no image", f"bad-{protocol}")
        time.sleep(0.3)
        manage(server, "/v2/logging", {"log_verbose_level": 0})
        end = log.stat().st_size
    events = json.loads(trace.read_text(), strict=False)  # ids are not escaped in it
    return log.read_text().splitlines(), log.read_bytes()[begin:end].decode().splitlines(), events


def test_every_line_is_a_record_or_one_of_those_the_page_names(observed):
    lines, *_ = observed
    records = [record for line in lines for record in re.split(r'(?<=")(?=\d{4}-\d\d-\d\dT)', line)]
    others = [record for record in records if not LOG_LINE.match(record)]
    assert [line for line in others if not re.match(r"[+|]|$", line)] == ["Signal (15) received."]
    assert any(line.startswith("| classifier ") for line in others)
    assert any(match["message"] == "" for match in map(LOG_LINE.match, records) if match)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_log_lines_carry_the_request_id(observed, protocol):
    _, lines, _ = observed
    messages = messages_of(lines)
    for name, steps in ((f"order-{protocol}", 4), (f"bad-{protocol}", 2)):  # the ensemble and what was reached
        assert len([each for each in messages if each.startswith(f"[request id: {name}] prepared")]) == steps


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_request_id_cannot_forge_a_line(observed, protocol):
    _, lines, _ = observed
    messages = messages_of(lines)
    assert any(f"evil-{protocol}\nE forged line" in message for message in messages)
    assert not any(line.startswith("E forged") for line in lines)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_traces_carry_the_request_id_and_the_times(observed, protocol):
    *_, events = observed
    (first,) = [each for each in events if each.get("request_id") == f"order-{protocol}" and "parent_id" not in each]
    assert first["model_name"] == "classifier"
    steps = {event["id"] for event in events if event.get("parent_id") == first["id"]}
    assert {each["model_name"] for each in events if each["id"] in steps and "model_name" in each} == {
        "preprocess",
        "backbone",
        "softmax",
    }
    stamps = {stamp["name"] for each in events if each["id"] in steps for stamp in each.get("timestamps", [])}
    assert {"QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"} <= stamps


@pytest.mark.slow
def test_opentelemetry(repository, encode):
    """Spans reach a collector by OTLP over HTTP, JSON, under the sender's trace."""
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    options = ["mode=opentelemetry", f"opentelemetry,url={url}", "opentelemetry,resource=service.name=widefield"]
    options = [f"--trace-config={option}" for option in (*options, "rate=1", "level=TIMESTAMPS")]
    with TritonServer(repository, tritonserver_args=options) as server:
        tensor = triton_http.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[encode("red")]], dtype=np.object_))
        parent = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        with triton_http.InferenceServerClient(server.http_url) as client:
            client.infer("classifier", [tensor], headers=parent)
    collector.shutdown()
    spans = [
        span
        for message in received
        for resource in message["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    own = {span["name"] for span in spans if span["traceId"] == "ab" * 16}
    assert {"InferRequest", "classifier", "preprocess", "backbone", "softmax", "compute"} <= own


@pytest.mark.skipif(find_program("prometheus") is None, reason=missing("prometheus"))
def test_prometheus_answers_every_panel_and_loads_every_rule(server_of_processes, classify, encode, tmp_path):
    """The real Prometheus with the deployed rules, on the real server's metrics; panels of a GPU are empty here."""
    (port,) = free_ports(["127.0.0.1"])
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [server_of_processes.metrics_url]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(RULES, tmp_path)
    command = [find_program("prometheus"), f"--config.file={tmp_path}/prometheus.yml"]
    command += [f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    wanted = {place: query for place, query in queries().items() if place.startswith("panel") and "GPU" not in place}

    def ask(path, **parameters):
        address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.load(urllib.request.urlopen(address, timeout=10))["data"]

    def has_data(place):
        """Whether the panel has data; one of refused images must be above 0."""
        rows = ask("query", query=wanted[place])["result"]
        return bool(rows) and (place != "panel Requests failed, by step and reason B" or float(rows[0]["value"][1]) > 0)

    with subprocess.Popen(command) as prometheus:
        try:
            empty, end = set(wanted), time.monotonic() + 60
            while empty:
                assert time.monotonic() < end, f"no data for {sorted(empty)}"
                classify(server_of_processes, [encode("red")])
                with contextlib.suppress(InferenceServerException):
                    classify(server_of_processes, [b"no image"])
                with contextlib.suppress(OSError):
                    empty = {place for place in empty if not has_data(place)}
                time.sleep(0.5)
            rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
            assert not any(rule.get("lastError") for rule in rules)
        finally:
            prometheus.terminate()


def signature(text):
    """Assert that docs/operations.md has the message and the server prints it."""
    assert f"`{text}`" in OPERATIONS, text
    return re.escape(text)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_signatures_of_refusals(server, encode, protocol):
    for text, arguments in {
        "not a JPEG, PNG, WebP, BMP or GIF image": {"image": b"text"},
        "the file is truncated or damaged, save it again": {"image": encode("red")[:70]},
        "Request for unknown model": {"image": encode("red"), "model": "nobody"},
        "batch-size must be <= 16": {"image": encode("red"), "batch": 17},
    }.items():
        with pytest.raises(InferenceServerException, match=signature(text)):
            infer(server, protocol, **arguments)


def test_signature_of_a_closed_interface(server):
    status, text = manage(server, "/v2/repository/index", {}, "guess")
    assert status == 403
    assert re.search(signature("This API is restricted, expecting header"), text)


def test_signature_of_an_expired_wait(digits_server, encode):
    """Requests that may wait a microsecond, while others are ahead of them: preprocess rejects some itself."""

    def rejected():
        text = urllib.request.urlopen(f"http://{digits_server.metrics_url}/metrics", timeout=10).read().decode()
        series = r'^nv_inference_request_failure\{model="preprocess",reason="REJECTED",.*\} (\S+)$'
        return sum(map(float, re.findall(series, text, re.MULTILINE)))

    before = rejected()

    def ask(number):
        try:
            infer(digits_server, "grpc", encode("red"), timeout=1)
        except InferenceServerException as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(64)))
    assert any(re.search(signature("Request timeout expired"), answer) for answer in answers)
    assert rejected() > before


@pytest.mark.slow
def test_signatures_of_restarts(repository_of_processes):
    """A dead Python process; and a signal that ends tritonserver, as its own crash would."""
    import psutil

    events: list[str] = []
    with TritonServer(repository_of_processes, probe_interval=1, on_event=events.append) as server:
        for kill, text in (
            (-1, r"backend process \d+ died; restarting"),
            (0, r"tritonserver ended with code 139; restarting"),
        ):
            processes = psutil.Process(server._process.guard.pid).children(recursive=True)
            os.kill(processes[kill].pid, signal.SIGKILL if kill else signal.SIGSEGV)
            end = time.monotonic() + 60
            while not (any(re.match(text, event) for event in events) and server.ready):
                assert time.monotonic() < end, events
                time.sleep(0.1)
    for text in ("backend process", "died; restarting", "tritonserver ended with code 139; restarting", events[-1]):
        assert text in OPERATIONS


def test_signature_of_a_port_in_use(repository, server):
    port = int(server.http_url.rpartition(":")[2])
    with pytest.raises(PortInUseError) as refused:
        TritonServer(repository, http_port=port).start()
    assert re.search(signature("is in use"), str(refused.value)), refused.value

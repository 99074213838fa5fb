"""One tree of errors, and from every status of either protocol to a leaf of it."""

import pickle

import pytest

import client
from client import _errors
from client._errors import error_from_status
from client._wire_http import refusal

UNKNOWN_MODEL = "Request for unknown model: 'm' is not found"

STATUSES = [
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", "DeadlineExceededError"),
    ("UNAVAILABLE", "in ensemble 'classifier', Request timeout expired", "QueueFullError"),
    ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", "QueueFullError"),
    ("RESOURCE_EXHAUSTED", "too many requests", "QueueFullError"),
    ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", "InvalidImageError"),
    ("UNAVAILABLE", "Connection refused", "ConnectionFailedError"),
    ("UNAVAILABLE", "Request for unknown model: 'm' has no available versions", "ServerNotReadyError"),
    ("NOT_READY", "", "ServerNotReadyError"),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNAVAILABLE: Socket closed",
        "ConnectionFailedError",
    ),
    ("CANCELLED", "Channel closed!", "ConnectionFailedError"),
    ("NOT_FOUND", UNKNOWN_MODEL, "ModelNotFoundError"),
    ("NOT_FOUND", "<html>nginx</html>", "ProtocolError"),
    ("INVALID_ARGUMENT", "in ensemble 'm', not a JPEG image", "InvalidImageError"),
    ("INVALID_ARGUMENT", "unexpected inference output 'probabilities' for model 'm'", "ProtocolError"),
    ("INVALID_ARGUMENT", "[request id: 3] unexpected shape for input 'image' for model 'm'", "ProtocolError"),
    ("INVALID_ARGUMENT", "in ensemble 'm', [request id: 3] expected 1 inputs but got 2", "ProtocolError"),
    ("INTERNAL", "Stub process 'm_0_0' is not healthy.", "InferenceError"),
    ("UNKNOWN", "", "InferenceError"),
    ("UNIMPLEMENTED", "Method not found!", "ProtocolError"),
    ("UNAUTHENTICATED", "missing api key", "ProtocolError"),
    ("HTTP 418", "teapot", "ProtocolError"),
]


@pytest.mark.parametrize(("status", "details", "name"), STATUSES)
def test_status_to_error(status: str, details: str, name: str) -> None:
    error = error_from_status(status, details, url="grpc://here:1", model="m", timeout=2.5)
    assert type(error).__name__ == name
    assert "m at grpc://here:1" in str(error)


def test_the_wait_in_the_queue_is_named() -> None:
    """The client itself limits the wait to a share of its timeout, which the caller can raise."""
    error = error_from_status("UNAVAILABLE", "Request timeout expired", url="grpc://a:1", model="m", timeout=2.5)
    assert "it waited there for an eighth of its 2.5 s, or for the server's own limit): raise the timeout" in str(error)


@pytest.mark.parametrize(
    ("url", "details", "remedy"),
    [
        ("grpc://a:1", "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame", "give --protocol http"),
        ("grpc://a:1", "last error: UNAVAILABLE: ipv4:127.0.0.1:8000: Socket closed", "HTTP, give --protocol http"),
        ("grpc://a:1", "last error: UNAVAILABLE: ipv4:127.0.0.1:8000: Socket closed", "TLS, give --tls"),
        ("grpcs://a:1", "Cannot check peer: missing selected ALPN property.", "give --protocol http"),
        ("grpcs://a:1", "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "renew its"),
        ("https://a:1", "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca", "): it wants a client's certificate"),
        ("https://a:1", "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert", "give --tls-certificate and --tls-key"),
        ("grpcs://a:1", "OPENSSL_internal:SSLV3_ALERT_BAD_CERTIFICATE", "give --tls-certificate and --tls-key"),
        ("grpcs://a:1", "Handshake read failed (Socket closed)", "leave out --tls"),
        ("https://a:1", "TLS/SSL connection has been closed (EOF) (_ssl.c:992)", "leave out --tls"),
        ("grpcs://a:1", "Unwrap failed (TSI_DATA_CORRUPTED)", "--tls-certificate and --tls-key"),
    ],
)
def test_a_connection_that_fails_names_the_option(url: str, details: str, remedy: str) -> None:
    assert remedy in str(error_from_status("UNAVAILABLE", details, url=url, model="m", timeout=1))


def test_a_server_that_is_not_there_is_started() -> None:
    message = str(error_from_status("UNAVAILABLE", "Connection refused", url="grpcs://a:1", model="m", timeout=1))
    assert "): start it, or check the address" in message
    assert "--tls" not in message


def test_words_are_cleaned_and_kept() -> None:
    details = "in ensemble 'm', [request id: <id_unknown>] not a JPEG image"
    error = error_from_status("INVALID_ARGUMENT", details, url="u", model="m", timeout=1)
    assert error.message == "the server refuses the image: not a JPEG image [m at u]"


def test_long_words_are_cut_to_a_line() -> None:
    details = "x" * 1000 + "\nAt:\n  model.py(15): execute"
    message = error_from_status("INTERNAL", details, url="u", model="m", timeout=1).message
    assert len(message) < 400
    assert "\n" not in message


def test_deadline_names_its_seconds_and_a_way_that_is_shut() -> None:
    message = str(error_from_status("DEADLINE_EXCEEDED", "", url="u", model="m", timeout=2.5))
    assert "within 2.5 s" in message
    assert "check the address and the firewalls" in message


def test_a_caller_that_is_refused_is_told_of_the_header() -> None:
    """A gateway's answer: gRPC itself makes these statuses of HTTP's 401 and 403."""
    where = {"url": "https://gate:443", "model": "m", "timeout": 1.0}
    for status, code in (("UNAUTHENTICATED", 401), ("PERMISSION_DENIED", 403)):
        grpc_error = error_from_status(status, "no api key", **where)  # type: ignore[arg-type]
        http_error = refusal(code, b'{"error": "no api key"}', **where)  # type: ignore[arg-type]
        assert str(grpc_error) == str(http_error)
        assert "refuses the caller" in str(http_error)
        assert "with --header (in Python headers=)" in str(http_error)
        assert "Forbidden" in str(refusal(code, b"<h1>Forbidden</h1>", **where))  # type: ignore[arg-type]


def test_tree_is_complete_and_drawn() -> None:
    unavailable = client.ServerUnavailableError
    leaves = {*client.ClassifierError.__subclasses__(), *unavailable.__subclasses__()} - {unavailable}
    assert {leaf.__name__ for leaf in leaves} == {name for *_, name in STATUSES}
    for leaf in {*leaves, unavailable}:
        assert leaf.__name__ in client.__all__
        assert leaf.__name__ in str(_errors.__doc__)


def test_image_comes_first_and_survives_pickling() -> None:
    error = client.InvalidImageError("no such file")
    assert str(error) == "no such file"
    error.image = "cat.jpg"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is client.InvalidImageError
    assert (str(copy), copy.message, copy.image) == ("cat.jpg: no such file", "no such file", "cat.jpg")


def test_a_server_without_class_maps_says_how_to_build_one() -> None:
    words = {"url": "grpc://a:1", "timeout": 1.0}
    error = error_from_status("NOT_FOUND", UNKNOWN_MODEL, model="m_explained", **words)
    assert "build 'm' with --class-map" in str(error)
    assert "--class-map" not in str(error_from_status("NOT_FOUND", UNKNOWN_MODEL, model="m", **words))

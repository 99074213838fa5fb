"""Everything that can go wrong with a request, as one tree.

ClassifierError
├── InvalidImageError
├── ModelNotFoundError
├── ServerUnavailableError
│   ├── ConnectionFailedError
│   │   └── ConnectionBrokenError
│   └── ServerNotReadyError
├── QueueFullError
├── DeadlineExceededError
├── InferenceError
│   └── NotFiniteError
└── ProtocolError

A wrong argument (a malformed URL, ``top=0``) is a `ValueError`; a closed `Classifier` raises `RuntimeError`.
"""

import re


class ClassifierError(Exception):
    """Base class of these errors.

    Attributes:
        image: the picture's name, where one is to blame or was being sent; None otherwise.
        request_id: what the server's log calls the request; None where none was sent.
        attempts: how often it was sent.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.image: str | None = None
        self.request_id: str | None = None
        self.attempts = 0

    @property
    def message(self) -> str:
        """The problem and the remedy, without the picture's name."""
        return str(self.args[0])

    def __str__(self) -> str:
        return self.message if self.image is None else f"{self.image}: {self.message}"


class InvalidImageError(ClassifierError):
    """The picture is missing, empty, of a wrong type or size, or the server cannot decode it."""


class ModelNotFoundError(ClassifierError):
    """The server has no model of that name."""


class ServerUnavailableError(ClassifierError):
    """This server cannot serve for now; another one may."""


class ConnectionFailedError(ServerUnavailableError):
    """There is no connection, or it broke."""


class ConnectionBrokenError(ConnectionFailedError):
    """The connection broke before the answer: the server may have computed it, or crashed on this very request."""


class ServerNotReadyError(ServerUnavailableError):
    """The server answers that it, or the model, is not ready."""


class QueueFullError(ClassifierError):
    """The server refuses more work for now: try again later, or send fewer at a time."""


class DeadlineExceededError(ClassifierError):
    """No answer within the timeout, or within that of a proxy."""


class InferenceError(ClassifierError):
    """The server failed on a good request; its log says why."""


class NotFiniteError(InferenceError):
    """The server answered NaN or infinity for this picture, as it would again."""


class ProtocolError(ClassifierError):
    """The other side is not a classifier that this client understands."""


class RegionUnknownError(ProtocolError):
    """The server does not know this shared memory: it was restarted. Raised within the package only, as is the next."""


class RegionKnownError(ProtocolError):
    """The server knows this shared memory already: the connection broke before it could say so."""


# tritonserver's words for tensors that do not fit the model; any other INVALID_ARGUMENT is about the picture.
_MISFIT = re.compile(r"(unexpected |expected |inference input|failed to parse|unable to parse|missing )", re.IGNORECASE)
_NOT_READY = re.compile(r"not (at )?ready|no available versions|stopp|exiting", re.IGNORECASE)
EXPLAINED = "_explained"  # suffix of the model that also returns the class map
_NOISE = re.compile(r"\[request id: [^\]]*\] |in ensemble '[^']*', ")
_START = "start it, or check the address (tritonserver's own ports are 8001 for gRPC, 8000 for HTTP)"
_ENDED = "where the address is right, the server's log says why"
_GIVE_HTTP = "give --protocol http (in Python protocol=)"
_GIVE_TLS = "give --tls or --tls-root (in Python tls=)"
_GIVE_CERTIFICATE = (
    "give --tls-certificate and --tls-key (in Python tls=); one that is given must be valid, signed by an authority "
    "that the server trusts, and in a file with its intermediate certificates"
)
# gRPC's, Python's and aiohttp's words for a connection that was not made, and for one that was cut off
_REMEDIES = {
    r"expected settings frame|missing selected alpn": f"{_GIVE_HTTP}, or its gRPC port",
    r"hostname mismatch|address mismatch|hostname verification": "give an address that its certificate names",
    r"certificate has expired|certificate is not yet valid": "renew its certificate, or set this machine's clock",
    r"certificate.verify.failed": (
        "name the authority that signed its certificate with --tls-root (in Python tls=); where it is named, the "
        "server leaves out an intermediate certificate: put it into the server's file, or into --tls-root's"
    ),
    r"wrong.version.number": "it does not speak TLS: leave out --tls and the like (in Python tls=), grpcs:// or https://",
    r"alert.(certificate|bad.certificate|unsupported.certificate|unknown.ca)": (
        f"it wants a client's certificate: {_GIVE_CERTIFICATE}"
    ),
    # none: asyncio's word for a handshake that was cut off; closed: that of OpenSSL 3.0 through Python's ssl
    r"handshake read failed|unexpected.eof|\[none\]|connection has been closed \(eof\)": (
        f"{_START}; where it does not speak TLS, leave out --tls and the like (in Python tls=)"
    ),
}
CUT_OFF = "CUT_OFF"  # a status of our own: the connection broke after the request had been sent
_CUT_OFF = re.compile(r"socket closed|reset by peer|closed connection|disconnected|tsi_data_corrupted")


def error_from_status(status: str, details: str, *, url: str, model: str, timeout: float) -> ClassifierError:
    """The typed error for a gRPC status name (``"NOT_FOUND"``), ``"NOT_READY"`` or `CUT_OFF`, with its `details`."""
    details = shorten(_NOISE.sub("", details))
    kind, message = _classify(status, details, url, model, timeout)
    return kind(f"{message} [{model} at {url}]")


def shorten(words: str, limit: int = 300) -> str:
    """The first line of a server's message (it may be a traceback or an image), cut at `limit` characters."""
    line = words.strip().partition("\n")[0]
    return line if len(line) <= limit else f"{line[:limit]}..."


def _classify(status: str, details: str, url: str, model: str, timeout: float) -> tuple[type[ClassifierError], str]:
    lower = details.lower()
    if status == "DEADLINE_EXCEEDED":
        remedy = "raise the timeout or send fewer at a time; where none ever comes, check the address and the firewalls"
        return DeadlineExceededError, f"no answer within {timeout:.3g} s: {remedy}"
    if "maximum queue size" in lower:
        return QueueFullError, "the server's queue is too long: try again later or send fewer at a time"
    if "request timeout expired" in lower:
        waited = f"it waited there for an eighth of its {timeout:.3g} s, or for the server's own limit"
        remedy = "raise the timeout, try again later or send fewer at a time"
        return QueueFullError, f"the server's queue is too long ({waited}): {remedy}"
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in lower:
        return InvalidImageError, f"the server takes no request that large ({details}): send a smaller file"
    if status == "RESOURCE_EXHAUSTED":
        return QueueFullError, f"the server is overloaded ({details}): try again later"
    if "is restricted, expecting" in lower:
        remedy = "start the server with --shared-memory-token-file, and give the client what stands in it"
        return ProtocolError, f"the server has another token, or none ({details}): {remedy}"
    if "unable to open shared memory" in lower:
        remedy = "they need one host, one /dev/shm and one user; else leave the client's shared-memory token out"
        return ProtocolError, f"the server cannot open the client's memory ({details}): {remedy}"
    if "unable to find shared memory" in lower:
        remedy = "give each server's own address, no balancer's, or leave the client's shared-memory token out"
        return RegionUnknownError, f"the server was not shown this memory ({details}): {remedy}"
    if "already in manager" in lower:
        return RegionKnownError, f"the server was shown this memory before ({details}): check the address"
    if status == "NOT_READY" or (status in ("UNAVAILABLE", CUT_OFF) and _NOT_READY.search(details)):
        return ServerNotReadyError, f"the server is not ready ({details}): wait until it is, or see its log"
    if status == CUT_OFF:
        remedy = _connecting(lower, url, _ENDED)
        return ConnectionBrokenError, f"the connection broke before the answer ({details}): {remedy}"
    if status in ("UNAVAILABLE", "CANCELLED"):
        return ConnectionFailedError, f"the server cannot be reached ({details}): {_connecting(lower, url)}"
    if status == "NOT_FOUND" and "unknown model" in lower:
        remedy = "check the name, or the server's repository"
        if model.endswith(EXPLAINED):
            remedy = f"build {model.removesuffix(EXPLAINED)!r} with --class-map, or {remedy}"
        return ModelNotFoundError, f"the server has no model {model!r}: {remedy}"
    if status == "INVALID_ARGUMENT" and not _MISFIT.match(details):
        return InvalidImageError, f"the server refuses the image: {details}"
    if status in ("INTERNAL", "UNKNOWN", "ABORTED", "DATA_LOSS"):
        return InferenceError, f"the server failed ({details}): its log says why"
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        remedy = "give the key that it wants with --header (in Python headers=)"
        return ProtocolError, f"the server, or a gateway before it, refuses the caller, {status} ({details}): {remedy}"
    return ProtocolError, f"the server refuses the request, {status} ({details}): check the address and the model"


def _connecting(details: str, url: str, start: str = _START) -> str:
    """The remedy for a connection that failed or broke; `start` is the general one."""
    for words, remedy in _REMEDIES.items():
        if re.search(words, details):
            return remedy
    if not _CUT_OFF.search(details):
        return start
    return f"{start}; {perhaps_wanted(url)}"


def perhaps_wanted(url: str) -> str:
    """The remedies for a server that may expect another protocol, TLS or a client's certificate."""
    if url.startswith(("grpcs://", "https://")):
        return f"where it wants a client's certificate, {_GIVE_CERTIFICATE}"
    speaks_http = f"where it speaks HTTP, {_GIVE_HTTP}; " if url.startswith("grpc://") else ""
    return f"{speaks_http}where it speaks TLS, {_GIVE_TLS}"

"""Hostile HTTP requests to tritonserver's KServe v2 interface, as the bytes that go over the socket."""

import copy
import gzip
import math
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from benchmarks.fuzz.http_message import binary, dump, inference, message
from benchmarks.fuzz.mutations import flip_bits, mutate

# Far below the limits at which tritonserver 2.51.0 ends or leaks (lethal.py): chunks, levels of JSON, and the elements
# that a shape claims.
MOST_CHUNKS, DEEPEST, LARGEST = 500, 5000, 2**20
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 16, 17, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 1e308, -0.5, "", "image",
    "BYTES", "FP32", "FP16", "UINT8", "INT64", "NOPE", "\u0000", "\ud800", "é" * 40, "a" * 5000, "../../etc/passwd",
    "%n%s", [], {}, [[]], [1], [0], [-1], [1, 1], [1, 1, 1], [0, 1], [17, 1], [LARGEST], [1, LARGEST], [-1, -1],
    [1] * 2000, ["a"], [None], [{}], {"binary_data_size": 5}, {"classification": 3}, "true", "9999999999999999999999",
)  # fmt: skip
PARAMETERS = (
    "binary_data_size", "classification", "binary_data", "binary_data_output", "timeout", "priority", "sequence_id",
    "sequence_start", "sequence_end", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset",
    "triton_enable_empty_final_response", "headers", "max_tokens", "",
)  # fmt: skip
PATHS = (
    "", "/", "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/classifier",
    "/v2/models/classifier/ready", "/v2/models/classifier/stats", "/v2/models/stats", "/v2/models/classifier/config",
    "/v2/models/classifier/versions/1/infer", "/v2/models/classifier/versions/99999999999999999999/infer",
    "/v2/models/classifier/versions/-1/infer", "/v2/models//infer", "/v2/models/%00/infer", "/v2/models/%2e%2e/infer",
    "/v2/models/classifier/generate", "/v2/models/classifier/generate_stream", "/v2/models/backbone/infer",
    "/v2/models/softmax/infer", "/v2/models/preprocess/infer", "/v2/repository/index", "/v2/logging",
    "/v2/trace/setting", "/v2/systemsharedmemory/status", "/v2/repository/models/classifier/unload",
    "/v2/systemsharedmemory/region/x/register", "/v2/cudasharedmemory/region/x/register", "/metrics",
    "/v2/models/" + "a" * 3000,
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW", "get", "\x00", "")


def request(rng: random.Random, images: list[bytes]) -> bytes:
    return rng.choice(KINDS)(rng, images)


def mutate_json(rng: random.Random, content: Any) -> Any:
    """Replace, remove, duplicate or wrap one node."""
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node.keys()) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            visit(node[key])

    visit(content)
    parent, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.extend([parent[key]] * rng.choice((1, 3, 50)))
    elif action == 2:
        parent[key] = [parent[key]]
    elif action == 3 and isinstance(parent, dict):
        where = parent.setdefault("parameters", {}) if "name" in parent or "inputs" in parent else parent
        if isinstance(where, dict):
            where[rng.choice(PARAMETERS)] = rng.choice(HOSTILE)
    else:
        parent[key] = rng.choice(HOSTILE)
    return content


def bounded(content: Any) -> Any:
    """The request, without any shape for which tritonserver would allocate gigabytes."""
    inputs = content.get("inputs") if isinstance(content, dict) else None
    for each in inputs if isinstance(inputs, list) else ():
        shape = each.get("shape") if isinstance(each, dict) else None
        if isinstance(shape, list) and all(isinstance(side, int) for side in shape) and math.prod(shape) > LARGEST:
            each["shape"] = [1, LARGEST]
    return content


def _base(rng: random.Random, images: list[bytes]) -> tuple[dict[str, Any], bytes]:
    image = rng.choice(images)
    output: dict[str, Any] = {"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}}
    more = {"id": "a", "outputs": [output], "parameters": {"timeout": 1000000, "priority": 0}}
    return inference(image if rng.random() < 0.5 else mutate(rng, image, images), **rng.choice(({}, more)))


def json_fields(rng: random.Random, images: list[bytes]) -> bytes:
    content, tensor = _base(rng, images)
    for _ in range(rng.choice((1, 1, 2, 5))):
        content = mutate_json(rng, content) if content else content
    return binary(bounded(content), tensor)


def json_only(rng: random.Random, images: list[bytes]) -> bytes:
    """Tensors of the other steps as JSON numbers, valid or not, without the binary extension."""
    name, shape, kind, size = rng.choice(
        (("logits", [1, 1000], "FP32", 1000), ("pixels", [1, 32, 32, 3], "UINT8", 3072), ("image", [1, 1], "BYTES", 1))
    )
    data: list[Any] = (
        ["text"] if kind == "BYTES" else [rng.randrange(256)] * rng.choice((size, size, size - 1, size + 1, 0))
    )
    content: Any = {"inputs": [{"name": name, "shape": shape, "datatype": kind, "data": data}]}
    if rng.random() < 0.7:
        content = mutate_json(rng, content)
    model = {"logits": "softmax", "pixels": "backbone", "image": "classifier"}[name]
    return message(dump(bounded(content)), path=f"/v2/models/{model}/infer")


def json_bytes(rng: random.Random, images: list[bytes]) -> bytes:
    """Broken JSON: bits flipped, cut, bad UTF-8, deep."""
    content, tensor = _base(rng, images)
    text = rng.choice(
        (
            flip_bits(rng, dump(content), []),
            dump(content)[: rng.randrange(200)],
            dump(content).replace(b"image", rng.randbytes(5)),
            rng.choice((b"[", b'{"a":', b'{"inputs":[')) * rng.randrange(1, DEEPEST),
            b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}",
            b'{"inputs":[' + b"1e9," * 900 + b"NaN, Infinity, 1e999999]}",
            b"\xef\xbb\xbf" + dump(content),
        )
    )
    return message(text + tensor, {"Inference-Header-Content-Length": str(len(text))})


def lengths(rng: random.Random, images: list[bytes]) -> bytes:
    """Wrong lengths of the header, the tensor, the element in it or the body."""
    content, tensor = inference(rng.choice(images))
    header = len(dump(content))
    lie = rng.choice(
        ("0", "-1", "1", str(header - 1), str(header + 1), str(header + len(tensor) + 1), "2147483648", "4294967296",
         "18446744073709551616", "abc", " ", "1e3", "0x10", str(header) + " ", "+" + str(header))
    )  # fmt: skip
    action = rng.randrange(4)
    if action == 0:
        return binary(content, tensor, header_length=lie)
    if action == 1:
        size = len(tensor)
        numbers = (0, 1, 3, 4, 5, -1, size - 1, size + 1, 2**31, 2**32 + size, 2**63, 2**64 - 1, "4", 1.5)
        content["inputs"][0]["parameters"]["binary_data_size"] = rng.choice(numbers)
        return binary(content, tensor)
    if action == 2:
        size = rng.choice((0, 1, len(tensor) - 3, len(tensor) * 2, 2**31, 2**32 - 1, 2**32 - 4))
        return binary(content, struct.pack("<I", size) + tensor[4:])
    return binary(content, tensor, **{"Content-Length": lie})


def several(rng: random.Random, images: list[bytes]) -> bytes:
    """Duplicate, unknown or many inputs; inconsistent batches."""
    content, tensor = inference(rng.choice(images))
    count = rng.choice((2, 3, 16, 17, 200))
    if rng.random() < 0.5:
        content["inputs"] = content["inputs"] * count
        return binary(content, tensor * rng.choice((1, count)))
    content["inputs"][0]["shape"] = rng.choice(([count, 1], [1, count], [count], [count, 1, 1]))
    content["inputs"][0]["parameters"]["binary_data_size"] = len(tensor) * count
    return binary(content, tensor * count)


def headers(rng: random.Random, images: list[bytes]) -> bytes:
    content, tensor = inference(rng.choice(images))
    body, length = dump(content) + tensor, ("Inference-Header-Content-Length", str(len(dump(content))))
    extra = rng.choice(
        (
            [length, length],
            [length, ("Inference-Header-Content-Length", "7")],
            [length, ("Content-Length", str(len(body))), ("Content-Length", "5")],
            [length, ("Content-Length", str(len(body))), ("Transfer-Encoding", "chunked")],
            [length, *[(f"X-{i}", "v") for i in range(rng.choice((100, 1000)))]],
            [length, ("X-Long", "a" * rng.choice((8_000, 70_000, 300_000)))],
            [length, ("X-Bytes\x01", "\x7f\xff")],
            [length, ("", "empty")],
            [length, ("Content-Type", "application/json; charset=\x00")],
            [length, ("Expect", rng.choice(("100-continue", "nonsense")))],
            [length, ("Upgrade", "h2c"), ("Connection", "Upgrade, HTTP2-Settings"), ("HTTP2-Settings", "AAMAAABk")],
            [length, ("Accept-Encoding", rng.choice(("gzip", "deflate", "br;q=2", "*")))],
            [length, ("widefield-management", "guess")],
            [length, ("Host", "other\r\nX-Injected: yes")],
        )
    )
    return message(body, extra)


def encodings(rng: random.Random, images: list[bytes]) -> bytes:
    """Compressed bodies, and unknown encodings. tritonserver 2.51.0 leaks what it unpacks of refused bodies."""
    content, tensor = inference(rng.choice(images))
    body = dump(content) + tensor
    packed, encoding = rng.choice(
        (
            (gzip.compress(body), "gzip"),
            (zlib.compress(body), "deflate"),
            (gzip.compress(body), rng.choice(("br", "gzip, gzip", "compress", "GZIP", "x"))),
            (body, rng.choice(("identity", "", "é"))),
        )
    )
    return message(packed, {"Inference-Header-Content-Length": str(len(dump(content))), "Content-Encoding": encoding})


def chunks(rng: random.Random, images: list[bytes]) -> bytes:
    content, tensor = inference(rng.choice(images))
    body, length = dump(content) + tensor, str(len(dump(content)))
    step = max(1, len(body) // rng.choice((1, 3, MOST_CHUNKS)))
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    text = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    text = rng.choice(
        (
            text,
            flip_bits(rng, text, []),
            text[: rng.randrange(len(text))],
            rng.choice((b"-1", b"FFFFFFFFFFFFFFFFF", b"7fffffffffffffff", b"zz", b"", b"0x5", b"5;a=" + b"b" * 5000))
            + b"\r\n"
            + text,
            text + b"X-Trailer: a\r\n\r\n",
        )
    )
    encoding = rng.choice(("chunked", "chunked", "gzip, chunked"))
    return message(text, {"Inference-Header-Content-Length": length, "Transfer-Encoding": encoding})


def paths(rng: random.Random, images: list[bytes]) -> bytes:
    path = rng.choice(PATHS) + rng.choice(("", "", "?a=b", "?" + "q" * 3000, "/", "//", "%ff", "\u00e9", "#f"))
    content, tensor = inference(rng.choice(images))
    body = rng.choice((b"", b"{}", b"[]", b"null", b'{"unload_dependents":1}', dump(content) + tensor))
    return message(body, method=rng.choice((*METHODS, "GET", "POST", "POST")), path=path)


def raw_bytes(rng: random.Random, images: list[bytes]) -> bytes:
    """A valid request with bits flipped in its first lines, or bytes that are not HTTP."""
    content, tensor = inference(rng.choice(images[:3]))
    whole = binary(content, tensor)
    if rng.random() < 0.2:
        http2, tls = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"
        return rng.choice((rng.randbytes(200), http2, tls, b"\r\n" * 100, b"GET / HTTP/9.9\r\n\r\n"))
    head = rng.randrange(1, 300)
    return flip_bits(rng, whole[:head], []) + whole[head:]


KINDS: tuple[Callable[[random.Random, list[bytes]], bytes], ...] = (
    json_fields, json_fields, json_only, json_bytes, lengths, several, headers, encodings, chunks, paths, raw_bytes,
)  # fmt: skip

"""Hostile gRPC: ModelInferRequest with wrong fields, its bytes changed, and the other calls with hostile names."""

import random
import struct
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from benchmarks.fuzz.mutations import flip_bits, mutate

SERVICE = "/inference.GRPCInferenceService/"
SHAPES: tuple[list[int], ...] = (
    [], [0], [1], [-1], [0, 1], [1, 0], [1, 1, 1], [2, 1], [16, 1], [17, 1], [1, 2], [-1, 1], [1, -1], [2**62, 4],
    [2**63 - 1, 2], [2**32, 2**32], [1] * 1000, [1, 32, 32, 3], [0, 32, 32, 3], [1, 1000], [-1, 32, -32, 3], [2**31, 1],
)  # fmt: skip
TYPES = ("BYTES", "FP32", "FP16", "BF16", "UINT8", "INT64", "BOOL", "", "nope", "bytes", "é", "BYTES\0", "A" * 5000)
NAMES = ("", "image", "pixels", "logits", "probabilities", "a" * 5000, "é", "\0", "image\0", "../x", "%s%n")
MODELS = ("classifier", "backbone", "softmax", "preprocess", "", "nobody", "classifier\0", "..", "a" * 5000, "é")
VERSIONS = ("", "1", "2", "-1", "0", "99999999999999999999", "x", "1 ", "1.0")
NUMBERS = (0, 1, -1, 127, 2**31, 2**32, 2**63 - 1, -(2**63))
PARAMETERS = (
    "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_size", "classification",
    "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "triton_enable_empty_final_response",
    "triton_final_response", "headers", "max_tokens", "", "é",
)  # fmt: skip
LARGE = 20_000  # bytes; some changes multiply them by hundreds
OTHER_CALLS = {
    "ModelMetadata": pb.ModelMetadataRequest,
    "ModelReady": pb.ModelReadyRequest,
    "ModelStatistics": pb.ModelStatisticsRequest,
    "ModelConfig": pb.ModelConfigRequest,
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest,
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest,
    "ServerMetadata": pb.ServerMetadataRequest,
}
STEPS = {
    "classifier": ("image", [1, 1], "BYTES"),
    "preprocess": ("image", [1, 1], "BYTES"),
    "backbone": ("pixels", [1, 32, 32, 3], "UINT8"),
    "softmax": ("logits", [1, 1000], "FP32"),
}


def message(rng: random.Random, images: list[bytes]) -> tuple[str, bytes]:
    """(method, serialised request)."""
    kind = rng.random()
    if kind < 0.05:
        return _other_call(rng)
    request = in_order(rng, rng.choice(("classifier", "classifier", *STEPS)), rng.choice(images))
    if kind < 0.25:  # the message's own bytes
        data = request.SerializeToString()
        return SERVICE + "ModelInfer", rng.choice((mutate, flip_bits))(rng, data, [data])
    for _ in range(rng.choice((1, 1, 2, 4))):
        if request.ByteSize() < LARGE:
            rng.choice(CHANGES)(rng, request, images)
    return SERVICE + "ModelInfer", request.SerializeToString()


def in_order(rng: random.Random, model: str, image: bytes) -> pb.ModelInferRequest:
    name, shape, datatype = STEPS[model]
    data = struct.pack("<I", len(image)) + image
    if datatype == "UINT8":
        data = rng.randbytes(3072)
    elif datatype == "FP32":
        data = struct.pack("<1000f", *(rng.choice((0.0, 1.0, 1e38, -1e38)) for _ in range(1000)))
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[data])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def _other_call(rng: random.Random) -> tuple[str, bytes]:
    name, kind = rng.choice(list(OTHER_CALLS.items()))
    request = kind()
    for field in request.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING:
            setattr(request, field.name, rng.choice((*MODELS, *VERSIONS)))
    data = request.SerializeToString()
    return SERVICE + rng.choice((name, name, name, "Nothing", "")), rng.choice((data, flip_bits(rng, data, [])))


def _shape(rng: random.Random, request: Any, images: list[bytes]) -> None:
    for each in request.inputs:
        each.shape[:] = rng.choice(SHAPES)


def _type(rng: random.Random, request: Any, images: list[bytes]) -> None:
    for each in request.inputs:
        each.datatype = rng.choice(TYPES)


def _name(rng: random.Random, request: Any, images: list[bytes]) -> None:
    for each in request.inputs:
        each.name = rng.choice(NAMES)


def _model(rng: random.Random, request: Any, images: list[bytes]) -> None:
    request.model_name, request.model_version = rng.choice(MODELS), rng.choice(VERSIONS)


def _request_id(rng: random.Random, request: Any, images: list[bytes]) -> None:
    request.id = rng.choice(("", "a" * 100_000, "\n\r\x1b[31m", "%s%n%x", "é\0", '{"json":'))


def _raw_counts(rng: random.Random, request: Any, images: list[bytes]) -> None:
    raw = list(request.raw_input_contents)
    request.raw_input_contents[:] = rng.choice(([], raw * 2, raw * 300, [b""], [*raw, b""]))


def _raw_bytes(rng: random.Random, request: Any, images: list[bytes]) -> None:
    request.raw_input_contents[:] = [mutate(rng, data, images) for data in request.raw_input_contents]


def _image(rng: random.Random, request: Any, images: list[bytes]) -> None:
    """A damaged image in a valid frame, or an image in a frame with a wrong length."""
    data = mutate(rng, rng.choice(images), images)
    size = rng.choice((len(data), len(data), len(data), 0, len(data) + 1, 2**31, 2**32 - 1))
    request.raw_input_contents[:] = [struct.pack("<I", size) + data]


def _batch(rng: random.Random, request: Any, images: list[bytes]) -> None:
    count = rng.choice((2, 16, 17, 100))
    for each in request.inputs:
        each.shape[:] = [count, *list(each.shape)[1:]]
    request.raw_input_contents[:] = [data * rng.choice((count, count - 1)) for data in request.raw_input_contents]


def _inputs(rng: random.Random, request: Any, images: list[bytes]) -> None:
    if rng.random() < 0.3:
        del request.inputs[:]
        return
    for each in list(request.inputs) * rng.choice((1, 2, 100)):
        request.inputs.append(each)
    if rng.random() < 0.5:
        request.raw_input_contents.extend(list(request.raw_input_contents) * (len(request.inputs) - 1))


def _contents(rng: random.Random, request: Any, images: list[bytes]) -> None:
    """Typed contents instead of raw ones or in addition, of another type or another length."""
    for each in request.inputs:
        kind = rng.randrange(5)
        count = rng.choice((0, 1, 2, 1000, 3072))
        if kind == 0:
            each.contents.bytes_contents.extend([rng.choice(images)] * min(count, 20))
        elif kind == 1:
            each.contents.uint_contents.extend([rng.getrandbits(32)] * count)
        elif kind == 2:
            each.contents.fp32_contents.extend([rng.choice((0.5, float("nan"), float("inf")))] * count)
        elif kind == 3:
            each.contents.int64_contents.extend([-(2**63)] * count)
        else:
            each.contents.bool_contents.extend([True] * count)
    if rng.random() < 0.7:
        del request.raw_input_contents[:]


def _parameter(rng: random.Random, request: Any, images: list[bytes]) -> None:
    outputs = (
        [request.outputs.add(name=rng.choice(("probabilities", "logits", "pixels", *NAMES)))]
        if rng.random() < 0.4
        else []
    )
    target = rng.choice([request, *request.inputs, *outputs])
    parameter = target.parameters[rng.choice(PARAMETERS)]
    kind = rng.randrange(5)
    if kind == 0:
        parameter.int64_param = rng.choice(NUMBERS)
    elif kind == 1:
        parameter.string_param = rng.choice(NAMES)
    elif kind == 2:
        parameter.bool_param = rng.random() < 0.5
    elif kind == 3:
        parameter.double_param = rng.choice((0.0, -1.0, 1e308, float("nan")))
    else:
        parameter.uint64_param = rng.choice((0, 1, 2**63, 2**64 - 1))


def _outputs(rng: random.Random, request: Any, images: list[bytes]) -> None:
    for _ in range(rng.choice((1, 2, 100))):
        output = request.outputs.add(name=rng.choice(("probabilities", "logits", *NAMES)))
        output.parameters["classification"].int64_param = rng.choice(NUMBERS)


CHANGES = (
    _shape, _shape, _type, _name, _model, _request_id, _raw_counts, _raw_bytes, _image, _image, _batch, _inputs,
    _contents, _parameter, _parameter, _outputs,
)  # fmt: skip

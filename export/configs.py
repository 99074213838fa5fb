"""config.pbtxt of every model in the repository, written through tritonserver's own message definition."""

import hashlib
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

MAX_BATCH_SIZE = 16
BACKBONE_INSTANCES = 2  # of the embedded server
# Images that each instance takes at a time, and answers one by one: with a second one at hand it does not wait for the
# batcher, and the other instance can take the rest.
BACKBONE_TAKES = 2
PREPROCESS_INSTANCES = 2  # one decodes while the other is being answered
# On a CPU the embedded `pytorch` backend computes a batch in pieces of these sizes: oneDNN's fusion compiles for each
# size that it meets and keeps a copy of the weights with it. The smallest is warmed last: it serves most requests.
BACKBONE_BATCHES = (4, 1)
# How long a request may wait in a step's queue; a client may ask for less. The time is what is limited: tritonserver
# 2.51 halves its throughput once `max_queue_size` rejects requests (docs/serving.md), so that only limits memory.
QUEUE_SECONDS = 5.0
QUEUE_REQUESTS = 1024
WARMUP_IMAGE = "image"  # <model>/warmup/image: one real picture as tritonserver reads a string tensor
ENSEMBLES = ("classifier", "classifier_explained")
EMBEDDED = "configs/embedded.pbtxt"  # what the launcher asks the embedded server to read in place of config.pbtxt
REPLACES = "# in place of config.pbtxt, sha256 "  # the beginning of its first line


@dataclass(frozen=True)
class ServingSpec:
    """The values that all configs must agree on. Sizes in pixels."""

    image_size: int
    resize_size: int
    interpolation: str
    num_classes: int
    threads: int
    backbone_backend: str = "pytorch"
    class_map: tuple[int, int] | None = None
    """Height and width of the backbone's second output, if it has one."""
    max_file_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 89_478_485  # Pillow's own bound: 256 MiB of RGB
    crop_mode: str = "center"
    fill: tuple[int, int, int] = (0, 0, 0)
    """RGB around an image that does not fill its crop."""
    reduced_decoding: bool = True
    """Large JPEGs are decoded at a fraction of their size (model_repository/preprocess/1/evaluation_transform.py)."""


def _tensor(name: str, data_type: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{data_type}", "dims": dims}


CROP = _tensor("crop", "FP32", [4])  # the part of the picture that a class map is of


def _parameters(values: dict[str, object]) -> dict[str, Any]:
    return {key: {"string_value": str(value)} for key, value in values.items()}


def _warmup(inputs: dict[str, dict[str, Any]], batch_sizes: tuple[int, ...] = (1,)) -> list[dict[str, Any]]:
    """Three runs of each size: TorchScript profiles, then compiles, then is fast."""
    return [{"name": f"batch_{n}", "batch_size": n, "count": 3, "inputs": inputs} for n in batch_sizes]


def _bounded_queue() -> dict[str, Any]:
    return {
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": int(QUEUE_SECONDS * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": QUEUE_REQUESTS,
        }
    }


def preprocess_config(spec: ServingSpec) -> str:
    image = {"data_type": "TYPE_STRING", "dims": [1], "input_data_file": WARMUP_IMAGE}
    outputs = [_tensor("pixels", "UINT8", [spec.image_size, spec.image_size, 3])]
    if spec.class_map is not None:
        outputs.append(CROP)
    return _text(
        name="preprocess",
        backend="python",
        max_batch_size=MAX_BATCH_SIZE,
        input=[_tensor("image", "STRING", [1])],
        output=outputs,
        instance_group=[{"kind": "KIND_CPU", "count": PREPROCESS_INSTANCES}],
        dynamic_batching=_bounded_queue(),
        parameters=_parameters(
            {
                "image_size": spec.image_size,
                "resize_size": spec.resize_size,
                "interpolation": spec.interpolation,
                "crop_mode": spec.crop_mode,
                "fill": ",".join(map(str, spec.fill)),
                "max_file_bytes": spec.max_file_bytes,
                "max_pixels": spec.max_pixels,
                "reduced_decoding": str(spec.reduced_decoding).lower(),
            }
        ),
        model_warmup=_warmup({"image": image}),
    )


def backbone_config(spec: ServingSpec) -> str:
    outputs = [_tensor("logits", "FP32", [spec.num_classes])]
    if spec.class_map is not None:
        outputs.append(_tensor("class_map", "FP32", list(spec.class_map)))
    pixels = {"data_type": "TYPE_UINT8", "dims": [spec.image_size, spec.image_size, 3], "random_data": True}
    return _text(
        name="backbone",
        backend=spec.backbone_backend,
        max_batch_size=MAX_BATCH_SIZE,
        input=[_tensor("pixels", "UINT8", [spec.image_size, spec.image_size, 3])],
        output=outputs,
        dynamic_batching=_bounded_queue(),
        parameters=_backbone_parameters(spec),
        model_warmup=_warmup({"pixels": pixels}, BACKBONE_BATCHES),
    )


def embedded_configs(spec: ServingSpec) -> dict[str, str]:
    """Return, by model, the config that the embedded server reads on a CPU in place of config.pbtxt.

    Batches are small: larger ones answer no image sooner, and many later, since each waits for its batch to end, which
    misses deadlines under load. The backbone has two instances with half the threads each, which do not wait for each
    other after every operator; an execution that finds the backbone idle uses all threads (LONE_THREAD_COUNT). The
    softmax has one thread (here each model has its own count) and nothing to fuse. The preprocess step runs in the
    server's process: a process for each instance would cost every request half a millisecond.
    """
    few = max(BACKBONE_BATCHES)  # the largest that is compiled for
    sizes = {"preprocess": max(few, spec.threads // PREPROCESS_INSTANCES), "backbone": few}
    texts = configs(spec)
    messages = {name: text_format.Parse(texts[name], model_config_pb2.ModelConfig()) for name in (*sizes, "softmax")}
    messages["preprocess"].backend = "python_in_process"
    _set_parameters(messages["softmax"], {"INTRA_OP_THREAD_COUNT": 1, "ENABLE_ONEDNN_FUSION": "false"})
    for name, size in sizes.items():
        messages[name].dynamic_batching.preferred_batch_size.append(min(size, MAX_BATCH_SIZE))
    backbone = messages["backbone"]
    backbone.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if spec.backbone_backend == "pytorch" and spec.threads >= BACKBONE_INSTANCES:
        backbone.instance_group[0].count = BACKBONE_INSTANCES
        backbone.dynamic_batching.preferred_batch_size[:] = [BACKBONE_TAKES]
        parallel = {
            "INTRA_OP_THREAD_COUNT": spec.threads // BACKBONE_INSTANCES,
            "LONE_THREAD_COUNT": spec.threads,
            "ENABLE_WEIGHT_SHARING": "true",
        }
        _set_parameters(backbone, parallel)
    return {
        name: replaced(texts[name].encode()) + text_format.MessageToString(message)
        for name, message in messages.items()
    }


def _set_parameters(config: model_config_pb2.ModelConfig, values: dict[str, object]) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = str(value)


def replaced(config: bytes) -> str:
    """The first line of a config that replaces `config`; by it the launcher sees whether `config` was changed later."""
    return f"{REPLACES}{hashlib.sha256(config).hexdigest()}\n"


def softmax_config(spec: ServingSpec) -> str:
    logits = {"data_type": "TYPE_FP32", "dims": [spec.num_classes], "random_data": True}
    return _text(
        name="softmax",
        backend="pytorch",
        max_batch_size=MAX_BATCH_SIZE,
        input=[_tensor("logits", "FP32", [spec.num_classes])],
        output=[_tensor("probabilities", "FP32", [spec.num_classes])],
        instance_group=[{"kind": "KIND_CPU", "count": 1}],
        parameters=_libtorch_parameters(spec.threads),
        model_warmup=_warmup({"logits": logits}),
    )


def _ensemble(name: str, spec: ServingSpec, class_map: tuple[int, int] | None) -> str:
    def step(model: str, source: str, *results: str) -> dict[str, Any]:
        maps = {"input_map": {source: source}, "output_map": {result: result for result in results}}
        return {"model_name": model, "model_version": -1, **maps}

    outputs = [{**_tensor("probabilities", "FP32", [spec.num_classes]), "label_filename": "labels.txt"}]
    if class_map is not None:
        outputs += [_tensor("class_map", "FP32", list(class_map)), CROP]
    return _text(
        name=name,
        platform="ensemble",
        max_batch_size=MAX_BATCH_SIZE,
        input=[_tensor("image", "STRING", [1])],
        output=outputs,
        ensemble_scheduling={
            "step": [
                step("preprocess", "image", "pixels", *(["crop"] if class_map else [])),
                step("backbone", "pixels", "logits", *(["class_map"] if class_map else [])),
                step("softmax", "logits", "probabilities"),
            ]
        },
    )


def configs(spec: ServingSpec) -> dict[str, str]:
    """Return the text of config.pbtxt by model."""
    texts = {
        "preprocess": preprocess_config(spec),
        "backbone": backbone_config(spec),
        "softmax": softmax_config(spec),
        "classifier": _ensemble("classifier", spec, None),
    }
    if spec.class_map is not None:  # the same steps with their second outputs: only its callers pay for them
        texts["classifier_explained"] = _ensemble("classifier_explained", spec, spec.class_map)
    return texts


def _backbone_parameters(spec: ServingSpec) -> dict[str, Any]:
    if spec.backbone_backend == "onnxruntime":
        return _parameters({"intra_op_thread_count": spec.threads, "inter_op_thread_count": 1})
    return _libtorch_parameters(spec.threads)


def _libtorch_parameters(threads: int) -> dict[str, Any]:
    """LibTorch's parameters. The native backend uses the first model's thread count for all, so all have the same."""
    return _parameters({"INFERENCE_MODE": "true", "INTRA_OP_THREAD_COUNT": threads, "INTER_OP_THREAD_COUNT": 1})


def _text(**fields: Any) -> str:
    config = json_format.ParseDict(fields, model_config_pb2.ModelConfig())
    return text_format.MessageToString(config)

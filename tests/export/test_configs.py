"""config.pbtxt of every model: what its numbers depend on."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.configs import ServingSpec, embedded_configs


def test_the_limits_of_an_image() -> None:
    assert ServingSpec.max_file_bytes == 20 << 20
    assert ServingSpec.max_pixels == 1024**3 // 4 // 3  # Pillow's own, which a preprocess in this process lowers


@pytest.mark.parametrize(
    ("threads", "backend", "preprocess", "backbone", "instances"),
    [
        (1, "pytorch", 4, 4, 1),
        (16, "pytorch", 8, 2, 2),
        (64, "pytorch", 16, 2, 2),  # no batch is larger than the largest
        (16, "onnxruntime", 8, 4, 1),
    ],
)
def test_the_embedded_servers_batches_go_with_the_threads(
    threads: int, backend: str, preprocess: int, backbone: int, instances: int
) -> None:
    spec = ServingSpec(64, 73, "bicubic", num_classes=5, threads=threads, backbone_backend=backend)
    texts = embedded_configs(spec)
    for name, preferred in (("preprocess", preprocess), ("backbone", backbone)):
        embedded = text_format.Parse(texts[name], model_config_pb2.ModelConfig())
        assert list(embedded.dynamic_batching.preferred_batch_size) == [preferred]
    cpu = model_config_pb2.ModelInstanceGroup.KIND_CPU  # tritonserver would take a GPU where it finds one
    assert [(group.count, group.kind) for group in embedded.instance_group] == [(instances, cpu)]

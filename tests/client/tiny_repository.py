"""A model repository small enough to build and load in a test: `classifier` names a picture's colour."""

import shutil
import warnings
from pathlib import Path

import torch
from server_models import in_process
from torch import Tensor, nn

LABELS = ("red: warm", "green", "blue [cold]", "naïve grey")  # a colon, markup, not ASCII
ROOT = Path(__file__).parents[2]

PREPROCESS = """
name: "preprocess" backend: "python" max_batch_size: 16
input [{ name: "image" data_type: TYPE_STRING dims: [1] }]
output [{ name: "pixels" data_type: TYPE_UINT8 dims: [32, 32, 3] },
  { name: "crop" data_type: TYPE_FP32 dims: [4] }]
instance_group [{ kind: KIND_CPU count: 1 }]
parameters { key: "image_size" value { string_value: "32" } }
parameters { key: "resize_size" value { string_value: "32" } }
parameters { key: "interpolation" value { string_value: "bicubic" } }
"""
COLOUR = """
name: "colour" backend: "pytorch" max_batch_size: 16
input [{ name: "pixels" data_type: TYPE_UINT8 dims: [32, 32, 3] }]
output [{ name: "probabilities__0" data_type: TYPE_FP32 dims: [4] },
  { name: "class_map__1" data_type: TYPE_FP32 dims: [2, 4] }]
instance_group [{ kind: KIND_CPU count: 1 }]
dynamic_batching {}
parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }
"""
CLASSIFIER = """
name: "classifier" platform: "ensemble" max_batch_size: 16
input [{ name: "image" data_type: TYPE_STRING dims: [1] }]
output [{ name: "probabilities" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }]
ensemble_scheduling { step [
  { model_name: "preprocess" model_version: -1
    input_map { key: "image" value: "image" } output_map { key: "pixels" value: "pixels" } },
  { model_name: "colour" model_version: -1
    input_map { key: "pixels" value: "pixels" } output_map { key: "probabilities__0" value: "probabilities" } } ] }
"""
CLASSIFIER_EXPLAINED = (
    CLASSIFIER.replace('"classifier"', '"classifier_explained"')
    .replace(
        '"labels.txt" }]',
        '"labels.txt" }, { name: "class_map" data_type: TYPE_FP32 dims: [2, 4] },'
        ' { name: "crop" data_type: TYPE_FP32 dims: [4] }]',
    )
    .replace('output_map { key: "pix', 'output_map { key: "crop" value: "crop" } output_map { key: "pix')
    .replace('output_map { key: "prob', 'output_map { key: "class_map__1" value: "class_map" } output_map { key: "prob')
)
# One request at a time, one more may wait, no label file: for deadlines, a full queue, failures.
SLOW = """
name: "slow" backend: "python" max_batch_size: 1
input [{ name: "image" data_type: TYPE_STRING dims: [1] }]
output [{ name: "probabilities" data_type: TYPE_FP32 dims: [2] }]
instance_group [{ kind: KIND_CPU count: 1 }]
dynamic_batching { default_queue_policy {
  max_queue_size: 1 default_timeout_microseconds: 5000000 allow_timeout_override: true } }
"""
SLOW_MODEL = '''
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Sleeps as many seconds as the request's bytes say, and answers NaN for nan; anything else makes it fail."""

    def execute(self, requests):
        answers = []
        for request in requests:
            data = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)[0]
            seconds = float(data)
            time.sleep(max(0.0, seconds))  # 0 for NaN
            tensor = pb_utils.Tensor("probabilities", np.array([[0.25 + 0 * seconds, 0.75]], dtype=np.float32))
            answers.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return answers
'''


class Colour(nn.Module):
    """pixels [B,32,32,3] uint8 -> probabilities [B,4] of red, green, blue, grey; brightness [B,2,4]."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = pixels.float().mean(dim=(1, 2)) / 255  # [B,3]
        grey = 0.6 * mean.mean(dim=1, keepdim=True) + 0.25  # [B,1]
        brightness = pixels.float().reshape(-1, 2, 16, 4, 8, 3).mean(dim=(2, 4, 5)) / 255  # [B,2,4]
        return torch.softmax(8 * torch.cat([mean, grey], dim=1), dim=1), brightness


def write_tiny_repository(root: Path) -> Path:
    ensembles = {"classifier": CLASSIFIER, "classifier_explained": CLASSIFIER_EXPLAINED}
    configs = {"preprocess": PREPROCESS, "colour": COLOUR, "slow": SLOW, **ensembles}
    for name, config in configs.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    for name in ("preprocess", "slow"):  # the embedded server runs them in its own process
        in_process(root / name)
    for source in ROOT.glob("model_repository/preprocess/1/*.py"):
        shutil.copy(source, root / "preprocess/1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what tritonserver reads
        torch.jit.script(Colour().eval()).save(str(root / "colour/1/model.pt"))
    for name in ensembles:
        (root / name / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (root / "slow/1/model.py").write_text(SLOW_MODEL)
    return root

"""Export of the served backbone as ONNX: standard operators only, dynamic batch."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from export.torchscript import ServedBackbone
from models import WithClassMap

OPSET = 18


def _depthwise_conv2d(input: Any, weight: Any, bias: Any = None, activation: str = "none") -> Any:
    """widefield::depthwise_conv2d in ONNX's terms: Conv with one group per channel, then the activation."""
    from onnxscript import opset18 as op

    channels, _, kernel_height, kernel_width = weight.shape
    pads = [kernel_height // 2, kernel_width // 2] * 2
    output = op.Conv(input, weight, bias, group=int(channels), pads=pads)
    if activation == "gelu":  # opset 18 has none
        numbers: tuple[Any, ...] = (0.5, 0.5**0.5, 1.0)
        half, root, one = (op.CastLike(number, input) for number in numbers)
        return op.Mul(op.Mul(output, half), op.Add(op.Erf(op.Mul(output, root)), one))
    return op.Relu(output) if activation == "relu" else output


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.widefield.depthwise_conv2d.default: _depthwise_conv2d
}
"""The `custom_translation_table` for `torch.onnx.export` of any module that calls the operator."""


def export_onnx(backbone: ServedBackbone, image_size: int, path: Path) -> None:
    """Write pixels [batch,S,S,3] uint8 -> logits [batch,classes] float32, checked by onnx.checker.

    For a `models.WithClassMap` also -> class_map [batch,h,w] float32.

    Raises `RuntimeError` when an operator outside the ONNX standard is left in the graph.
    """
    import onnx

    pixels = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            backbone,
            (pixels,),
            str(path),
            input_names=["pixels"],
            output_names=["logits", "class_map"] if isinstance(backbone.model, WithClassMap) else ["logits"],
            opset_version=OPSET,
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            custom_translation_table=TRANSLATIONS,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(str(path))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(f"{path}: onnx.checker refuses the graph: {error}") from error
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"} | {
        function.name for function in model.functions
    }
    if foreign:
        raise RuntimeError(f"{path}: operators outside the ONNX standard: {', '.join(sorted(foreign))}")

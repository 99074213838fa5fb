"""A re-parameterised model as a TorchScript file that any libtorch >= 2.10 with the native library loads."""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels import native_library

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMESPACES = {"aten", "prim", "quantized", "widefield"}  # of libtorch's operators and of the native library's


class ServedBackbone(nn.Module):
    """Pixels [B,S,S,3] uint8 (RGB) -> logits [B,classes] float32; normalisation is inside.

    For a `models.WithClassMap`: logits and class_map [B,h,w] float32.

    The pixels' HWC order, permuted, is channels_last without a copy: the layout that the convolutions want.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float], precision: str = "fp32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
        self.dtype = PRECISIONS[precision]
        self.model = deepcopy(model).eval().to(self.dtype).to(memory_format=torch.channels_last)
        scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", scale.to(torch.float32).view(1, 3, 1, 1))
        self.register_buffer("shift", shift.to(torch.float32).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [B,3,S,S], channels_last
        images = torch.addcmul(self.shift, images, self.scale).to(self.dtype)
        outputs = self.model(images)
        if isinstance(outputs, Tensor):
            return outputs.to(torch.float32)  # [B,classes]
        return tuple(output.to(torch.float32) for output in outputs)


def trace_backbone(backbone: ServedBackbone, image_size: int) -> torch.jit.ScriptModule:
    """Trace and freeze the backbone: weights become constants, which oneDNN's graph fusion needs to pack them once.

    Raises `RuntimeError` if the trace depends on the batch size or the device that it was made with, or on an operator
    that a server does not have.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated upstream, and what tritonserver loads
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # what it warns of is checked below
        traced = torch.jit.trace(backbone.eval(), pixels, check_trace=False)
        traced = torch.jit.freeze(traced)
        for batch in (1, 3):
            sample = pixels[:1].expand(batch, -1, -1, -1).contiguous()
            outputs = traced(sample)
            for output in [outputs] if isinstance(outputs, Tensor) else outputs:
                if output.shape[0] != batch:
                    raise RuntimeError(f"the trace bakes in a batch size: {batch} images gave {list(output.shape)}")
    graph = traced.inlined_graph  # a reference is kept: its nodes are freed with it
    if any(node.output().type().kind() == "DeviceObjType" for node in graph.findAllNodes("prim::Constant")):
        raise RuntimeError(
            f"the trace of {type(backbone.model).__name__} bakes in a device, so it would serve nowhere else: "
            "build it with --format onnx"
        )
    _check_operators(traced, type(backbone.model).__name__)
    return traced


def _check_operators(traced: torch.jit.ScriptModule, network: str) -> None:
    graph: Any = traced.inlined_graph
    python = {node.pyname() for node in graph.findAllNodes("prim::PythonOp")}  # autograd.Functions: cannot be saved
    operators = [] if python else torch.jit.export_opnames(traced)
    if foreign := python or {name for name in operators if name.partition("::")[0] not in NAMESPACES}:
        raise RuntimeError(
            f"the trace of {network} calls {', '.join(sorted(foreign))}, which tritonserver does not have: use those "
            "of PyTorch or of kernels/ in its place"
        )
    if any(name.startswith("widefield::") for name in operators) and native_library() is None:
        raise RuntimeError("the native library is not built: make native (or python kernels/native/build.py)")


def save_torchscript(traced: torch.jit.ScriptModule, path: Path) -> None:
    path.write_bytes(traced.save_to_buffer())  # on a full disk `save` would end the process


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.load(str(path), map_location="cpu")


class Softmax(nn.Module):
    """Logits [B,classes] -> probabilities [B,classes], float32."""

    def forward(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)


def script_softmax() -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.freeze(torch.jit.script(Softmax().eval()))

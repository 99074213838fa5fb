"""The layers on a CPU, with bias and ReLU: the operator against oneDNN, torch.compile, ONNX Runtime, OpenVINO.

oneDNN is PyTorch's own fused convolution in channels_last with its filter packed beforehand, and a plain convolution on
contiguous memory; torch.compile has the plain one in channels_last. OpenVINO is measured in both layouts, because in a
network it would not convert at each layer. In bfloat16 images, filters and answers are bfloat16 (OpenVINO's bias is
float32); ONNX Runtime has no such convolution for a CPU.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import openvino_core
from benchmarks.kernels.layers import Layer, replknet_31b, small_kernels
from benchmarks.timing import SETTLE, Timing, interleaved
from kernels import depthwise_conv2d
from kernels.depthwise_conv2d import pytorch

OURS = "widefield"
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of the largest output
SECONDS = 4.0  # for a candidate and layer: one that is tens of times slower is measured with fewer calls

Row = dict[str, Any]


def dtypes() -> list[str]:
    """The types to measure: bfloat16 only if oneDNN computes in it."""
    return list(TOLERANCE) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["float32"]


def layers(batches: list[int]) -> list[Layer]:
    cases = [(dtype, batch) for dtype in dtypes() for batch in batches]
    return [layer for dtype, batch in cases for layer in replknet_31b(batch, dtype) + small_kernels(batch, dtype)]


def layer_model(layer: Layer, weight: Tensor, bias: Tensor) -> bytes:
    """Return the layer with its ReLU as an ONNX model, "input" -> "output", [N,C,H,W]."""
    from onnx import TensorProto, helper, numpy_helper

    shape = [layer.batch, layer.channels, layer.size, layer.size]
    image = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    attributes: Row = {"group": layer.channels, "pads": [layer.kernel // 2] * 4, "kernel_shape": [layer.kernel] * 2}
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["convolved"], **attributes),
        helper.make_node("Relu", ["convolved"], ["output"]),
    ]
    constants = [numpy_helper.from_array(t.float().numpy(), name) for name, t in (("weight", weight), ("bias", bias))]
    graph = helper.make_graph(nodes, "layer", image[:1], image[1:], constants)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def onnx_runtime(model: bytes, input: Tensor, threads: int) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    output = torch.empty_like(input)
    binding = session.io_binding()  # no copy of the input, no new output
    for bind, name, tensor in ((binding.bind_input, "input", input), (binding.bind_output, "output", output)):
        bind(name, "cpu", 0, "float32", list(tensor.shape), tensor.data_ptr())

    def run(input: Tensor = input) -> Tensor:  # ONNX Runtime only borrows its memory
        session.run_with_iobinding(binding)
        return output

    return run


def open_vino(model: bytes, input: Tensor, threads: int, layout: str) -> Callable[[], Tensor]:
    """Compile for the input's dtype and shape; `layout`, "NCHW" or "NHWC", is that of input and output in memory."""
    import openvino

    core = openvino_core()
    kind = openvino.Type.f32 if input.dtype == torch.float32 else openvino.Type.bf16
    steps = openvino.preprocess.PrePostProcessor(core.read_model(model))
    for end in (steps.input(), steps.output()):
        end.tensor().set_element_type(kind).set_layout(openvino.Layout(layout))
        end.model().set_layout(openvino.Layout("NCHW"))
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": kind}
    request = core.compile_model(steps.build(), "CPU", hints).create_infer_request()
    source = input if layout == "NCHW" else input.permute(0, 2, 3, 1).contiguous()
    output = torch.empty_like(source)
    # numpy has no bfloat16: OpenVINO is told the type
    memory = [t.numpy() if t.dtype == torch.float32 else t.view(torch.int16).numpy() for t in (source, output)]
    shared = [openvino.Tensor(array, openvino.Shape(array.shape), kind) for array in memory]
    request.set_input_tensor(shared[0])
    request.set_output_tensor(shared[1])

    def run(source: Tensor = source) -> Tensor:  # OpenVINO only borrows its memory
        request.infer()
        return output if layout == "NCHW" else output.permute(0, 3, 1, 2)

    return run


def plain(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return pytorch.convolution(input, weight, bias).relu_()


def candidates(layer: Layer, threads: int) -> dict[str, Callable[[], Tensor]]:
    dtype = layer.torch_dtype
    nchw = torch.randn(layer.batch, layer.channels, layer.size, layer.size).to(dtype)
    input = nchw.contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(layer.channels, 1, layer.kernel, layer.kernel) / layer.kernel).to(dtype)
    bias = torch.randn(layer.channels).to(dtype)
    ones, padding, groups = [1, 1], [layer.kernel // 2] * 2, layer.channels
    pack = torch.ops.mkldnn._reorder_convolution_weight
    packed = pack(weight, padding, ones, ones, groups, list(input.shape))
    fused = torch.ops.mkldnn._convolution_pointwise
    torch.compiler.reset()  # a compiled function keeps eight shapes at most
    compiled = torch.compile(plain, dynamic=False, fullgraph=True)
    model = layer_model(layer, weight, bias)
    calls = {
        OURS: lambda: depthwise_conv2d(input, weight, bias, "relu"),
        "oneDNN channels_last": lambda: fused(input, packed, bias, padding, ones, ones, groups, "relu", [], ""),
        "oneDNN nchw": lambda: plain(nchw, weight, bias),
        "torch.compile channels_last": lambda: compiled(input, weight, bias),
    }
    if dtype == torch.float32:
        calls["ONNX Runtime"] = onnx_runtime(model, nchw, threads)
    return calls | {
        "OpenVINO": open_vino(model, nchw, threads, "NCHW"),
        "OpenVINO NHWC": open_vino(model, nchw, threads, "NHWC"),
    }


@torch.inference_mode()
def measure_layer(layer: Layer, rounds: int, threads: int, seconds: float = SECONDS) -> Row:
    """Return {"ms": {name: Timing}, "best_peer", "ratio_to_best_peer" (ours over theirs: below 1 is faster), ...}.

    If an answer differs from oneDNN's: {"wrong": reason} and no speed.
    """
    calls = candidates(layer, threads)
    row = compared(calls, TOLERANCE[layer.dtype], rounds, burst=6, seconds=seconds, settle=SETTLE)
    if "ms" in row:
        row["gflops_on_valid_taps"] = round(layer.flops / row["ms"][OURS].median / 1e6)
    return asdict(layer) | row


def compared(calls: dict[str, Callable[[], Tensor]], tolerance: float, rounds: int, **timing: Any) -> Row:
    """The `ratios` of the calls; {"wrong": reason} if an answer is `tolerance` of the largest number from oneDNN's."""
    expected = calls["oneDNN channels_last"]().float()
    errors = {
        name: float((call().float() - expected).abs().max() / expected.abs().max()) for name, call in calls.items()
    }
    if wrong := {name: error for name, error in errors.items() if not error < tolerance}:
        said = (f"{name} differs from oneDNN by {error:.2g} of the largest number" for name, error in wrong.items())
        return {"wrong": "; ".join(said)}
    return ratios(interleaved(calls, rounds, **timing))


def ratios(timings: dict[str, Timing]) -> Row:
    peers = {name: timing.median for name, timing in timings.items() if name != OURS}
    best = min(peers, key=peers.__getitem__)
    return {"ms": timings, "best_peer": best, "ratio_to_best_peer": round(timings[OURS].median / peers[best], 3)}


def line(row: Row) -> str:
    """The line that is printed for a layer, a gradient of one, or a training step."""
    shape = "C {channels:4} H {size:2} K {kernel:2}" if "channels" in row else "{arch} training step"
    name = f"{row['dtype']} batch {row['batch']} {shape.format(**row)} {row.get('gradient', '')}".rstrip()
    if "wrong" in row:
        return f"{name}  WRONG: {row['wrong']}"
    times = "  ".join(f"{who} {timing.median:.3f}" for who, timing in row["ms"].items())
    return f"{name}  {row['ratio_to_best_peer']:5.3f} x {row['best_peer']} (ms: {times})"

"""Backend "pytorch" for a tritonserver without the native LibTorch one: TorchScript, by the native backend's rules.

Names: inputs by the forward argument's name, else ``NAME__<index>``, else config order; outputs by ``NAME__<index>``,
else config order. The requests of one execute() call run as one batch; tensors enter and leave through DLPack.
Instances are processes here (threads in the native backend), so ENABLE_WEIGHT_SHARING has nothing to share.

With oneDNN graph fusion (on a CPU; ENABLE_ONEDNN_FUSION "false" turns it off) the batch runs in pieces of the sizes
that the config's model_warmup names: the fuser compiles the model anew for each batch size it meets, in three slow runs
and with as much memory as the weights.
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

TORCH_DTYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_BF16": torch.bfloat16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}
FUSION_BUG = "File a bug report"
INDEXED = re.compile(r".*?__(\d+)$")


def parse_bool(name: str, value: str | None, default: bool) -> bool:
    if value is None:
        return default
    if value.strip().lower() in ("true", "1"):
        return True
    if value.strip().lower() in ("false", "0"):
        return False
    raise ValueError(f'parameter {name} is "{value}": write "true" or "false"')


def parse_count(name: str, value: str) -> int:
    if not value.strip().isdigit() or int(value) < 1:
        raise ValueError(f'parameter {name} is "{value}": write a number of threads, 1 or more')
    return int(value)


def name_indices(names: list[str], arguments: list[str]) -> list[int]:
    """The position in forward()'s arguments (or in its outputs) of each configured tensor."""
    if arguments and all(name in arguments for name in names):
        return [arguments.index(name) for name in names]
    matches = [INDEXED.match(name) for name in names]
    if all(matches):
        return [int(match.group(1)) for match in matches if match]
    return list(range(len(names)))


def check_indices(kind: str, names: list[str], indices: list[int], count: int | None) -> None:
    """Raises `ValueError` where two names mean one tensor or one means none. `count` None: not known yet."""
    for name, index in zip(names, indices, strict=True):
        if indices.count(index) > 1:
            raise ValueError(f"{kind} {name!r} and another both mean position {index}: give each its own index")
        if count is not None and index >= count:
            raise ValueError(f"{kind} {name!r} means position {index}, forward() has {count}: correct config.pbtxt")


def configured_dtypes(kind: str, tensors: list[dict[str, Any]]) -> list[torch.dtype]:
    for tensor in tensors:
        if tensor["data_type"] not in TORCH_DTYPES:
            raise ValueError(f"{kind} {tensor['name']!r} has data_type {tensor['data_type']}, which is not supported")
    return [TORCH_DTYPES[tensor["data_type"]] for tensor in tensors]


def split_batch(count: int, sizes: list[int]) -> list[int]:
    """Pieces of `count` samples by the warmed-up sizes, largest first; what no size fits stays one piece."""
    pieces = []
    for size in sorted(sizes, reverse=True):
        pieces += [size] * (count // size)
        count %= size
    return pieces + ([count] if count else [])


def flatten_outputs(result: Any) -> list[Tensor]:
    """forward()'s result as a list of tensors; the native backend takes a tensor or a tuple of them, no more."""
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    for output in outputs:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"forward() returned {type(output).__name__}: it must return a tensor or a tuple of tensors"
            )
        if output.dim() == 0:
            raise ValueError("forward() returned a scalar: outputs need a batch dimension")
    return outputs


class TritonPythonModel:
    """One instance of a TorchScript model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self.batched = int(config.get("max_batch_size", 0)) > 0
        gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device("cuda", int(args["model_instance_device_id"])) if gpu else torch.device("cpu")
        self.guard: type[AbstractContextManager[None]] = (
            torch.inference_mode if self._flag("INFERENCE_MODE", True) else torch.no_grad
        )
        self.clean_cache = self._flag("ENABLE_CACHE_CLEANING", False) and gpu
        self._configure_torch()
        self._load_library()

        filename = config.get("default_model_filename") or "model.pt"
        self.path = Path(args["model_repository"]) / args["model_version"] / filename
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing: build the repository first (build_models.py)")
        self._load_model()
        self._read_tensors(config)
        pieces = self.batched and self.fused
        self.warm_sizes = sorted({int(w["batch_size"]) for w in config.get("model_warmup", [])} - {0}) if pieces else []

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order. A request that does not fit the others runs alone and fails alone."""
        inputs = [[self._input(request, name) for name in self.input_names] for request in requests]
        try:
            results: Sequence[list[Tensor] | Exception] = self._run_together(inputs)
        except Exception:
            results = [self._run_alone(tensors) for tensors in inputs]
        if self.clean_cache:
            torch.cuda.empty_cache()
        return [self._response(result) for result in results]

    def _flag(self, name: str, default: bool) -> bool:
        return parse_bool(name, self.parameters.get(name), default)

    def _configure_torch(self) -> None:
        """The native backend's process-wide switches; one that the config does not name keeps LibTorch's default."""
        threads = {
            "INTRA_OP_THREAD_COUNT": torch.set_num_threads,
            "INTER_OP_THREAD_COUNT": torch.set_num_interop_threads,
        }
        for name, set_threads in threads.items():
            if name in self.parameters:
                set_threads(parse_count(name, self.parameters[name]))
        if self._flag("DISABLE_CUDNN", False):
            torch.backends.cudnn.enabled = False
        torch._C._set_graph_executor_optimize(not self._flag("DISABLE_OPTIMIZED_EXECUTION", False))
        switches = {
            "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
            "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
            "ENABLE_TENSOR_FUSER": torch._C._jit_set_texpr_fuser_enabled,
        }
        for name, switch in switches.items():
            if name in self.parameters:
                switch(self._flag(name, True))
        self.fused = self.device.type == "cpu" and self._flag("ENABLE_ONEDNN_FUSION", True)
        torch.jit.enable_onednn_fusion(self.fused)

    def _load_library(self) -> None:
        library = os.environ.get("WIDEFIELD_LIBRARY", "")
        if not library:
            return
        if not Path(library).is_file():
            raise FileNotFoundError(f"WIDEFIELD_LIBRARY names {library}, which is missing: build it first")
        torch.ops.load_library(library)

    def _load_model(self) -> None:
        self.model = torch.jit.load(str(self.path), map_location=self.device).eval()

    def _read_tensors(self, config: dict[str, Any]) -> None:
        """Settles names, positions and dtypes once, so that a wrong config stops the load and not a request."""
        arguments = [argument.name for argument in self.model.forward.schema.arguments if argument.name != "self"]
        names = [tensor["name"] for tensor in config.get("input", [])]
        if len(names) != len(arguments):
            raise ValueError(f"the config has {len(names)} inputs, forward() takes {len(arguments)}: {arguments}")
        indices = name_indices(names, arguments)
        check_indices("input", names, indices, len(arguments))
        configured_dtypes("input", config["input"])
        self.input_names = [name for _, name in sorted(zip(indices, names, strict=True))]

        self.output_names = [tensor["name"] for tensor in config.get("output", [])]
        if not self.output_names:
            raise ValueError("the config has no output: declare at least one")
        self.output_indices = name_indices(self.output_names, [])
        check_indices("output", self.output_names, self.output_indices, None)
        self.output_dtypes = configured_dtypes("output", config["output"])

    @staticmethod
    def _input(request: Any, name: str) -> Tensor:
        return torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())

    def _run_together(self, inputs: list[list[Tensor]]) -> list[list[Tensor]]:
        """One forward pass over all the requests, split again by their batch sizes."""
        if len(inputs) == 1:
            return [self._forward(inputs[0])]
        if not self.batched:
            raise ValueError("max_batch_size is 0: requests run one by one")
        sizes = [tensors[0].shape[0] for tensors in inputs]
        outputs = self._forward([torch.cat(tensors) for tensors in zip(*inputs, strict=True)])
        return [list(parts) for parts in zip(*(output.split(sizes) for output in outputs), strict=True)]

    def _run_alone(self, tensors: list[Tensor]) -> list[Tensor] | Exception:
        try:
            return self._forward(tensors)
        except Exception as error:
            return error

    def _forward(self, tensors: list[Tensor]) -> list[Tensor]:
        pieces = split_batch(tensors[0].shape[0], self.warm_sizes) if self.warm_sizes else []
        if len(pieces) < 2:
            return self._call(tensors)
        parts = [self._call(list(part)) for part in zip(*(tensor.split(pieces) for tensor in tensors), strict=True)]
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _call(self, tensors: list[Tensor]) -> list[Tensor]:
        with self.guard():
            outputs = flatten_outputs(self._run_model([tensor.to(self.device) for tensor in tensors]))
            check_indices("output", self.output_names, self.output_indices, len(outputs))
            outputs = [outputs[index].contiguous() for index in self.output_indices]
        for name, dtype, output in zip(self.output_names, self.output_dtypes, outputs, strict=True):
            if output.dtype != dtype:
                raise TypeError(f"output {name!r} is {output.dtype} and config.pbtxt says {dtype}: correct one of them")
            if self.batched and output.shape[0] != tensors[0].shape[0]:
                raise ValueError(
                    f"output {name!r} has batch size {output.shape[0]} for a batch of {tensors[0].shape[0]}: "
                    "the model bakes in a batch size"
                )
        return outputs

    def _run_model(self, tensors: list[Tensor]) -> Any:
        """oneDNN fusion does not take every graph; one that it stumbles over runs without it from then on."""
        try:
            return self.model(*tensors)
        except RuntimeError as error:
            if not self.fused or FUSION_BUG not in str(error):
                raise
        pb_utils.Logger.log_warn(f"{self.path}: oneDNN graph fusion fails on this model and is turned off")
        self.fused = False
        torch.jit.enable_onednn_fusion(False)
        self._load_model()
        return self.model(*tensors)

    def _response(self, result: list[Tensor] | Exception) -> Any:
        if isinstance(result, Exception):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(result).__name__}: {result}"))
        tensors = [pb_utils.Tensor.from_dlpack(name, t) for name, t in zip(self.output_names, result, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

"""The first step of the `classifier` ensemble: encoded images -> pixels [B,S,S,3] uint8, RGB.

Where the config has an output `crop` [B,4] float32: also what part of each picture that is, for who draws over it. What
becomes of an image: evaluation_transform.py beside this file. A bad image fails its own request and no other.
"""

import contextlib
import itertools
import json
import math
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from evaluation_transform import ImageError, Prepared, Settings, prepare
from PIL import Image

CGROUP = Path("/sys/fs/cgroup")
WARMUP = Path(__file__).resolve().parent.parent / "warmup"
COLOUR = re.compile(r"(\d+),(\d+),(\d+)")
NICENESS = 13  # about the share of a busy core that decoding needs: what it has beyond that is decoded in vain
OUTPUTS = ("pixels", "crop")
LINES_A_SECOND, LONGEST_ID = 10, 128  # of failures in the log: nobody fills a disk with bad images


def read_settings(config: dict[str, Any]) -> Settings:
    """Raises `ValueError` for a parameter that is missing or cannot be."""
    values = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
    known: dict[str, Any] = {}
    for name in Settings.__dataclass_fields__:
        if name not in values:
            continue
        value = values[name].strip()
        if name in ("interpolation", "crop_mode"):
            known[name] = value
        elif name == "fill":
            if (levels := COLOUR.fullmatch(value)) is None:
                raise ValueError(f'parameter {name} is "{value}": write three levels, such as 124,116,104')
            known[name] = tuple(map(int, levels.groups()))
        elif name == "reduced_decoding":
            if value not in ("true", "false"):
                raise ValueError(f'parameter {name} is "{value}": write true or false')
            known[name] = value == "true"
        elif value.isdigit():
            known[name] = int(value)
        else:
            raise ValueError(f'parameter {name} is "{value}": it must be a whole number')
    missing = {"image_size", "resize_size", "interpolation"} - known.keys()
    if missing:
        raise ValueError(f"parameters missing from config.pbtxt: {', '.join(sorted(missing))}")
    return Settings(**known)


def check_warmup(config: dict[str, Any], settings: Settings) -> None:
    """Raises `ValueError` where the parameters refuse the picture of a warm-up: tritonserver would crash there."""
    for warmup in config.get("model_warmup", []):
        name = warmup["inputs"]["image"].get("input_data_file")
        if not name:
            continue
        try:
            prepare((WARMUP / name).read_bytes()[4:], settings)  # after the length of a string element
        except ImageError as error:
            raise ValueError(
                f"the parameters of config.pbtxt refuse the warm-up's own picture, warmup/{name}: raise the limit "
                f"({error})"
            ) from None


def usable_cores() -> int:
    """That this process may keep busy: its affinity's, at most a container's CPU quota (cgroup v2, v1), rounded up."""
    allowed = len(os.sched_getaffinity(0))
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # not this version's; "max"
            quota, period = (int(word) for file in files for word in (CGROUP / file).read_text().split())
            if quota > 0:  # v1 says -1 for no limit
                allowed = min(allowed, math.ceil(quota / period))
    return allowed


def threads_of(config: dict[str, Any]) -> int:
    """Images that one instance decodes at once: the instances (processes) share the cores."""
    instances = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
    return max(1, usable_cores() // instances)


def step_back() -> None:
    """Lowers this thread's priority: under more load than it can take the server first answers what is decoded."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


class TritonPythonModel:
    """The Python backend's interface."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.settings = read_settings(config)
        self.outputs = [output["name"] for output in config["output"]]
        self.thread = 0  # that executes
        threads = threads_of(config)
        # Pillow decodes outside the interpreter's lock.
        self.pool = ThreadPoolExecutor(threads, initializer=step_back) if threads > 1 else None
        self.second, self.lines = 0, 0
        warnings.simplefilter("ignore")  # what Pillow says of odd files is for nobody here
        Image.init()  # the format plugins load now and not in the first request
        check_warmup(config, self.settings)

    def execute(self, requests: list[Any]) -> list[Any]:
        if self.thread != threading.get_ident():
            self.thread = threading.get_ident()
            step_back()
        batches = [self._images(request) for request in requests]
        images = [data for batch in batches if not isinstance(batch, Exception) for data in batch]
        run = self.pool.map if self.pool is not None and len(images) > 1 else map
        outcomes = iter(run(self._outcome, images))
        return [self._answer(request, batch, outcomes) for request, batch in zip(requests, batches, strict=True)]

    def finalize(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()

    def _images(self, request: Any) -> np.ndarray | Exception:
        """Encoded images [B], or why there are none."""
        try:
            return pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        except Exception as error:
            return error

    def _outcome(self, data: bytes) -> Prepared | Exception:
        try:
            return prepare(data, self.settings)
        except Exception as error:
            return error

    def _answer(self, request: Any, batch: np.ndarray | Exception, outcomes: Iterator[Any]) -> Any:
        try:
            if isinstance(batch, Exception):
                raise batch
            prepared = stack(list(itertools.islice(outcomes, len(batch))))
            named = zip(OUTPUTS, prepared, strict=True)
            tensors = [pb_utils.Tensor(name, array) for name, array in named if name in self.outputs]
            return pb_utils.InferenceResponse(output_tensors=tensors)
        except ImageError as error:
            failure, code = str(error), pb_utils.TritonError.INVALID_ARG
        except Exception as error:
            failure, code = f"preprocess failed: {type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL
        self._log(request, failure)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(failure, code))

    def _log(self, request: Any, failure: str) -> None:
        """With the id that the client knows its request by."""
        second = int(time.monotonic())
        self.lines = self.lines + 1 if second == self.second else 1
        self.second = second
        if self.lines <= LINES_A_SECOND:
            name = request.request_id()[:LONGEST_ID] or "<id_unknown>"
            pb_utils.Logger.log_warn(f"[request id: {name}] {failure[:500]}")


def stack(outcomes: list[Prepared | Exception]) -> list[np.ndarray]:
    """Pixels [S,S,3] and crop [4] each -> [B,S,S,3], [B,4]. Raises the first error, an `ImageError` with its place."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ImageError) and len(outcomes) > 1:
            raise ImageError(f"image {index} of {len(outcomes)}: {outcome}")
        if isinstance(outcome, Exception):
            raise outcome
    return [each[0][None] if len(each) == 1 else np.stack(each) for each in zip(*outcomes, strict=True)]

"""The loss on a GPU that is not there: PyTorch's fake tensors have the shapes and types, and record the operations."""

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.masked_patch_loss import op
from kernels.masked_patch_loss.vectorized import masked_patch_loss_vectorized

NOT_DETERMINISTIC = {"cumsum", "scatter_add", "scatter_add_", "index_add", "index_add_", "put_", "bincount", "histc"}


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("target_norm", ["none", "window", "patch"])
def test_float64_is_computed_under_deterministic_algorithms(target_norm: str) -> None:
    """`torch.use_deterministic_algorithms(True)` refuses these on a GPU."""
    with FakeTensorMode(), Recorder() as recorder:
        prediction = torch.empty(2, 48, 4, 4, dtype=torch.float64, device="cuda")
        image, mask = prediction.new_empty(2, 3, 16, 16), prediction.new_empty(2, 8, 8)
        grad = torch.empty_like(prediction)
        loss, _ = masked_patch_loss_vectorized(prediction, image, mask, "l1", target_norm, 5, grad, torch.float64)
    assert loss.device.type == "cuda"
    assert "where" in recorder.names
    assert not recorder.names & NOT_DETERMINISTIC


def test_a_batch_of_unknown_size_has_the_kernels_gradient() -> None:
    """Four signs in a byte; a batch that the kernels cannot index is refused when the compiled code runs."""
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        batch = shapes.create_unbacked_symint()
        prediction = torch.empty(batch, 48, 4, 4, device="cuda")
        image, mask = prediction.new_empty(batch, 3, 16, 16), prediction.new_empty(batch, 8, 8)
        _, grad, _ = torch.ops.widefield.masked_patch_loss(prediction, image, mask)
    assert grad.dtype == torch.uint8
    assert grad.shape[1:] == (12, 4, 4)
    asserted = [each.expr for several in shapes.deferred_runtime_asserts.values() for each in several]
    most = op.COUNTABLE // 16  # images of 4 x 4 cells
    held = [all(each.subs(batch.node.expr, size) for each in asserted) for size in (most - 1, most)]
    assert held == [True, False]


@pytest.mark.parametrize("lacking", ["ROCm", r"compute capability \(7, 5\)"])
def test_a_gpu_that_runs_no_kernel_is_warned_of_and_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.version, "hip", "7.2" if lacking == "ROCm" else None)
    warned = pytest.warns(UserWarning, match=f"no kernel for {lacking}, PyTorch's own operations are used: .*NVIDIA")
    with FakeTensorMode(), warned, Recorder() as recorder:
        prediction = torch.empty(2, 48, 4, 4, device="cuda")
        image, mask = prediction.new_empty(2, 3, 16, 16), prediction.new_empty(2, 8, 8)
        loss, grad, scale = op._cuda(prediction, image, mask)
        compiled = torch.ops.widefield.masked_patch_loss(prediction, image, mask)
        assert op._backward_cuda(loss, grad, scale, torch.float32, 48).shape == prediction.shape
    assert grad.dtype == compiled[1].dtype == torch.int8
    assert "where" in recorder.names

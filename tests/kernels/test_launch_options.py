"""Every launch sets the options whose defaults Triton changes (enable_fp_fusion in 3.10), and int64 indices."""

import ast
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

KERNELS = Path(__file__).parents[2] / "kernels"


def launches(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            kernel = node.func.value
            if isinstance(kernel, ast.Name) and kernel.id.endswith("_kernel"):
                yield node


def test_multiplications_and_additions_are_fused_as_in_the_cubins() -> None:
    found = {}
    for path in KERNELS.rglob("*.py"):
        for call in launches(ast.parse(path.read_text())):
            names = {keyword.arg for keyword in call.keywords}
            constants = None in names  # **whole_image.constants_for(...)
            found[f"{path.relative_to(KERNELS)}:{call.lineno}"] = constants or "enable_fp_fusion" in names
    assert len(found) >= 15
    assert all(found.values()), found
    assert '"enable_fp_fusion": True' in (KERNELS / "depthwise_conv2d/whole_image.py").read_text()
    assert '"enable_fp_fusion": True' in (KERNELS / "native/aot.py").read_text()


@pytest.mark.parametrize(("batch", "index"), [(2**21 - 1, "int32"), (2**21, "int64")])
def test_places_beyond_int32_are_counted_in_int64(batch: int, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.depthwise_conv2d import grad_weight, packed_image, toeplitz, whole_image

    x = torch.empty(batch, 4, 16, 16, dtype=torch.half, device="meta")
    weight = torch.empty(4, 1, 31, 31, dtype=torch.half, device="meta")
    monkeypatch.setattr(toeplitz, "pack_filter", lambda *_: weight)
    monkeypatch.setattr(grad_weight, "reduce_kernel", MagicMock())
    for module, arguments in (
        (toeplitz, (x, weight, None, x, "none")),
        (whole_image, (x, weight, None, x, "none")),
        (packed_image, (x, weight, None, x, "none")),
        (grad_weight, (x, x, weight)),
    ):
        kernel = MagicMock()
        monkeypatch.setattr(module, f"{module.__name__.rpartition('.')[2]}_kernel", kernel)
        module.launch(*arguments)
        assert str(kernel.__getitem__.return_value.call_args.kwargs["INDEX"]) == index

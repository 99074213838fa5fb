"""Every launch names what Triton's versions differ in: the default of enable_fp_fusion changes in 3.10."""

import ast
from collections.abc import Iterator
from pathlib import Path

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

"""The operator in a user's own module, through torch.onnx.export."""

import re
import textwrap
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.onnx import TRANSLATIONS
from kernels import depthwise_conv2d

PAGE = Path(__file__).parents[2] / "docs/kernels.md"
CHANNELS = 4


class Layer(nn.Module):
    def __init__(self, kernel: tuple[int, int], biased: bool, activation: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CHANNELS, 1, *kernel, generator=generator))
        self.bias = nn.Parameter(torch.randn(CHANNELS, generator=generator)) if biased else None
        self.activation = activation

    def forward(self, images: Tensor) -> Tensor:
        return depthwise_conv2d(images, self.weight, self.bias, self.activation)


def run(model: onnx.ModelProto, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kernel", "biased", "activation"),
    [((7, 5), True, "none"), ((3, 9), False, "relu"), ((13, 13), True, "gelu"), ((5, 5), False, "gelu")],
    ids=str,
)
def test_any_batch_and_image(kernel: tuple[int, int], biased: bool, activation: str, dtype: torch.dtype) -> None:
    layer = Layer(kernel, biased, activation).eval().to(dtype)
    program = torch.onnx.export(
        layer,
        (torch.zeros(2, CHANNELS, 9, 11, dtype=dtype),),
        input_names=["images"],
        dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
        custom_translation_table=TRANSLATIONS,
        dynamo=True,
        verbose=False,
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert {node.domain for node in program.model_proto.graph.node} <= {"", "ai.onnx"}
    for shape in ((3, CHANNELS, 20, 8), (1, CHANNELS, 1, 1)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        output = run(program.model_proto, images)
        assert output.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(output, layer(images).detach(), rtol=tolerance, atol=tolerance)


def test_the_call_that_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (
        code for code in re.findall(r"(?:^    .*\n|^\n)+", PAGE.read_text(), re.MULTILINE) if "TRANSLATIONS" in code
    )
    monkeypatch.chdir(tmp_path)
    layer, images = Layer((7, 7), True, "gelu").eval(), torch.randn(2, CHANNELS, 9, 9)
    exec(textwrap.dedent(code), {"model": layer, "images": images})
    model = onnx.load("model.onnx")
    for batch in (images, images[:1]):
        torch.testing.assert_close(run(model, batch), layer(batch).detach(), rtol=1e-5, atol=1e-5)

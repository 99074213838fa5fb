"""The problems of cases.py, and launches that are recorded where there is no device."""

from collections.abc import Callable

import pytest
import torch
from cases import Problem, make_problem
from device_stand_ins import no_device
from launch_stand_in import run_launches  # noqa: F401 - a fixture


@pytest.fixture
def problem() -> Callable[..., Problem]:
    return make_problem


@pytest.fixture
def cudnn_conv():
    """PyTorch's setting of float32 convolutions, put back (a monkeypatch would delete it)."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    yield conv
    conv.fp32_precision = before


@pytest.fixture
def taken(monkeypatch, tmp_path):
    """The launches that were made, on a device of capability 9.0; outputs are filled with 3."""
    from kernels.depthwise_conv2d import grad_weight, kernel, packed_image, tile_files, toeplitz, transpose, whole_image

    seen = []

    def check(source, weight, bias, output):
        assert source.stride() == output.stride()
        assert all(filled.is_contiguous() for filled in (weight, bias) if filled is not None)

    def taps(source, weight, bias, output, activation):
        check(source, weight, bias, output)
        seen.append(("taps", output.is_contiguous()))
        output.fill_(3)

    def tensor_cores(source, weight, bias, output, activation, precision, tile=None, flip=False):
        check(source, weight, bias, output)
        seen.append(("toeplitz", output.is_contiguous(), precision, tile, *(["turned"] if flip else [])))
        output.fill_(3)

    def small_images(name):
        def launch(source, weight, bias, output, activation, precision, flip=False, tile=None):
            check(source, weight, bias, output)
            options = [*(["turned"] if flip else []), *([tile] if tile else [])]
            seen.append((name, output.is_contiguous(), precision, *options))
            output.fill_(3)

        return launch

    def of_the_weight(grad, source, output, precision, tile=None):
        assert grad.is_contiguous()
        assert source.is_contiguous()
        seen.append(("grad_weight", tuple(output.shape), precision, tile))
        output.fill_(3)

    def transposed(source, target, rows, columns):
        matrices = torch.as_strided(source, (len(source), rows, columns), (rows * columns, columns, 1))
        target.as_strided((len(source), columns, rows), (rows * columns, rows, 1)).copy_(matrices.transpose(1, 2))

    monkeypatch.setattr(torch.cuda, "device", no_device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(kernel, "launch", taps)
    monkeypatch.setattr(toeplitz, "launch", tensor_cores)
    monkeypatch.setattr(whole_image, "launch", small_images("whole image"))
    monkeypatch.setattr(packed_image, "launch", small_images("packed image"))
    monkeypatch.setattr(transpose, "launch", transposed)
    monkeypatch.setattr(grad_weight, "launch", of_the_weight)
    monkeypatch.setenv("WIDEFIELD_TILES", str(tmp_path / "tiles.json"))
    tile_files.read.cache_clear()
    yield seen
    tile_files.read.cache_clear()

"""The backbone and the native library in a process with libtorch and no Python: what production does."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from export.torchscript import ServedBackbone, save_torchscript, trace_backbone
from kernels import native_library
from models import ModelConfig, create_model, reparameterize

SOURCE = Path(__file__).parent / "serve_without_python.cpp"
TORCH = Path(torch.__file__).parent
SIDE, THREADS = 64, 4


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Built with g++ against the installed libtorch; of its libraries it needs libtorch_cpu and libc10."""
    path = tmp_path_factory.mktemp("program") / "serve_without_python"
    command = [shutil.which("g++"), "-std=c++20", "-O1", str(SOURCE), "-o", str(path)]
    command += [f"-isystem{TORCH / 'include'}", f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}"]
    subprocess.run([*command, "-ltorch_cpu", "-lc10", "-pthread"], check=True)
    libraries = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=True).stdout
    assert "libpython" not in libraries
    assert "torch_python" not in libraries
    return path


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    config = ModelConfig(arch="replknet_nano", num_classes=10, image_size=SIDE)
    model = create_model(config.arch, num_classes=config.num_classes).eval()
    for module in model.modules():  # statistics of a trained model: not the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return ServedBackbone(reparameterize(model), config.mean, config.std)


@pytest.fixture(scope="module")
def model(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_torchscript(trace_backbone(backbone, SIDE), path)
    return path


def run(program, model, pixels, tmp_path, library=None, more=()):
    (tmp_path / "pixels").write_bytes(pixels.numpy().tobytes())
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "PYTHONPATH")}
    if library is not None:
        environment["LD_PRELOAD"] = library
    command = [str(program), str(model), str(tmp_path / "pixels"), str(SIDE), str(THREADS), *more]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


@pytest.mark.parametrize("by", ["preload", "dlopen"])
def test_right_from_many_threads(program, model, backbone, tmp_path, by):
    pixels = torch.randint(0, 256, (8, SIDE, SIDE, 3), dtype=torch.uint8)
    library = str(native_library())
    how = {"library": library} if by == "preload" else {"more": [library]}
    done = run(program, model, pixels, tmp_path, **how)
    assert done.returncode == 0, done.stderr.decode()
    logits = np.frombuffer(done.stdout, np.float32).reshape(THREADS, 8, 10)
    with torch.inference_mode():
        expected = backbone(pixels).numpy()
    for each in logits:
        np.testing.assert_allclose(each, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_without_the_library_the_operator_is_named(program, model, tmp_path):
    done = run(program, model, torch.zeros(8, SIDE, SIDE, 3, dtype=torch.uint8), tmp_path)
    assert done.returncode != 0
    assert b"widefield::depthwise_conv2d" in done.stderr

"""The kernels for other processors, which this one runs too if PyTorch's $ATEN_CPU_CAPABILITY selects them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAGS = Path("/proc/cpuinfo").read_text()
TESTS = {
    "avx2": "within_the_bound or no_worse or nan or whole_row or narrow or rounded or thread_count or paths or empty",
    "default": "paths or empty or non_contiguous or bias_and_activation or bad_arguments",  # PyTorch's convolution
}


@pytest.mark.parametrize("capability", TESTS)
@pytest.mark.slow
def test_the_tests_of_the_kernels(capability):
    if capability == "avx2" and " avx2 " not in FLAGS:
        pytest.skip("no AVX2 here")
    files = [HERE / f"test_depthwise_conv2d_cpu{part}.py" for part in ("", "_gradients")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-k",
        TESTS[capability],
    ]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, *map(str, files)], env=environment, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout

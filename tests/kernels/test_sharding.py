"""The operator and its gradients on DTensors of two gloo processes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_processes_with_half_of_the_images_each_find_the_same():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, "-m", "tests.kernels.sharded"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

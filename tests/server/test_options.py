"""The options of python -m server and server.tune, and what docs/serving.md says of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["server", "server.tune"])
def test_every_option_is_described(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    options = set(re.findall(r"^ +(?:-h, )?(--[a-z0-9-]+)", done.stdout, re.MULTILINE)) - {"--help"}
    assert len(options) >= 6
    text = (ROOT / "docs" / "serving.md").read_text()
    assert {option for option in options if f"`{option}`" not in text and f"`{option} " not in text} == set()

"""The problems of cases.py as a fixture."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import Problem, make_problem


@pytest.fixture
def problem() -> Callable[..., Problem]:
    return make_problem

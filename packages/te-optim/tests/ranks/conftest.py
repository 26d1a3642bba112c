"""Tests that every rank of a job runs; without a launcher, one process on its own."""

import sys
from pathlib import Path

import pytest

from te_optim import distributed

sys.path.insert(0, str(Path(__file__).parent))  # for what the tests share


@pytest.fixture
def comm():
    return distributed.init(timeout=20)

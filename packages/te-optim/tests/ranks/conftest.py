"""Tests that every rank of a job runs; without a launcher, one process on its own."""

import sys
from pathlib import Path

import pytest

import te_tensor as te
from te_optim import distributed

sys.path.insert(0, str(Path(__file__).parent))  # for what the tests share


@pytest.fixture(autouse=True)
def _settings():
    """One thread a rank, as ranks share a machine here."""
    threads = te.get_num_threads()
    te.set_num_threads(1)
    yield
    te.set_num_threads(threads)


@pytest.fixture
def comm():
    return distributed.init(timeout=20)

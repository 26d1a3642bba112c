"""Tests that every rank of a job runs; without a launcher, one process on its own."""

import json
import tempfile
from pathlib import Path

import pytest

import te_tensor as te
from te_optim import distributed


@pytest.fixture(autouse=True)
def _one_thread():
    threads = te.get_num_threads()
    te.set_num_threads(1)
    yield
    te.set_num_threads(threads)


@pytest.fixture
def tmp_path():
    """A directory of this rank's own: pytest's tidies up beside those of the other ranks."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(own)


@pytest.fixture
def comm():
    return distributed.init(timeout=30)


@pytest.fixture
def shared(comm):
    """A directory that all ranks see."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(json.loads(comm.broadcast_bytes(json.dumps(own).encode())))
        comm.barrier()

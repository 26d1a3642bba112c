"""Tests that every rank of a job runs; without a launcher, one process on its own."""

import pytest

from te_optim import distributed


@pytest.fixture
def comm():
    return distributed.init(timeout=20)

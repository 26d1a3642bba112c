"""Files that compare with PyTorch are collected where PyTorch is installed; numbers of threads."""

from importlib.util import find_spec

import pytest

import te_tensor as te

collect_ignore_glob = [] if find_spec("torch") else ["test_torch*.py"]


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = te.get_num_threads()
    te.set_num_threads(request.param)
    yield request.param
    te.set_num_threads(before)

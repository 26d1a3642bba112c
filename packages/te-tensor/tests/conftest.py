"""Settings of the process that tests may change are put back after each test."""

import importlib.util
from collections.abc import Iterator

import pytest

import te_tensor as te

# PyTorch is a reference; where it isn't installed, what compares with it is not collected.
collect_ignore = (
    [] if importlib.util.find_spec("torch") else ["test_torch.py", "test_torch_attention.py"]
)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    threads = te.get_num_threads()
    te.manual_seed(0)
    yield
    te.set_num_threads(threads)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    te.set_num_threads(request.param)
    return request.param

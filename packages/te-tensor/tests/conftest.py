"""Settings of the process that tests may change are put back after each test."""

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import te_tensor as te

# PyTorch is a reference; where it isn't installed, what compares with it is not collected.
collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_torch*.py"]


#: Sizes from which work is cut, small enough for tests to reach them.
CUT = {
    "parallel.PARALLEL_FROM": 1 << 16,
    "parallel.PARALLEL_CALL_FROM": 1 << 16,
    "parallel.PARALLEL_KERNEL_FROM": 1 << 16,
    "parallel.SHARED_KERNEL_FROM": 1 << 12,
    "parallel.BLOCK": 1 << 15,
    "blas._PARALLEL_FROM": 1 << 20,
    "blas._SHARED_FROM": 1 << 16,
    "blas._SHARED_VECTOR_FROM": 1 << 14,
    "ops._units._PARALLEL_FROM": 1 << 18,
    "ops._columns._BLOCK": 1 << 16,
    "ops._in_blocks._PARALLEL_FROM": 1 << 16,
    "ops._in_blocks._BLOCK": 1 << 17,
    "ops._nested._LEAST_SCORES": 20,
    "machine.chain._SHARED_PRODUCT_FROM": 1 << 8,
    "machine.chain._SHARED_KERNEL_FROM": 1 << 6,
    "ops._direct._TILED_FROM": 1 << 15,
    "machine.tile_products._FROM": 1 << 14,
    "machine.tile_products._SHORTEST": 5,
    "machine.tile_templates._LEAST_ROWS": 100,
    "machine.tile_products.SHARED_FROM": 1 << 11,
    "machine.tile_products._SHALLOWEST": 5,
    "machine.tile_templates._STRETCH": 1 << 13,
    "machine.nest._TILED_FROM": 1 << 10,
    "machine.nest._SHORTEST": 5,
    "machine.nest._SHALLOWEST": 5,
    "machine.nest._SHARED_FROM": 1 << 10,
    "machine.nest._WOKEN_FROM": 1 << 13,
    "machine.product._SHARED_FROM": 1 << 10,
    "machine.product._BLOCK": 1 << 12,
    "machine.product._PARALLEL_FROM": 1 << 10,
    "ops._chained._PARALLEL_FROM": 1 << 10,
    "ops._chained._ROWS": 2,
    "ops._chained._TILED_ROWS": 2,
    "ops._chained._TILED_FROM": 1 << 6,
    "ops._chained._ROWS_AT_ONCE": 12,
    "ops._chained._SMALL": 1 << 6,
    "ops._sequence._PARALLEL_FROM": 1 << 10,
    "ops._sequence._ROWS": 2,
    "ops._sequence._COLUMNS": 12,
}


@pytest.fixture(autouse=True)
def _cut_small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CUT.items():
        monkeypatch.setattr(f"te_tensor.{name}", value)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    threads, kernels = te.get_num_threads(), te.kernel_info()["kernels"]
    te.manual_seed(0)
    yield
    te.set_num_threads(threads)
    te.set_kernels(kernels)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    te.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=["avx512", "avx2"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kind of machine code that the processor runs."""
    before = te.kernel_info()["kernels"]
    try:
        te.set_kernels(request.param)
    except OSError as error:
        pytest.skip(str(error))
    yield request.param
    te.set_kernels(before)


@pytest.fixture
def fused() -> Callable[..., np.ndarray]:
    """±a·b + c in float32, rounded once."""
    return _fused


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray, sign: int = 1) -> np.ndarray:
    # The product is exact in float64. Rounding the sum there to odd, as Boldo and Melquiond do,
    # keeps from rounding twice.
    product, c = sign * (a.astype(np.float64) * b), c.astype(np.float64)
    total = product + c
    other = total - product
    rest = (product - (total - other)) + (c - other)
    even = np.asarray(total).view(np.int64) & 1 == 0
    inexact = np.isfinite(rest) & (rest != 0) & even
    return np.where(inexact, np.nextafter(total, np.copysign(np.inf, rest)), total).astype(
        np.float32
    )

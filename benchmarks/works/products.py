"""Matrix products m×k by k×n in float32, into memory that is there already."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ..blocks.common import Array
from ..machine import cpus

Size: TypeAlias = tuple[int, int, int]
SIZES = {
    "1024×1024×1024": (1024, 1024, 1024),
    "2048×2048×2048": (2048, 2048, 2048),
    "4096×512×512": (4096, 512, 512),
}


def flops(size: Size) -> float:
    """Floating-point operations of one product."""
    m, k, n = size
    return 2.0 * m * k * n


def _inputs(size: Size) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    m, k, n = size
    return rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)


def tensor_engine(size: Size) -> Callable[[], object]:
    """OpenBLAS at one thread, cut over the engine's own threads."""
    from te_tensor import blas

    a, b = _inputs(size)
    out = np.full((size[0], size[2]), np.nan, np.float32)
    return lambda: blas.gemm(a, b, out)


def torch(size: Size) -> Callable[[], object]:
    import torch

    torch.set_num_threads(cpus())
    a, b = (torch.from_numpy(array) for array in _inputs(size))
    out = torch.full((size[0], size[2]), torch.nan)
    return lambda: torch.mm(a, b, out=out)


def openblas(size: Size) -> Callable[[], object]:
    """The library that the engine loads, with OpenBLAS's own threads."""
    import te_tensor as te

    library = ctypes.CDLL(te.blas_info()["path"])
    library.scipy_openblas_set_num_threads(cpus())
    multiply: Any = library.scipy_cblas_sgemm
    integer, scalar, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    matrix: list[Any] = [pointer, integer]
    multiply.argtypes = [*[integer] * 6, scalar, *matrix, *matrix, scalar, *matrix]
    multiply.restype = None
    m, k, n = size
    a, b = _inputs(size)
    out = np.full((m, n), np.nan, np.float32)
    row_major, as_it_is = 101, 111

    def step() -> object:
        multiply(
            *(row_major, as_it_is, as_it_is, m, n, k),
            *(1.0, a.ctypes.data, k, b.ctypes.data, n, 0.0, out.ctypes.data, n),
        )
        return out

    return step


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch, "openblas": openblas}

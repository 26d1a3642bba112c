"""The matrix products of `block_training`'s linear maps alone, attention's left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..blocks.common import Size
from .block_training import SIZES as SIZES

#: Forward, and the gradients of both sides.
PRODUCTS = 3


def linears(size: Size) -> list[tuple[int, int]]:
    """Features in and out of a block's linear maps; queries, keys and values are one."""
    d_model, d_ff = size.d_model, size.d_ff
    return [(d_model, 3 * d_model), (d_model, d_model), (d_model, d_ff), (d_ff, d_model)]


def flops(size: Size) -> float:
    """Operations of the products."""
    rows = size.batch * size.length
    return 2 * PRODUCTS * rows * sum(k * n for k, n in linears(size))


def tensor_engine(size: Size) -> Callable[[], object]:
    import te_tensor as te

    rng = np.random.default_rng(0)
    rows = size.batch * size.length

    def draw(*shape: int) -> te.Tensor:
        return te.from_numpy(rng.standard_normal(shape, np.float32))

    maps = [(draw(rows, k), draw(k, n), draw(rows, n)) for k, n in linears(size)]

    def step() -> object:
        return [(x @ weight, grad @ weight.T, x.T @ grad) for x, weight, grad in maps]

    return step


CONTESTANTS = {"tensor-engine": tensor_engine}

"""What several families share: checks of arguments, and the sums that NumPy is slow at."""

from __future__ import annotations

from math import prod
from typing import TypeAlias

import numpy as np

from ..blas import gemm
from ..dtypes import WIDE_FLOATS, Array

#: Elements below which NumPy's own sum over rows is quicker than a product.
_SMALL_SUM = 1 << 13

Axis: TypeAlias = int | tuple[int, ...] | None


def normalize_axis(axis: int, ndim: int) -> int:
    """An axis counted from the front.

    Raises:
        IndexError: there is no such axis.
        TypeError: axis is not a whole number.
    """
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis is {axis!r}: expected a whole number")
    if not -ndim <= axis < ndim:
        raise IndexError(f"axis is {axis}: expected -{ndim} … {ndim - 1} for {ndim} axes")
    return int(axis) % ndim


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes, counted from the front and in order; None means all of them.

    Raises:
        IndexError: there is no such axis.
        ValueError: an axis is given twice.
    """
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    found = sorted(normalize_axis(a, ndim) for a in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"axis is {axis}: an axis is named twice")
    return tuple(found)


def broadcasts_to(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    """Whether broadcasting takes the one shape to the other."""
    return len(shape) <= len(larger) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(larger), strict=False)
    )


REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str) -> str:
    """The reduction of a loss.

    Raises:
        ValueError: there is no such reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected one of {', '.join(REDUCTIONS)}")
    return reduction


def sum_rows(matrix: Array) -> Array:
    """Sum of a matrix over its rows, shape (columns,): a product with ones, where it is large."""
    if matrix.size < _SMALL_SUM or matrix.dtype not in WIDE_FLOATS:
        return np.asarray(np.add.reduce(matrix, axis=0))
    ones = np.ones((1, matrix.shape[0]), matrix.dtype)
    total = gemm(ones, matrix, np.empty((1, matrix.shape[1]), matrix.dtype))
    return total.reshape(-1)


def as_rows(array: Array, axes: int = 1) -> Array:
    """A matrix whose rows run over the last `axes` axes."""
    lead = array.shape[: array.ndim - axes]
    return array.reshape(prod(lead), prod(array.shape[array.ndim - axes :]))


def random_stream(key: tuple[int, ...]) -> np.random.Generator:
    """Random numbers that depend on nothing but the key."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def keep_factors(key: tuple[int, ...], p: float, out: Array) -> Array:
    """Fill `out` with dropout's factors: 0 with probability p, else 1/(1-p)."""
    draws = random_stream(key).random(out.shape, np.float32)
    np.multiply(draws >= p, out.dtype.type(1 / (1 - p) if p < 1 else 0), out=out)
    return out

"""Comparisons: element by element, and of whole tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_number
from ..tensor import Operand, Tensor, as_tensor, check_shapes
from ._common import left


def equal(x: Operand, y: Operand) -> Tensor:
    """`x == y`, elementwise and broadcast, as bool; NaN equals nothing."""
    result: Tensor = left(x, y) == y
    return result


def not_equal(x: Operand, y: Operand) -> Tensor:
    """`x != y`, elementwise and broadcast, as bool; NaN differs from everything."""
    result: Tensor = left(x, y) != y
    return result


def less(x: Operand, y: Operand) -> Tensor:
    """`x < y`, elementwise and broadcast, as bool; False beside NaN."""
    result: Tensor = left(x, y) < y
    return result


def less_equal(x: Operand, y: Operand) -> Tensor:
    """`x <= y`, elementwise and broadcast, as bool; False beside NaN."""
    result: Tensor = left(x, y) <= y
    return result


def greater(x: Operand, y: Operand) -> Tensor:
    """`x > y`, elementwise and broadcast, as bool; False beside NaN."""
    result: Tensor = left(x, y) > y
    return result


def greater_equal(x: Operand, y: Operand) -> Tensor:
    """`x >= y`, elementwise and broadcast, as bool; False beside NaN."""
    result: Tensor = left(x, y) >= y
    return result


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """Whether all elements are equal to within atol + rtol·|b|; NaN equals nothing.

    Args:
        a: a tensor, an array or numbers.
        b: likewise; the shapes broadcast.
        rtol: tolerated difference, relative.
        atol: tolerated difference, absolute.

    Returns:
        True or False.

    Raises:
        ValueError: shapes that don't broadcast, or a negative tolerance.
        TypeError: something else than numbers.
    """
    first, second = as_tensor(a), as_tensor(b)
    check_shapes("allclose", first, second)
    check_number("rtol", rtol, 0), check_number("atol", atol, 0)
    return bool(np.allclose(first.data, second.data, rtol=rtol, atol=atol))

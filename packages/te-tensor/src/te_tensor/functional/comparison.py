"""Comparisons: element by element, and of whole tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tensor import Operand, Tensor
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
    """Whether all elements are equal to within atol + rtol·|b|; NaN equals nothing."""
    return bool(np.allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol))

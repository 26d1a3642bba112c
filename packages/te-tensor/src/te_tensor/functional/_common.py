"""What the families of functions share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ..dtypes import FLOATS, Array
from ..operation import Operation
from ..tensor import Operand, Tensor, as_tensor

#: What a function takes where it expects a tensor.
Like: TypeAlias = Tensor | Array


def apply(operation: Operation, *inputs: Tensor | None) -> Tensor:
    """Apply to the inputs that are there."""
    result: Tensor = Tensor.apply(operation, *(t for t in inputs if t is not None))
    return result


def floats(name: str, x: Like) -> Tensor:
    """The tensor, which must hold floats."""
    x = as_tensor(x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} of {x.dtype}: expected a float dtype")
    return x


def cast(x: Tensor, like: Tensor) -> Tensor:
    """The tensor in the dtype of another."""
    return x if x.dtype == like.dtype else x.astype(like.dtype)


def left(x: Operand, y: Operand) -> Any:
    """The left side of an operator: beside a tensor a number stays one, and weak."""
    return x if isinstance(y, Tensor) else as_tensor(x)


def check_probability(p: float) -> None:
    """Raise ValueError unless p lies in 0 … 1."""
    number = isinstance(p, (int, float, np.number)) and not isinstance(p, bool)
    if not number or not 0 <= p <= 1:
        raise ValueError(f"dropout probability is {p!r}: expected 0 … 1")

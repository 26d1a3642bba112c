"""What the families of functions share."""

from __future__ import annotations

from typing import Any

from ..checks import check_number
from ..dtypes import FLOATS, meet
from ..operation import Operation
from ..tensor import Like as Like
from ..tensor import Operand, Tensor, as_tensor


def apply(operation: Operation, *inputs: Tensor | None) -> Tensor:
    """Apply to the inputs that are there."""
    result: Tensor = Tensor.apply(operation, *[t for t in inputs if t is not None])
    return result


def floats(name: str, x: Like) -> Tensor:
    """The tensor, which must hold floats."""
    x = as_tensor(x)
    if x._array.dtype not in FLOATS:
        raise TypeError(f"{name} of {x.dtype}: expected a float dtype")
    return x


def cast(x: Tensor, like: Tensor) -> Tensor:
    """The tensor in the dtype of another."""
    if x.dtype == like.dtype:
        return x
    meet(x.dtype, like.dtype)  # raises for what is stored only
    return x.astype(like.dtype)


def left(x: Operand, y: Operand) -> Any:
    """The left side of an operator: beside a tensor a number stays one, and weak."""
    return x if isinstance(y, Tensor) else as_tensor(x)


def check_probability(p: float) -> None:
    """Raise unless p is a number in 0 … 1."""
    check_number("dropout probability", p, 0, 1)

"""A function for every method of Tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from ..tensor import Operand, Tensor, as_tensor
from ._common import Like

_Axis: TypeAlias = int | tuple[int, ...] | None


def add(x: Tensor, y: Operand) -> Tensor:
    """`x + y`, broadcast."""
    return as_tensor(x) + y


def sub(x: Tensor, y: Operand) -> Tensor:
    """`x - y`, broadcast."""
    return as_tensor(x) - y


def mul(x: Tensor, y: Operand) -> Tensor:
    """`x * y`, broadcast."""
    return as_tensor(x) * y


def div(x: Tensor, y: Operand) -> Tensor:
    """`x / y`, broadcast; integers are divided in float32."""
    return as_tensor(x) / y


def pow(x: Tensor, y: Operand) -> Tensor:
    """`x ** y`, broadcast."""
    return as_tensor(x) ** y


def neg(x: Like) -> Tensor:
    """`-x`."""
    return -as_tensor(x)


def matmul(a: Like, b: Like) -> Tensor:
    """The matrix product: 1-D operands are vectors, leading axes broadcast."""
    return as_tensor(a) @ as_tensor(b)


def abs(x: Like) -> Tensor:
    """The absolute value, elementwise; gradient 0 at 0."""
    return as_tensor(x).abs()


def exp(x: Like) -> Tensor:
    """e to the power of each element."""
    return as_tensor(x).exp()


def log(x: Like) -> Tensor:
    """The natural logarithm of each element; -inf at 0, NaN below."""
    return as_tensor(x).log()


def sqrt(x: Like) -> Tensor:
    """The square root of each element; NaN below 0."""
    return as_tensor(x).sqrt()


def sum(x: Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over an axis, several, or all."""
    return as_tensor(x).sum(axis, keepdims)


def mean(x: Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over an axis, several, or all."""
    return as_tensor(x).mean(axis, keepdims)


def max(x: Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The maximum over an axis, several, or all; equal ones share the gradient."""
    return as_tensor(x).max(axis, keepdims)


def relu(x: Like) -> Tensor:
    """max(x, 0), elementwise."""
    return as_tensor(x).relu()


def sigmoid(x: Like) -> Tensor:
    """1 / (1 + e^-x), elementwise."""
    return as_tensor(x).sigmoid()


def tanh(x: Like) -> Tensor:
    """The hyperbolic tangent, elementwise."""
    return as_tensor(x).tanh()


def gelu(x: Like, approximate: str = "none") -> Tensor:
    """x·Φ(x), elementwise; approximate="tanh" for the form with tanh instead of erf."""
    return as_tensor(x).gelu(approximate)


def softmax(x: Like, axis: int = -1) -> Tensor:
    """e^x / Σ e^x along an axis."""
    return as_tensor(x).softmax(axis)


def log_softmax(x: Like, axis: int = -1) -> Tensor:
    """x - ln Σ e^x along an axis."""
    return as_tensor(x).log_softmax(axis)


def reshape(x: Like, shape: Sequence[int]) -> Tensor:
    """The same elements under another shape; one length may be -1."""
    return as_tensor(x).reshape(shape)


def transpose(x: Like, *axes: int) -> Tensor:
    """All axes reversed, or two axes exchanged."""
    return as_tensor(x).transpose(*axes)


def permute(x: Like, axes: Sequence[int]) -> Tensor:
    """The axes in another order."""
    return as_tensor(x).permute(axes)


def flatten(x: Like, start: int = 0, end: int = -1) -> Tensor:
    """The axes from `start` to `end` (included) as one."""
    return as_tensor(x).flatten(start, end)


def squeeze(x: Like, axis: int | None = None) -> Tensor:
    """Without axes of length 1: all of them, or the one named."""
    return as_tensor(x).squeeze(axis)


def unsqueeze(x: Like, axis: int) -> Tensor:
    """With an axis of length 1 at `axis` of the result."""
    return as_tensor(x).unsqueeze(axis)


def expand(x: Like, shape: Sequence[int]) -> Tensor:
    """Axes of length 1 repeated without copying; -1 keeps an axis."""
    return as_tensor(x).expand(shape)

"""A function for every method of Tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy.typing as npt

from ..tensor import Operand, Tensor, as_tensor
from ._common import Like, left

_Axis: TypeAlias = int | tuple[int, ...] | None


def _tensor_first(x: Operand, y: Operand) -> tuple[Tensor, Operand]:
    """Both sides of what is symmetric."""
    return (y, x) if isinstance(y, Tensor) else (as_tensor(x), y)


def add(x: Operand, y: Operand) -> Tensor:
    """`x + y`, broadcast."""
    result: Tensor = left(x, y) + y
    return result


def sub(x: Operand, y: Operand) -> Tensor:
    """`x - y`, broadcast."""
    result: Tensor = left(x, y) - y
    return result


def mul(x: Operand, y: Operand) -> Tensor:
    """`x * y`, broadcast."""
    result: Tensor = left(x, y) * y
    return result


def div(x: Operand, y: Operand) -> Tensor:
    """`x / y`, broadcast; integers are divided in float32."""
    result: Tensor = left(x, y) / y
    return result


def pow(x: Operand, y: Operand) -> Tensor:
    """`x ** y`, broadcast."""
    result: Tensor = left(x, y) ** y
    return result


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


def log1p(x: Like) -> Tensor:
    """ln(1 + x), elementwise, exact also near 0; -inf at -1, NaN below."""
    return as_tensor(x).log1p()


def sqrt(x: Like) -> Tensor:
    """The square root of each element; NaN below 0."""
    return as_tensor(x).sqrt()


def sin(x: Like) -> Tensor:
    """The sine of each element, in radians."""
    return as_tensor(x).sin()


def cos(x: Like) -> Tensor:
    """The cosine of each element, in radians."""
    return as_tensor(x).cos()


def erf(x: Like) -> Tensor:
    """The error function 2/√π · ∫₀ˣ e^(-t²) dt of each element."""
    return as_tensor(x).erf()


def clip(x: Like, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """Limited to min … max, each a number, a tensor or None; `max` wins where they cross.

    As in PyTorch the gradient reaches elements within the limits or on one, else the limit.
    """
    return as_tensor(x).clip(min, max)


def maximum(x: Operand, y: Operand) -> Tensor:
    """The greater of each two elements, broadcast; equal ones get half the gradient each."""
    first, second = _tensor_first(x, y)
    return first.maximum(second)


def minimum(x: Operand, y: Operand) -> Tensor:
    """The lesser of each two elements, broadcast; equal ones get half the gradient each."""
    first, second = _tensor_first(x, y)
    return first.minimum(second)


def sum(x: Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over an axis, several, or all."""
    return as_tensor(x).sum(axis, keepdims)


def mean(x: Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over an axis, several, or all."""
    return as_tensor(x).mean(axis, keepdims)


def max(x: Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The maximum over an axis, several, or all; equal ones share the gradient."""
    return as_tensor(x).max(axis, keepdims)


def min(x: Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The minimum over an axis, several, or all; equal ones share the gradient."""
    return as_tensor(x).min(axis, keepdims)


def var(x: Like, axis: _Axis = None, keepdims: bool = False, *, correction: float = 0.0) -> Tensor:
    """The variance Σ (x - mean)² / (n - correction) over an axis, several, or all."""
    return as_tensor(x).var(axis, keepdims, correction=correction)


def std(x: Like, axis: _Axis = None, keepdims: bool = False, *, correction: float = 0.0) -> Tensor:
    """The square root of `var`; its gradient is 0 where it is 0."""
    return as_tensor(x).std(axis, keepdims, correction=correction)


def argmax(x: Like, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the first of the greatest (or the first NaN) is, along an axis or among all."""
    return as_tensor(x).argmax(axis, keepdims)


def argmin(x: Like, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the first of the least (or the first NaN) is, along an axis or among all."""
    return as_tensor(x).argmin(axis, keepdims)


def cumsum(x: Like, axis: int | None = None) -> Tensor:
    """The sums of the first 1, 2, … elements along an axis, or of all in C order."""
    return as_tensor(x).cumsum(axis)


def relu(x: Like) -> Tensor:
    """max(x, 0), elementwise."""
    return as_tensor(x).relu()


def leaky_relu(x: Like, alpha: float = 0.01) -> Tensor:
    """x above 0, alpha·x elsewhere."""
    return as_tensor(x).leaky_relu(alpha)


def sigmoid(x: Like) -> Tensor:
    """1 / (1 + e^-x), elementwise."""
    return as_tensor(x).sigmoid()


def tanh(x: Like) -> Tensor:
    """The hyperbolic tangent, elementwise."""
    return as_tensor(x).tanh()


def gelu(x: Like, approximate: str = "none") -> Tensor:
    """x·Φ(x), elementwise; approximate="tanh" for the form with tanh instead of erf."""
    return as_tensor(x).gelu(approximate)


def silu(x: Like) -> Tensor:
    """x / (1 + e^-x), elementwise."""
    return as_tensor(x).silu()


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


def squeeze(x: Like, axis: _Axis = None) -> Tensor:
    """Without axes of length 1: all of them, or those named."""
    return as_tensor(x).squeeze(axis)


def unsqueeze(x: Like, axis: int) -> Tensor:
    """With an axis of length 1 at `axis` of the result."""
    return as_tensor(x).unsqueeze(axis)


def expand(x: Like, shape: Sequence[int]) -> Tensor:
    """Axes of length 1 repeated without copying; -1 keeps an axis."""
    return as_tensor(x).expand(shape)


def astype(x: Like, dtype: npt.DTypeLike) -> Tensor:
    """The same values in another dtype; the gradient is cast back."""
    return as_tensor(x).astype(dtype)

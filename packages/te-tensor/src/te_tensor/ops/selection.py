"""Elementwise choice between values: Maximum Minimum Clip Where."""

from __future__ import annotations

import numpy as np

from ..dtypes import Array, bool_
from ..operation import Gradients, Operation, Sample
from ..parallel import ufunc

_PAIRS = (
    Sample((3, 4), (3, 4)),
    Sample((3, 1), (4,)),
    Sample((), (2, 3)),
    Sample((2, 0), (1, 1)),
)


class _Extremum(Operation, abstract=True):
    """The greater or the lesser of two; equal ones get half of the gradient each."""

    broadcasts = True
    _choose: np.ufunc
    _loses: np.ufunc

    def forward(self, a: Array, b: Array) -> Array:
        """The chosen one; NaN where either is NaN."""
        self.save(a, b)
        return ufunc(self._choose, a, b)

    def backward(self, grad: Array) -> Gradients:
        """The gradient to the chosen one; beside a NaN, to both, as PyTorch has it."""
        a, b = self.saved
        half = grad.dtype.type(0.5)
        equal = a == b
        shared = np.where(equal, grad * half, grad) if equal.any() else grad
        zero = np.zeros((), grad.dtype)
        grad_a = np.where(self._loses(a, b), zero, shared) if self.needs_grad[0] else None
        grad_b = np.where(self._loses(b, a), zero, shared) if self.needs_grad[1] else None
        return grad_a, grad_b


class Maximum(_Extremum):
    """The greater of a and b."""

    samples = _PAIRS
    _choose = np.maximum
    _loses = np.less


class Minimum(_Extremum):
    """The lesser of a and b."""

    samples = _PAIRS
    _choose = np.minimum
    _loses = np.greater


class Clip(Operation):
    """x limited to low … high; the upper limit wins where they cross.

    Inputs: x, and the limits that `limits` names.

    Args:
        limits: "low", "high" or both, in this order.
    """

    broadcasts = True
    samples = (
        Sample(
            *((3, 4), (), ()),
            inputs=(None, -0.51, 0.37),
            kwargs={"limits": ("low", "high")},
        ),
        Sample((3, 4), (4,), kwargs={"limits": ("low",)}),
        Sample((3, 1), (2, 3, 4), kwargs={"limits": ("high",)}),
    )

    def __init__(self, limits: tuple[str, ...]) -> None:
        self.limits = limits

    def forward(self, x: Array, *limits: Array) -> Array:
        """The limited values; NaN where x or a limit is NaN."""
        result = x
        self.save(x, *limits)
        for name, limit in zip(self.limits, limits, strict=True):
            result = ufunc(np.maximum if name == "low" else np.minimum, result, limit)
        return result

    def backward(self, grad: Array) -> Gradients:
        """The gradient to x where it lies within the limits or on one, else to the limit."""
        x, *limits = self.saved
        given = dict(zip(self.limits, limits, strict=True))
        low, high = given.get("low"), given.get("high")
        zero = np.zeros((), grad.dtype)
        outside = np.zeros((), bool_)
        to: dict[str, Array] = {}
        if low is not None:
            to["low"] = x < low if high is None else (x < low) & (low < high)
            outside = outside | ~(x >= low)
        if high is not None:
            to["high"] = x > high if low is None else (x > high) | (high < low)
            outside = outside | ~(x <= high)
        grads: list[Array | None] = [np.where(outside, zero, grad)]
        for name, needed in zip(self.limits, self.needs_grad[1:], strict=True):
            grads.append(np.where(to[name], grad, zero) if needed else None)
        return grads


class Where(Operation):
    """a where the condition holds, b elsewhere."""

    broadcasts = True
    samples = (
        Sample((2, 3), (2, 3), inputs=([[True, False, True], [False] * 3], None, None),
               nondiff=(0,)),
        Sample((4,), (), inputs=([[True], [False]], None, None), nondiff=(0,)),
    )  # fmt: skip

    def forward(self, condition: Array, a: Array, b: Array) -> Array:
        """The chosen elements."""
        if condition.dtype != bool_:
            raise TypeError(f"where got a condition of {condition.dtype}: expected bool")
        self.save(condition)
        return np.where(condition, a, b)

    def backward(self, grad: Array) -> Gradients:
        """To each, the gradient of the elements that it gave."""
        (condition,) = self.saved
        zero = np.zeros((), grad.dtype)
        _, needs_a, needs_b = self.needs_grad
        return (
            None,
            np.where(condition, grad, zero) if needs_a else None,
            np.where(condition, zero, grad) if needs_b else None,
        )

"""Elementwise choice between values: Maximum Minimum Clip Where."""

from __future__ import annotations

import numpy as np

from ..dtypes import Array, bool_
from ..operation import Gradients, Operation, Sample
from ..parallel import ufunc
from ._kernels import limited, masked, select

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
    _limits: str

    def forward(self, a: Array, b: Array) -> Array:
        """The chosen one; NaN where either is NaN."""
        self.save(a, b)
        side = self._limits
        if not b.ndim:
            return limited(a, **{side: b})
        return limited(b, **{side: a}) if not a.ndim else ufunc(self._choose, a, b)

    def backward(self, grad: Array) -> Gradients:
        """The gradient to the chosen one; beside a NaN, to both, as PyTorch has it."""
        a, b = self.saved
        equal = ufunc(np.equal, a, b, dtype=bool_)
        if equal.any():
            grad = select(equal, grad * grad.dtype.type(0.5), grad)
        needs_a, needs_b = self.needs_grad
        return (
            masked(~ufunc(self._loses, a, b, dtype=bool_), grad) if needs_a else None,
            masked(~ufunc(self._loses, b, a, dtype=bool_), grad) if needs_b else None,
        )


class Maximum(_Extremum):
    """The greater of a and b."""

    samples = _PAIRS
    _choose = np.maximum
    _loses = np.less
    _limits = "low"


class Minimum(_Extremum):
    """The lesser of a and b."""

    samples = _PAIRS
    _choose = np.minimum
    _loses = np.greater
    _limits = "high"


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
        self.save(x, *limits)
        given = dict(zip(self.limits, limits, strict=True))
        if not any(limit.ndim for limit in limits):
            return limited(x, **given)
        for name, limit in given.items():
            x = ufunc(np.maximum if name == "low" else np.minimum, x, limit)
        return x

    def backward(self, grad: Array) -> Gradients:
        """The gradient to x where it lies within the limits or on one, else to the limit."""
        x, *limits = self.saved
        given = dict(zip(self.limits, limits, strict=True))
        within: Array = np.ones((), bool_)
        if "low" in given:
            within = ufunc(np.greater_equal, x, given["low"], dtype=bool_)
        if "high" in given:
            within = within & ufunc(np.less_equal, x, given["high"], dtype=bool_)
        grads: list[Array | None] = [masked(within, grad) if self.needs_grad[0] else None]
        for name, needed in zip(self.limits, self.needs_grad[1:], strict=True):
            grads.append(masked(self._reached(name, x, **given), grad) if needed else None)
        return grads

    @staticmethod
    def _reached(name: str, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
        """Where a limit is the result; where they cross, it is the upper one."""
        if name == "low":
            return x < low if high is None else (x < low) & (low < high)
        return x > high if low is None else (x > high) | (high < low)


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
        return select(condition, a, b)

    def backward(self, grad: Array) -> Gradients:
        """To each, the gradient of the elements that it gave."""
        (condition,) = self.saved
        _, needs_a, needs_b = self.needs_grad
        return (
            None,
            masked(condition, grad) if needs_a else None,
            masked(~condition, grad) if needs_b else None,
        )
